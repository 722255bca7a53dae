"""Whole-number networks for Lava's two arithmetics, and what each of their values is in int64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
)
from bridge.records import SpikeRecord
from exporters.lava import Lava, LavaFixed
from exporters.lava.backend import build_network
from support.whole_numbers import correlate

Ints = NDArray[np.int64]


class Whole:
    """Makes layers of random whole numbers, for a chain: each reads the one before unless told otherwise."""

    def __init__(self, shape: Shape) -> None:
        self.rng = np.random.default_rng(7)
        self.layers: list[Layer] = [Input(name="x", shape=shape)]

    def add(self, kind: type[Layer], name: str, *sources: str, **values: Any) -> Whole:
        self.layers.append(kind(name=name, inputs=sources or (self.layers[-1].name,), **values))
        return self

    def affine(
        self, kind: type[Layer], name: str, *sources: str, shape: Shape, limit: int = 60, bias: int = 90, **sizes: Any
    ) -> Whole:
        values = {
            "weight": self.draw(-limit, *shape, high=limit * 6 // 5 + 1),
            "bias": self.draw(-bias, shape[0], high=bias),
        }
        return self.add(kind, name, *sources, **values, **sizes)

    def spike(self, name: str, *sources: str, thresholds: list[int]) -> Whole:
        values = np.array(thresholds, np.float32)
        return self.add(IntegrateFire, name, *sources, level=values / 2, threshold=values)

    def draw(self, low: int, *shape: int, high: int) -> NDArray[np.float32]:
        return self.rng.integers(low, high, shape).astype(np.float32)

    @property
    def graph(self) -> LayerGraph:
        return LayerGraph(tuple(self.layers))


def mlp() -> LayerGraph:
    """Vectors; a skip with a factor beyond 8 bits; biases that take the larger exponent."""
    net = Whole((6,)).affine(Linear, "fc1", shape=(10, 6), limit=20).spike("a", thresholds=[3328] * 10)
    net.affine(Linear, "fc2", shape=(10, 10), bias=3000)
    fc2 = net.layers[-1]
    assert isinstance(fc2, Linear)
    net.layers[-1] = replace(fc2, bias=2 * fc2.bias)
    net.add(Scale, "skip", "a", scale=np.arange(-10, 10, 2) * 96.0).add(Add, "sum", "fc2", "skip")
    return net.spike("b", thresholds=[4000] * 10).affine(Linear, "fc3", shape=(4, 10)).graph


def cnn() -> LayerGraph:
    """Stride, dilation, groups, uneven kernels; pools before a convolution and before a Linear."""
    net = Whole((2, 9, 7))
    net.affine(Conv2d, "conv1", shape=(4, 2, 3, 2), limit=10, padding=(1, 1)).spike("a", thresholds=[3840] * 4)
    net.affine(Conv2d, "conv2", shape=(6, 2, 3, 2), groups=2, padding=(2, 1), dilation=(2, 1), stride=(1, 2))
    net.spike("b", thresholds=[300] * 6)
    net.add(SumPool2d, "pool1", kernel=(2, 2), stride=(2, 2), padding=(0, 1))
    net.affine(Conv2d, "conv3", shape=(4, 6, 2, 2), padding=(1, 0)).spike("c", thresholds=[400] * 4)
    net.add(SumPool2d, "pool2", kernel=(2, 1), stride=(2, 1)).add(Flatten, "flat")
    return net.affine(Linear, "fc", shape=(3, 16)).graph


def residual() -> LayerGraph:
    """Identity, scaled and projected skips; the images again, far behind; spikes that count twice."""
    net = Whole((2, 6, 6))
    net.affine(Conv2d, "stem", shape=(4, 2, 3, 3), limit=8, padding=(1, 1)).spike("a", thresholds=[3840] * 4)
    net.affine(Conv2d, "conv1", shape=(4, 4, 3, 3), padding=(1, 1)).spike("b", thresholds=[220] * 4)
    net.affine(Conv2d, "conv2", shape=(4, 4, 3, 3), padding=(1, 1))
    net.add(Scale, "skip", "a", scale=np.array([300.0, -7, 127, 40])).add(Add, "sum1", "conv2", "skip")
    net.add(Add, "sum2", "sum1", "a").spike("c", thresholds=[300] * 4)
    net.affine(Conv2d, "conv3", shape=(5, 4, 3, 3), padding=(1, 1), stride=(2, 2))
    net.affine(Conv2d, "project", "a", shape=(5, 4, 1, 1), stride=(2, 2)).add(Add, "sum3", "conv3", "project")
    net.affine(Conv2d, "again", "x", shape=(5, 2, 2, 2), limit=1, stride=(2, 2)).add(Add, "sum4", "sum3", "again")
    net.spike("d", thresholds=[2000] * 5).add(Add, "twice", "d", "d")
    net.affine(Conv2d, "conv4", shape=(3, 5, 2, 2)).spike("e", thresholds=[160] * 3).add(Flatten, "flat")
    return net.affine(Linear, "fc", shape=(3, 12)).graph


def signal() -> LayerGraph:
    """One dimension; neurons of a flattened layer."""
    net = Whole((2, 14))
    net.affine(Conv1d, "conv1", shape=(4, 2, 5), limit=10, stride=2, padding=2).spike("a", thresholds=[3840] * 4)
    net.affine(Conv1d, "conv2", shape=(4, 2, 3), groups=2, padding=2, dilation=2).add(Add, "sum", "conv2", "a")
    net.spike("b", thresholds=[160] * 4).add(Flatten, "flat").affine(Linear, "fc1", shape=(5, 28))
    return net.spike("c", thresholds=[200] * 5).affine(Linear, "fc2", shape=(2, 5)).graph


NETWORKS: dict[str, Callable[[], LayerGraph]] = {"mlp": mlp, "cnn": cnn, "residual": residual, "signal": signal}


def pixels(graph: LayerGraph, count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).integers(0, 256, (count, *graph.input.shape)).astype(np.float32)


def run(
    backend: Lava, graph: LayerGraph, x: NDArray[np.float32], steps: int, *, membranes: bool = False
) -> SpikeRecord:
    network = build_network(graph, backend if isinstance(backend, LavaFixed) else None)
    return backend.run(network, x, steps, membranes=membranes)


# ---- an independent simulator, in int64 ----------------------------------------------------------------------------


def whole(values: NDArray[np.generic]) -> Ints:
    rounded: Ints = np.rint(values).astype(np.int64)
    np.testing.assert_array_equal(rounded, values)
    return rounded


def channels(values: NDArray[np.generic], like: Ints) -> Ints:
    return whole(values).reshape(-1, *[1] * (like.ndim - 2))


def plain_layer(layer: Layer, y: Ints, *more: Ints) -> Ints:
    """The output ``[B, ...]`` of a layer without neurons."""
    if isinstance(layer, Add):
        return y + more[0]
    if isinstance(layer, Flatten):
        return y.reshape(len(y), -1)
    if isinstance(layer, Linear):
        products: Ints = np.einsum("oi,bi->bo", whole(layer.weight), y)
        return products + whole(layer.bias)
    if isinstance(layer, Scale):
        return channels(layer.scale, y) * y
    if isinstance(layer, SumPool2d):
        kernel = np.ones((y.shape[1], 1, *layer.kernel), np.int64)
        return correlate(y, kernel, layer.stride, layer.padding, (1, 1), y.shape[1])
    if isinstance(layer, Conv1d):
        sizes = ((1, layer.stride), (0, layer.padding), (1, layer.dilation))
        sums = correlate(y[:, :, None], whole(layer.weight)[:, :, None], *sizes, layer.groups)[:, :, 0]
    else:
        assert isinstance(layer, Conv2d)
        sums = correlate(y, whole(layer.weight), layer.stride, layer.padding, layer.dilation, layer.groups)
    return sums + channels(layer.bias, sums)


def plain_run(graph: LayerGraph, x: NDArray[Any], steps: int) -> tuple[dict[str, Ints], dict[str, Ints], Ints]:
    """Spikes and membranes by layer, ``[T, B, ...]``, and the readout, ``[T, B, ...]``."""
    potential: dict[str, Any] = dict.fromkeys(graph.spiking, 0)
    spikes: dict[str, list[Ints]] = {name: [] for name in graph.spiking}
    membranes: dict[str, list[Ints]] = {name: [] for name in graph.spiking}
    readout = []
    for _ in range(steps):
        values = {graph.input.name: whole(x)}
        for layer in graph.layers[1:]:
            inputs = [values[source] for source in layer.inputs]
            if isinstance(layer, IntegrateFire):
                u = potential[layer.name] + inputs[0]
                fired = (u >= channels(layer.level, u)).astype(np.int64)
                potential[layer.name] = u - channels(layer.threshold, u) * fired
                membranes[layer.name].append(u)
                spikes[layer.name].append(fired)
                values[layer.name] = fired
            else:
                values[layer.name] = plain_layer(layer, *inputs)
        readout.append(values[graph.output.name])
    fired, held = ({name: np.stack(rows) for name, rows in kept.items()} for kept in (spikes, membranes))
    return fired, held, np.stack(readout)


def expect_equal(record: SpikeRecord, graph: LayerGraph, x: NDArray[np.float32], steps: int) -> None:
    """Every spike, membrane (where recorded) and readout value of `record` is that of int64."""
    spikes, membranes, readout = plain_run(graph, x, steps)
    assert record.layers == graph.spiking
    for name in graph.spiking:
        np.testing.assert_array_equal(record.spikes(name), spikes[name] == 1, err_msg=name)
    for name, membrane in record.membranes.items():
        np.testing.assert_array_equal(membrane, membranes[name], err_msg=name)
    assert np.abs(readout).max() < 2**24
    np.testing.assert_array_equal(record.readout, readout)
