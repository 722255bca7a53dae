"""An independent oracle: the spiking twin of a QCFS network, as the paper defines it, in plain numpy loops.

It shares nothing with the package. It reads a torch ``nn.Sequential`` module by module, folds nothing, keeps each
neuron's own threshold λ and starts it at λ/2, and sums in float64. On the dyadic grid of `dyadic_model` every sum is
exact in float32 too, so all simulators must agree with it in every spike.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from bridge import QCFS


def spikes_of(model: nn.Sequential, x: np.ndarray, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Spikes ``[T, B, ...]`` of every QCFS module in order, and the readout of each step ``[T, B, ...]``."""
    modules = list(model)
    membranes = {}
    spikes = [[] for module in modules if isinstance(module, QCFS)]
    readout = []
    for _ in range(steps):
        signal = x.astype(np.float64)
        layer = 0
        for number, module in enumerate(modules):
            if not isinstance(module, QCFS):
                signal = transform(module, signal)
                continue
            threshold = per_channel(numpy(module.threshold), signal)
            v = membranes.get(number, np.zeros_like(signal) + threshold / 2)  # v(0) = λ/2
            v = v + signal  # integrate
            fired = v >= threshold  # fire
            membranes[number] = v - threshold * fired  # soft reset
            spikes[layer].append(fired)
            layer += 1
            signal = threshold * fired  # a spike carries λ
        readout.append(signal)
    return [np.stack(row) for row in spikes], np.stack(readout)


def activation(z: np.ndarray, levels: int, threshold: np.ndarray) -> np.ndarray:
    """QCFS: ``λ · clip(floor(z·L/λ + 1/2) / L, 0, 1)``."""
    return threshold * np.clip(np.floor(z * levels / threshold + 0.5) / levels, 0, 1)


def transform(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """What a stateless torch module computes at inference, by definition."""
    if isinstance(module, nn.Linear):
        y = np.zeros((len(x), module.out_features)) + (0 if module.bias is None else numpy(module.bias))
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
        return gain * (x - mean) / np.sqrt(variance + module.eps) + shift
    if isinstance(module, nn.AvgPool2d):
        return pool(module, x)
    if isinstance(module, nn.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(module, nn.Dropout | nn.Identity):
        return x
    raise NotImplementedError(type(module).__name__)


def convolve(module: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight = numpy(module.weight)
    (sh, sw), (ph, pw), (dh, dw), groups = module.stride, module.padding, module.dilation, module.groups
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


def pool(module: nn.AvgPool2d, x: np.ndarray) -> np.ndarray:
    (kh, kw), (sh, sw), (ph, pw) = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height, width = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    y = np.zeros((*x.shape[:2], height, width))
    for h in range(height):
        for w in range(width):
            y[:, :, h, w] = padded[:, :, h * sh : h * sh + kh, w * sw : w * sw + kw].sum(axis=(2, 3)) / (kh * kw)
    return y


def numpy(tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def per_channel(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """One value, or one a channel, to broadcast over ``[B, C, ...]``."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2)) if values.ndim else values
