"""Random spiking networks in whole numbers, with one threshold a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.graph import (
    Add,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
)


def images(count: int, shape: Shape, seed: int) -> NDArray[Any]:
    """Random pixels, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


class Weights:
    """Random whole weights, drawn in turn, and neurons with thresholds of about the size of what they hear."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, limit: int = 127) -> NDArray[np.float32]:
        return self.rng.integers(-limit, limit + 1, shape).astype(np.float32)

    def neurons(self, name: str, source: str, channels: int, threshold: int) -> IntegrateFire:
        threshold = 2 * int(self.rng.integers(threshold // 4, threshold))
        values = np.full(channels, threshold, np.float32)
        return IntegrateFire(name=name, inputs=(source,), level=values / 2, threshold=values)


def mlp(seed: int, inputs: int = 6) -> LayerGraph:
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(inputs,)),
            Linear(name="fc1", inputs=("input",), weight=w(12, inputs, limit=20), bias=w(12, limit=2000)),
            w.neurons("a1", "fc1", 12, 3000),
            Linear(name="fc2", inputs=("a1",), weight=w(9, 12), bias=w(9)),
            w.neurons("a2", "fc2", 9, 150),
            Linear(name="readout", inputs=("a2",), weight=w(5, 9), bias=w(5)),
        )
    )


def cnn(seed: int) -> LayerGraph:
    """Stride, dilation, groups, uneven kernels; a pool behind which nothing divides evenly."""
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 9, 7)),
            Conv2d(name="c1", inputs=("input",), weight=w(6, 2, 3, 3, limit=20), bias=w(6, limit=2000), padding=(1, 1)),
            w.neurons("a1", "c1", 6, 10000),
            Conv2d(
                name="c2",
                inputs=("a1",),
                weight=w(8, 3, 3, 2),
                bias=w(8),
                stride=(1, 2),
                padding=(2, 1),
                dilation=(2, 1),
                groups=2,
            ),
            w.neurons("a2", "c2", 8, 200),
            SumPool2d(name="pool", inputs=("a2",), kernel=(2, 2), stride=(2, 1)),
            Flatten(name="flatten", inputs=("pool",)),
            Linear(name="hidden", inputs=("flatten",), weight=w(10, 8 * 4 * 3, limit=60), bias=w(10)),
            w.neurons("a3", "hidden", 10, 60),
            Linear(name="readout", inputs=("a3",), weight=w(4, 10), bias=w(4)),
        )
    )


def residual(seed: int) -> LayerGraph:
    """A scaled skip, a projected one with stride, and the images themselves joining later."""
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 8, 8)),
            Conv2d(name="c1", inputs=("input",), weight=w(4, 2, 3, 3), bias=w(4, limit=2000), padding=(1, 1)),
            w.neurons("a1", "c1", 4, 20000),
            Conv2d(name="c2", inputs=("a1",), weight=w(4, 4, 3, 3), bias=w(4), padding=(1, 1)),
            Scale(name="skip", inputs=("a1",), scale=w(4, limit=300)),
            Add(name="add1", inputs=("c2", "skip")),
            w.neurons("a2", "add1", 4, 300),
            Conv2d(name="c3", inputs=("a2",), weight=w(6, 4, 3, 3), bias=w(6), padding=(1, 1), stride=(2, 2)),
            Conv2d(name="project", inputs=("a1",), weight=w(6, 4, 1, 1), bias=w(6), stride=(2, 2)),
            Add(name="add2", inputs=("c3", "project")),
            Conv2d(name="images", inputs=("input",), weight=w(6, 2, 2, 2, limit=1), bias=w(6), stride=(2, 2)),
            Add(name="add3", inputs=("add2", "images")),
            w.neurons("a3", "add3", 6, 400),
            SumPool2d(name="pool", inputs=("a3",), kernel=(4, 4), stride=(4, 4)),
            Flatten(name="flatten", inputs=("pool",)),
            Linear(name="readout", inputs=("flatten",), weight=w(3, 6), bias=w(3)),
        )
    )


def signal(seed: int) -> LayerGraph:
    """One dimension."""
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 16)),
            Conv1d(name="c1", inputs=("input",), weight=w(4, 2, 5), bias=w(4), stride=2, padding=2),
            w.neurons("a1", "c1", 4, 20000),
            Conv1d(name="c2", inputs=("a1",), weight=w(4, 2, 3), bias=w(4), padding=2, dilation=2, groups=2),
            w.neurons("a2", "c2", 4, 150),
            Flatten(name="flatten", inputs=("a2",)),
            Linear(name="readout", inputs=("flatten",), weight=w(3, 32), bias=w(3)),
        )
    )


NETWORKS = {"mlp": mlp, "cnn": cnn, "residual": residual, "signal": signal}
