"""Networks for Lava in floating point, with weights on a dyadic grid where every arithmetic is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.graph import (
    Add,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
)


def grid(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Weights on a dyadic grid, somewhat above zero on average, so that deep layers spike too."""
    return (rng.integers(-6, 10, shape) / 16).astype(np.float32)


def chain(rng: np.random.Generator, shape: Shape, *makers: Any) -> LayerGraph:
    """A chain of layers made by `makers`, called layer0, layer1, …"""
    sources = ["x", *(f"layer{i}" for i in range(len(makers)))]
    return dag(rng, shape, {f"layer{i}": (sources[i], maker) for i, maker in enumerate(makers)})


def dag(rng: np.random.Generator, shape: Shape, plan: dict[str, tuple[str, Any]]) -> LayerGraph:
    """An Input ``x`` and the layers of `plan`: name → (its inputs, divided by spaces, and its maker).

    A maker gets the layer's name and inputs and the shape of its first input.
    """
    built: list[Layer] = [Input(name="x", shape=shape)]
    shapes = {"x": shape}
    for name, (sources, maker) in plan.items():
        inputs = tuple(sources.split())
        built.append(maker(rng, {"name": name, "inputs": inputs}, shapes[inputs[0]]))
        shapes[name] = built[-1].output_shape(*(shapes[source] for source in inputs))
    return LayerGraph(tuple(built))


def conv(channels: int, kernel: tuple[int, int], groups: int = 1, **options: Any) -> Any:
    def make(rng: np.random.Generator, names: Any, shape: Shape) -> Layer:
        weight = grid(rng, channels, shape[0] // groups, *kernel)
        return Conv2d(**names, weight=weight, bias=grid(rng, channels) / 2, groups=groups, **options)

    return make


def conv1d(channels: int, kernel: int, groups: int = 1, **options: Any) -> Any:
    def make(rng: np.random.Generator, names: Any, shape: Shape) -> Layer:
        weight = grid(rng, channels, shape[0] // groups, kernel)
        return Conv1d(**names, weight=weight, bias=grid(rng, channels) / 2, groups=groups, **options)

    return make


def linear(features: int) -> Any:
    return lambda rng, names, shape: Linear(**names, weight=grid(rng, features, *shape), bias=grid(rng, features))


def spike(*levels: float) -> Any:
    def make(rng: np.random.Generator, names: Any, shape: Shape) -> Layer:
        return IntegrateFire(**names, level=np.resize(levels or (0.5,), shape[0]).astype(np.float32))

    return make


def pool(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> Any:
    return lambda rng, names, shape: AvgPool2d(**names, kernel=kernel, stride=stride, padding=padding)


def scale() -> Any:
    return lambda rng, names, shape: Scale(**names, scale=1 + grid(rng, shape[0]) / 2)


def flatten() -> Any:
    return lambda rng, names, shape: Flatten(**names)


def add() -> Any:
    return lambda rng, names, shape: Add(**names)


NETWORKS: dict[str, tuple[Shape, tuple[Any, ...]]] = {
    "mlp": ((6,), (linear(9), spike(), linear(7), spike(0.5, 0.25, 0.75), linear(3))),
    "conv": (
        (2, 9, 7),
        (
            conv(4, (3, 2), stride=(2, 1), padding=(1, 0)),
            spike(0.5, 0.375),
            conv(6, (2, 3), groups=2, padding=(0, 2), dilation=(2, 1)),
            spike(),
            conv(4, (3, 3), dilation=(1, 2), padding=(2, 1), stride=(1, 3)),
            spike(),
            pool((2, 1), (2, 1)),
            flatten(),
            linear(5),
        ),
    ),
    "conv readout": ((3, 5, 4), (conv(3, (3, 3)), spike(), conv(2, (2, 1), padding=(1, 0)))),
    "pool readout": ((1, 6, 4), (conv(2, (3, 3), padding=(1, 1)), spike(), pool((2, 4), (2, 1), (1, 1)))),
    "affine after affine": (
        (1, 5, 6),
        (
            conv(3, (1, 1)),
            pool((2, 2), (1, 2), (1, 1)),
            spike(),
            conv(4, (2, 2)),
            pool((2, 2), (2, 2), (1, 1)),
            conv(2, (2, 2)),
            spike(),
            flatten(),
            linear(6),
            linear(4),
            spike(),
            linear(5),
            linear(3),
        ),
    ),
    "spikes at once": ((4,), (spike(), linear(3), spike(), spike(0.25), scale(), scale(), spike())),
    "scales": ((2, 3, 4), (scale(), spike(), scale(), conv(2, (2, 2)), spike(), flatten(), scale(), linear(3))),
    "flattened neurons": ((2, 3, 4), (conv(3, (2, 1)), spike(), flatten(), spike(0.5, 0.25), linear(2))),
    "flat readout": ((2, 3, 4), (conv(3, (2, 1)), spike(), conv(2, (1, 2)), flatten())),
    "deep": ((3,), (*[linear(4), spike()] * 7, linear(2))),
    "no spikes": ((1, 3, 3), (conv(2, (2, 2)), flatten(), linear(3))),
    "many groups": ((130, 1, 1), (spike(), conv(130, (1, 1), groups=130), spike())),
    "conv1d": (
        (3, 17),
        (
            conv1d(4, 3, stride=2, padding=2),
            spike(0.5, 0.375),
            conv1d(6, 2, groups=2, dilation=3, padding=1),
            spike(),
            scale(),
            conv1d(4, 4, stride=3, padding=4, dilation=2, groups=2),
            spike(),
            flatten(),
            linear(3),
        ),
    ),
    "conv1d readout": ((2, 6), (spike(), conv1d(3, 2), conv1d(2, 3))),
}

STEM = {"stem": ("x", conv(3, (3, 3), padding=(1, 1))), "a": ("stem", spike())}
HEAD = {"flat": ("end", flatten()), "fc": ("flat", linear(3))}


def same(channels: int = 3) -> Any:
    """A convolution that keeps height and width."""
    return conv(channels, (3, 3), padding=(1, 1))


RESIDUAL: dict[str, tuple[Shape, dict[str, tuple[str, Any]]]] = {
    "identity skip": (
        (1, 5, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike(0.5, 0.25)),
            "conv2": ("b", same()),
            "sum": ("conv2 a", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
    "projected skip": (
        (1, 5, 4),
        {
            **STEM,
            "conv1": ("a", same(4)),
            "b": ("conv1", spike()),
            "conv2": ("b", same(5)),
            "project": ("a", conv(5, (1, 1))),
            "sum": ("project conv2", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
    "strided projection": (
        (2, 6, 5),
        {
            **STEM,
            "conv1": ("a", conv(4, (3, 3), padding=(1, 1), stride=(2, 2))),
            "b": ("conv1", spike()),
            "conv2": ("b", same(4)),
            "project": ("a", conv(4, (1, 1), stride=(2, 2))),
            "sum": ("conv2 project", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
    "scaled skip": (
        (1, 5, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike()),
            "conv2": ("b", same()),
            "skip": ("a", scale()),
            "sum": ("conv2 skip", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
    "two blocks": (
        (1, 4, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike()),
            "conv2": ("b", same()),
            "sum1": ("conv2 a", add()),
            "c": ("sum1", spike(0.5, 0.75)),
            "conv3": ("c", same()),
            "d": ("conv3", spike()),
            "conv4": ("d", same()),
            "sum2": ("c conv4", add()),
            "end": ("sum2", spike()),
            **HEAD,
        },
    ),
    "nested blocks": (
        (1, 4, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike()),
            "conv2": ("b", same()),
            "inner": ("conv2 b", add()),
            "c": ("inner", spike()),
            "conv3": ("c", same()),
            "outer": ("conv3 a", add()),
            "end": ("outer", spike()),
            **HEAD,
        },
    ),
    "add is the readout": (
        (1, 4, 4),
        {**STEM, "conv1": ("a", same()), "b": ("conv1", spike()), "conv2": ("b", same()), "sum": ("a conv2", add())},
    ),
    "add before the readout": (
        (1, 4, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike()),
            "end": ("a b", add()),
            "pool": ("end", pool((2, 2), (2, 2))),
            "flat": ("pool", flatten()),
            "fc": ("flat", linear(3)),
        },
    ),
    "pooled sum is the readout": (
        (1, 4, 4),
        {**STEM, "conv1": ("a", same()), "sum": ("conv1 a", add()), "pool": ("sum", pool((2, 2), (2, 1), (1, 0)))},
    ),
    "input skip": (
        (2, 4, 5),
        {
            "conv1": ("x", same(3)),
            "a": ("conv1", spike()),
            "conv2": ("a", same(2)),
            "skip": ("x", scale()),
            "sum": ("skip conv2", add()),
            "b": ("sum", spike()),
            "conv3": ("b", same(2)),
            "end": ("conv3 x", add()),
        },
    ),
    "input skip through a convolution": (
        (2, 4, 5),
        {
            "project": ("x", conv(3, (1, 1))),
            "conv1": ("x", same(3)),
            "a": ("conv1", spike()),
            "conv2": ("a", same(3)),
            "b": ("conv2", spike()),
            "sum": ("b project", add()),
            "conv3": ("sum", conv(2, (2, 2))),
            "c": ("conv3", spike()),
            "conv4": ("sum", conv(2, (2, 2))),
            "both": ("c conv4", add()),
            "end": ("both", spike()),
            **HEAD,
        },
    ),
    "branches from the input": (
        (2, 4, 5),
        {
            "stem1": ("x", same(3)),
            "stem2": ("x", same(3)),
            "a": ("stem1", spike()),
            "b": ("stem2", spike()),
            "conv1": ("b", same(3)),
            "sum": ("a conv1", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
    "add feeds a convolution": (
        (1, 5, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "b": ("conv1", spike()),
            "sum": ("a b", add()),
            "conv2": ("sum", same(2)),
            "end": ("conv2", spike()),
            **HEAD,
        },
    ),
    "three convolutions against none": (
        (1, 5, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "conv2": ("conv1", same()),
            "conv3": ("conv2", scale()),
            "sum": ("conv3 a", add()),
            "b": ("sum", spike()),
            "conv4": ("b", same()),
            "last": ("conv4 a", add()),
            "end": ("last", spike()),
            **HEAD,
        },
    ),
    "the same layer more than once": (
        (1, 3, 4),
        {
            **STEM,
            "conv1": ("a", same()),
            "sum1": ("conv1 a", add()),
            "sum2": ("sum1 a", add()),
            "b": ("sum2", spike()),
            "double": ("b b", add()),
            "conv2": ("double", same()),
            "end": ("conv2", spike()),
            **HEAD,
        },
    ),
    "flattened joins": (
        (2, 3, 4),
        {
            **STEM,
            "conv1": ("a", conv(2, (2, 1))),
            "b": ("conv1", spike()),
            "flat_b": ("b", flatten()),
            "flat_a": ("a", flatten()),
            "fc1": ("flat_a", linear(16)),
            "c": ("fc1", spike()),
            "fc2": ("c", linear(16)),
            "sum": ("flat_b fc2", add()),
            "d": ("sum", spike()),
            "sum2": ("d flat_b", add()),
            "fc3": ("sum2", linear(3)),
        },
    ),
    "signals": (
        (2, 9),
        {
            "stem": ("x", conv1d(4, 3, padding=1)),
            "a": ("stem", spike()),
            "conv1": ("a", conv1d(4, 3, padding=1, stride=2)),
            "b": ("conv1", spike(0.5, 0.25)),
            "conv2": ("b", conv1d(4, 3, padding=2, dilation=2, groups=2)),
            "project": ("a", conv1d(4, 1, stride=2)),
            "sum": ("conv2 project", add()),
            "end": ("sum", spike()),
            **HEAD,
        },
    ),
}


def named(rng: np.random.Generator, name: str) -> LayerGraph:
    """The network of that name."""
    if name in RESIDUAL:
        return dag(rng, *RESIDUAL[name])
    shape, makers = NETWORKS[name]
    return chain(rng, shape, *makers)
