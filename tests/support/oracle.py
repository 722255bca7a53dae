"""An independent oracle: the spiking twin of a QCFS network, as the paper defines it, in plain numpy loops.

It shares nothing with the package. It reads torch modules one by one, folds nothing, keeps each neuron's own threshold
λ and starts it at λ/2, and sums in float64. Sequences, residual sums and concatenations (`networks.Residual`,
`networks.Branches`) are followed into. On the dyadic grid of `networks.make_dyadic` every sum is exact in float32 too,
so all simulators must agree with it in every spike.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bridge import QCFS
from support import networks

Floats = NDArray[np.float64]


@cache
def spikes_of_network(name: str, images: int, steps: int, seed: int = 0) -> tuple[list[NDArray[np.bool_]], Floats]:
    """`spikes_of` one of `networks.ALL` and of so many of `networks.dyadic_images`, which many tests expect."""
    model, shape = networks.ALL[name]()
    return spikes_of(model, networks.dyadic_images(images, shape, seed).numpy(), steps)


def spikes_of(model: nn.Module, x: NDArray[Any], steps: int) -> tuple[list[NDArray[np.bool_]], Floats]:
    """Spikes ``[T, B, ...]`` of every QCFS in the order of the calls, and the readout of each step ``[T, B, ...]``."""
    membranes: list[Floats] = []  # one a call of a QCFS: a module that is called twice is two layers
    spikes: list[list[NDArray[np.bool_]]] = []
    calls = 0

    def one_step(module: nn.Module, signal: Floats) -> Floats:
        nonlocal calls
        if isinstance(module, nn.Sequential):
            for child in module:
                signal = one_step(child, signal)
            return signal
        if isinstance(module, networks.Residual):  # and networks.Branches
            parts = [one_step(branch, signal) for branch in module.branches]
            return np.concatenate(parts, axis=1) if module.joins == "concat" else np.sum(parts, axis=0)
        if not isinstance(module, QCFS):
            return transform(module, signal)
        threshold = per_channel(numpy(module.threshold), signal)
        if calls == len(membranes):
            membranes.append(np.zeros_like(signal) + threshold / 2)  # v(0) = λ/2
            spikes.append([])
        v = membranes[calls] + signal  # integrate
        fired = v >= threshold  # fire
        membranes[calls] = v - threshold * fired  # soft reset
        spikes[calls].append(fired)
        calls += 1
        return threshold * fired  # a spike carries λ

    readout = []
    for _ in range(steps):
        calls = 0
        readout.append(one_step(model, x.astype(np.float64)))
    return [np.stack(row) for row in spikes], np.stack(readout)


def activation(z: Floats, levels: int, threshold: Floats) -> Floats:
    """QCFS: ``λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)``."""
    steps: Floats = np.clip(np.floor(z * levels / threshold + 0.5) / levels, 0, 1)
    return threshold * steps


def transform(module: nn.Module, x: Floats) -> Floats:
    """What a stateless torch module computes at inference, by definition."""
    if isinstance(module, nn.Linear):
        y: Floats = np.zeros((len(x), module.out_features)) + (0 if module.bias is None else numpy(module.bias))
        weight = numpy(module.weight)
        for o in range(module.out_features):
            for i in range(module.in_features):
                y[:, o] += weight[o, i] * x[:, i]
        return y
    if isinstance(module, nn.Conv2d):
        return convolve(module, x)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        mean, variance = per_channel(numpy(module.running_mean), x), per_channel(numpy(module.running_var), x)
        gain, shift = per_channel(numpy(module.weight), x), per_channel(numpy(module.bias), x)
        normal: Floats = gain * (x - mean) / np.sqrt(variance + module.eps) + shift
        return normal
    if isinstance(module, nn.AvgPool2d):
        return pool(module, x)
    if isinstance(module, nn.Conv1d):
        wide = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            (1, module.kernel_size[0]),
            (1, module.stride[0]),
            (0, int(module.padding[0])),
            (1, module.dilation[0]),
            module.groups,
            module.bias is not None,
        )
        wide.weight, wide.bias = nn.Parameter(module.weight[:, :, None]), module.bias
        return convolve(wide, x[:, :, None])[:, :, 0]
    if isinstance(module, nn.AdaptiveAvgPool2d):
        height, width = pair(module.output_size)
        kernel = x.shape[2] // height, x.shape[3] // width
        return pool(nn.AvgPool2d(kernel), x)
    if isinstance(module, nn.ChannelShuffle):
        count, channels = module.groups, x.shape[1]
        return x[:, [g * (channels // count) + i for i in range(channels // count) for g in range(count)]]
    if isinstance(module, nn.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(module, nn.Dropout | nn.Identity):
        return x
    raise NotImplementedError(type(module).__name__)


def convolve(module: nn.Conv2d, x: Floats) -> Floats:
    weight = numpy(module.weight)
    (sh, sw), (ph, pw), (dh, dw), groups = module.stride, pair(module.padding), module.dilation, module.groups
    out_channels, per_group, kh, kw = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), out_channels, height, width))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group  # first input channel of o's group
        for i in range(per_group):
            for a in range(kh):
                for b in range(kw):
                    rows = slice(a * dh, a * dh + height * sh, sh)
                    columns = slice(b * dw, b * dw + width * sw, sw)
                    y[:, o] += weight[o, i, a, b] * padded[:, first + i, rows, columns][:, :height, :width]
        if module.bias is not None:
            y[:, o] += numpy(module.bias)[o]
    return y


def pool(module: nn.AvgPool2d, x: Floats) -> Floats:
    (kh, kw), (sh, sw), (ph, pw) = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height, width = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    y = np.zeros((*x.shape[:2], height, width))
    for h in range(height):
        for w in range(width):
            y[:, :, h, w] = padded[:, :, h * sh : h * sh + kh, w * sw : w * sw + kw].sum(axis=(2, 3)) / (kh * kw)
    return y


def numpy(tensor: Any) -> Floats:
    values: Floats = tensor.detach().double().numpy()
    return values


def pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def per_channel(values: Floats, like: Floats) -> Floats:
    """One value, or one a channel, to broadcast over ``[B, C, ...]``."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2)) if values.ndim else values
