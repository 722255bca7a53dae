"""An independent oracle of staged networks: what each neuron fires, from the ANN's activations, in plain numpy.

It shares nothing with the package. It reads torch modules one by one, as `oracle` does, in float64 and in the ANN's own
units: a spike of a layer is worth λ / T, the image enters at the first step, and with it every bias. A layer may fire
from the step on at which the last of its inputs ends, and does so for as many steps as QCFS has levels there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bridge import QCFS
from support import networks, oracle
from support.oracle import Floats

STEPS = 40
"""Steps that are computed, beyond the latency of all networks there are."""


@dataclass(frozen=True, eq=False)
class Staged:
    """What is expected: ``spikes`` and ``membranes`` of every QCFS in the order of calls, ``[STEPS, B, ...]``.

    ``readout`` ``[STEPS, B, ...]`` adds up to the ANN's output, ``output``, in ``latency`` steps.
    """

    spikes: list[NDArray[np.bool_]]
    membranes: list[Floats]
    readout: Floats
    output: Floats
    latency: int


@dataclass(frozen=True, eq=False)
class Signal:
    """A layer's output at every ``steps`` ``[STEPS, B, ...]``, and the ANN's ``value`` ``[B, ...]``.

    ``rest`` is the part of the first step that is there for no image and no spikes; ``last`` is the last step, counted
    from 0, at which anything comes.
    """

    steps: Floats
    rest: Floats
    value: Floats
    last: int


@cache
def of_network(name: str, images: int, levels: int | None) -> Staged:
    """`of` one of `networks.ALL` and of so many of `networks.dyadic_images`, which many tests expect."""
    model, shape = networks.ALL[name]()
    return of(model, networks.dyadic_images(images, shape).numpy(), levels)


def of(model: nn.Module, x: NDArray[Any], levels: int | None = None) -> Staged:
    """The staged network of `model` on images `x` ``[B, *input]``, with so many `levels` in every QCFS, or its own."""
    spikes: list[NDArray[np.bool_]] = []
    membranes: list[Floats] = []

    def through(module: nn.Module, signal: Signal) -> Signal:
        if isinstance(module, nn.Sequential):
            for child in module:
                signal = through(child, signal)
            return signal
        if isinstance(module, networks.Residual):  # and networks.Branches
            return join([through(branch, signal) for branch in module.branches], module.joins)
        if isinstance(module, nn.MaxPool2d):
            return largest(module, signal)
        if not isinstance(module, QCFS):
            return affine(module, signal)
        steps = levels or module.levels
        threshold = oracle.per_channel(oracle.numpy(module.threshold), signal.value)
        activation = oracle.activation(signal.value, steps, threshold)
        charge = threshold / steps
        count = np.rint(activation / charge)
        time = np.arange(STEPS).reshape(-1, *[1] * signal.value.ndim)
        fired = (time >= signal.last) & (time < signal.last + count)
        spikes.append(fired)
        heard = np.cumsum(signal.steps, axis=0) - signal.rest
        membranes.append(heard / charge - np.maximum(0, time - signal.last + 1))
        zero = np.zeros_like(activation)
        return Signal(fired * charge, zero, activation, signal.last + steps - 1)

    image = np.zeros((STEPS, *x.shape))
    image[0] = x
    result = through(model, Signal(image, np.zeros_like(image[0]), x.astype(np.float64), 0))
    return Staged(spikes, membranes, result.steps, result.value, result.last + 1)


def affine(module: nn.Module, signal: Signal) -> Signal:
    """`module`, whose constant part enters at the first step alone."""
    folded = oracle.transform(module, signal.steps.reshape(-1, *signal.steps.shape[2:]))
    steps = folded.reshape(*signal.steps.shape[:2], *folded.shape[1:])
    steps[1:] -= oracle.transform(module, np.zeros_like(signal.rest))
    rest, value = oracle.transform(module, signal.rest), oracle.transform(module, signal.value)
    return Signal(steps, rest, value, signal.last)


def largest(module: nn.MaxPool2d, signal: Signal) -> Signal:
    """The largest of each window, step by step: what is in it comes of one layer, whose trains begin together."""

    def pool(values: Floats) -> Floats:
        kernel, stride, padding = (oracle.pair(each) for each in (module.kernel_size, module.stride, module.padding))
        around = [(0, 0)] * (values.ndim - 2) + [(each, each) for each in padding]
        padded = np.pad(values, around, constant_values=-np.inf)
        rows = np.lib.stride_tricks.sliding_window_view(padded, kernel[0], axis=-2)
        windows = np.lib.stride_tricks.sliding_window_view(rows, kernel[1], axis=-2)
        result: Floats = windows[..., :: stride[0], :: stride[1], :, :].max(axis=(-2, -1))
        return result

    return Signal(pool(signal.steps), pool(signal.rest), pool(signal.value), signal.last)


def join(parts: list[Signal], how: str) -> Signal:
    """The sum of `parts`, or all of them side by side."""

    def joined(values: list[Floats], axis: int) -> Floats:
        together: Floats = np.concatenate(values, axis=axis) if how == "concat" else np.sum(values, axis=0)
        return together

    return Signal(
        joined([part.steps for part in parts], 2),
        joined([part.rest for part in parts], 1),
        joined([part.value for part in parts], 1),
        max(part.last for part in parts),
    )
