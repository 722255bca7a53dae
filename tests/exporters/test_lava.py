"""The Lava backend against a naive loop, spike for spike, on a dyadic grid where every arithmetic is exact."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import (
    Add,
    AvgPool2d,
    BatchNorm,
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
from bridge.nir_graph import to_nir
from bridge.records import SpikeRecord
from exporters.lava import Lava, compat
from exporters.lava.backend import build_network

if TYPE_CHECKING:
    from exporters.lava.network import LavaNetwork

pytestmark = [
    pytest.mark.lava,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Lava().available().usable, reason="Lava is not installed"),
]

ROOT = Path(__file__).parents[2]


# ---- an independent simulator: one image, one step, one window at a time -------------------------------------------


def naive_layer(layer: Layer, x: NDArray[np.float64], *more: NDArray[np.float64]) -> NDArray[np.float64]:
    """One layer without neurons on one image, by loops."""
    if isinstance(layer, Add):
        return x + more[0]
    if isinstance(layer, Conv1d):
        return naive_conv1d(layer, x)
    if isinstance(layer, Flatten):
        return x.reshape(-1)
    if isinstance(layer, Linear):
        return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in layer.weight]) + layer.bias
    if isinstance(layer, Scale):
        return np.stack([factor * channel for factor, channel in zip(layer.scale, x, strict=True)])
    if isinstance(layer, AvgPool2d):
        return np.stack([slide(channel[None], layer, np.ones((1, *layer.kernel)), (1, 1)) for channel in x]) / np.prod(
            layer.kernel
        )
    assert isinstance(layer, Conv2d)
    per_group_in, per_group_out = layer.weight.shape[1], len(layer.weight) // layer.groups
    maps = []
    for out, kernel in enumerate(layer.weight):
        first = out // per_group_out * per_group_in
        maps.append(slide(x[first : first + per_group_in], layer, kernel, layer.dilation) + layer.bias[out])
    return np.stack(maps)


def slide(x: NDArray[Any], layer: Any, kernel: NDArray[Any], dilation: tuple[int, int]) -> NDArray[np.float64]:
    """Sum of `kernel` ``[C, kh, kw]`` times every window of `x` ``[C, H, W]``, with `layer`'s stride and padding."""
    (pad_h, pad_w), (step_h, step_w), (far_h, far_w) = layer.padding, layer.stride, dilation
    padded = np.zeros((len(x), x.shape[1] + 2 * pad_h, x.shape[2] + 2 * pad_w))
    padded[:, pad_h : pad_h + x.shape[1], pad_w : pad_w + x.shape[2]] = x
    span_h, span_w = far_h * (kernel.shape[1] - 1) + 1, far_w * (kernel.shape[2] - 1) + 1
    rows = range(0, padded.shape[1] - span_h + 1, step_h)
    columns = range(0, padded.shape[2] - span_w + 1, step_w)
    return np.array(
        [[(padded[:, i : i + span_h : far_h, j : j + span_w : far_w] * kernel).sum() for j in columns] for i in rows]
    )


def naive_conv1d(layer: Conv1d, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`layer` on one signal ``[C, N]``, one product at a time, counted from the output."""
    per_group_in, per_group_out = layer.weight.shape[1], len(layer.weight) // layer.groups
    far = layer.dilation * (layer.weight.shape[2] - 1)
    signals = []
    for out, kernel in enumerate(layer.weight):
        signal = []
        for start in range(-layer.padding, x.shape[1] + layer.padding - far, layer.stride):
            total = float(layer.bias[out])
            for c, row in enumerate(kernel):
                for k, weight in enumerate(row):
                    position = start + k * layer.dilation
                    if 0 <= position < x.shape[1]:
                        total += weight * x[out // per_group_out * per_group_in + c, position]
            signal.append(total)
        signals.append(signal)
    return np.array(signals)


def naive_run(graph: LayerGraph, x: NDArray[Any], steps: int) -> tuple[dict[str, Any], dict[str, Any], NDArray[Any]]:
    """Spikes and membranes by layer ``[T, B, *shape]`` and readout ``[T, B, ...]``."""
    spikes: dict[str, Any] = {name: np.zeros((steps, len(x), *graph.shapes[name])) for name in graph.spiking}
    membranes = {name: array.copy() for name, array in spikes.items()}
    readout = np.zeros((steps, len(x), *graph.shapes[graph.output.name]))
    for b, image in enumerate(x):
        u = {name: np.zeros(graph.shapes[name]) for name in graph.spiking}
        for t in range(steps):
            values = {graph.input.name: image.astype(np.float64)}
            for layer in graph.layers[1:]:
                inputs = [values[source] for source in layer.inputs]
                if not isinstance(layer, IntegrateFire):
                    values[layer.name] = naive_layer(layer, *inputs)
                    continue
                u[layer.name] = u[layer.name] + inputs[0]
                membranes[layer.name][t, b] = u[layer.name]
                level = np.stack([np.full(u[layer.name].shape[1:], one) for one in layer.level])
                fired = (u[layer.name] >= level).astype(np.float64)
                u[layer.name] = u[layer.name] - fired
                spikes[layer.name][t, b] = values[layer.name] = fired
            readout[t, b] = values[graph.output.name]
    return spikes, membranes, readout


# ---- networks ------------------------------------------------------------------------------------------------------

Make = Callable[[np.random.Generator], LayerGraph]


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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def images(rng: np.random.Generator, graph: LayerGraph, count: int) -> NDArray[np.float32]:
    return (rng.integers(-4, 17, (count, *graph.input.shape)) / 16).astype(np.float32)


def expect_equal(record: SpikeRecord, graph: LayerGraph, x: NDArray[np.float32], steps: int) -> None:
    """Every spike, membrane (where recorded) and readout value of `record` is the naive simulator's."""
    spikes, membranes, readout = naive_run(graph, x, steps)
    assert record.layers == graph.spiking
    for name in graph.spiking:
        np.testing.assert_array_equal(record.spikes(name), spikes[name] == 1, err_msg=name)
    for name, membrane in record.membranes.items():
        np.testing.assert_array_equal(membrane, membranes[name], err_msg=name)
    np.testing.assert_array_equal(record.readout, readout.astype(np.float32))


# ---- agreement -----------------------------------------------------------------------------------------------------


def named(rng: np.random.Generator, name: str) -> LayerGraph:
    """The network of that name."""
    if name in RESIDUAL:
        return dag(rng, *RESIDUAL[name])
    shape, makers = NETWORKS[name]
    return chain(rng, shape, *makers)


@pytest.mark.parametrize("name", [*NETWORKS, *RESIDUAL])
def test_equals_the_naive_loop(name: str, rng: np.random.Generator) -> None:
    graph = named(rng, name)
    x = images(rng, graph, 7)
    record = Lava().run(build_network(graph), x, 5, membranes=True)
    assert record.backend == "lava"
    assert set(record.membranes) == set(graph.spiking)
    for layer in graph.spiking:
        assert 0 < record.spikes(layer).mean() < 1, f"{layer} is silent or saturated, which proves nothing"
    expect_equal(record, graph, x, 5)


@pytest.mark.parametrize("name", ["mlp", "conv", "two blocks", "input skip through a convolution", "signals"])
def test_exports_from_nir(name: str, rng: np.random.Generator) -> None:
    graph = named(rng, name)
    x = images(rng, graph, 3)
    backend = Lava()
    expect_equal(backend.run(backend.export(to_nir(graph)), x, 4), graph, x, 4)


def test_one_native_network_runs_again_with_other_sizes(rng: np.random.Generator) -> None:
    graph = named(rng, "mlp")
    network = build_network(graph)
    for count, steps in ((1, 1), (3, 4), (3, 4), (1, 9)):
        x = images(rng, graph, count)
        record = Lava().run(network, x, steps)
        assert not record.membranes
        expect_equal(record, graph, x, steps)


@pytest.mark.parametrize("name", ["identity skip", "three convolutions against none", "branches from the input"])
def test_without_delays_the_spikes_are_wrong(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(model: Any) -> None:
        model.a_out.send(model.gain * model.a_in.recv())

    monkeypatch.setattr("exporters.lava.processes.streams.PyDelayModelFloat.run_spk", at_once)
    graph = named(rng, name)
    x = images(rng, graph, 7)
    record = Lava().run(build_network(graph), x, 5)
    spikes, _, _ = naive_run(graph, x, 5)
    wrong = {layer: int((record.spikes(layer) != (spikes[layer] == 1)).sum()) for layer in graph.spiking}
    assert wrong["a"] == 0, "before the first join nothing can be late"
    assert wrong["end"] > 0


def test_the_readouts_own_sum_is_that_of_the_last_image(rng: np.random.Generator) -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource

    graph = named(rng, "input skip")
    native, x = build_network(graph), images(rng, graph, 3)
    process = native.process(steps=4)
    for name, currents in native.feed(x).items():
        source = CurrentSource(currents=currents, interval=4, offset=native.offsets[name])
        source.a_out.connect(process.inputs[name])
    try:
        process.run(condition=RunSteps(3 * 4 + native.delay), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        total = process.v.get()
    finally:
        process.stop()
    _, _, readout = naive_run(graph, x, 4)
    np.testing.assert_array_equal(native.readout_layout.from_lava(total), readout[:, -1].sum(axis=0))


def compiled(network: LavaNetwork, steps: int) -> dict[str, Any]:
    """The parts of the network's Process, by name, as Lava makes them when it compiles it."""
    from lava.magma.core.run_configs import Loihi2SimCfg

    process = network.process(steps)
    process.compile(Loihi2SimCfg(select_tag="floating_pt"))
    return {part.name: part for part in process.procs.members}


def test_only_the_shorter_branch_of_a_join_is_delayed(rng: np.random.Generator) -> None:
    from exporters.lava.processes import Delay

    def delays(network: LavaNetwork) -> list[tuple[int, float]]:
        parts = compiled(network, 3).values()
        return [(part.proc_params["steps"], part.proc_params["gain"]) for part in parts if isinstance(part, Delay)]

    native = build_network(named(rng, "two blocks"))
    assert native.offsets == {"a": 0, "b": 1, "c": 2, "d": 3, "end": 4}
    assert delays(native) == [(2, 1), (2, 1)]
    assert native.fed == {"a": "stem"}
    # A layer heard late by two is held back once, and one that is heard twice is doubled.
    graph = dag(
        rng,
        (2, 3, 3),
        {
            "a": ("x", spike()),
            "conv1": ("a", same(2)),
            "sum1": ("conv1 a", add()),
            "b": ("sum1", spike()),
            "sum2": ("a sum1", add()),
            "c": ("sum2", spike()),
            "sum3": ("a b", add()),
            "conv2": ("sum3", same(2)),
            "end": ("conv2 c", add()),
        },
    )
    assert sorted(delays(build_network(graph))) == [(1, 1), (1, 1), (1, 2)]


def test_processes_are_lavas_own_and_layouts_restore_the_order(rng: np.random.Generator) -> None:
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense

    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    graph = named(rng, "conv")
    network = build_network(graph)
    parts = compiled(network, 3)
    kinds = [LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, Dense]
    names = [layer.name for layer in graph if layer.name in network.depths]
    assert [type(parts[name]) for name in names] == kinds
    assert list(network.offsets.values()) == [0, 1, 2]
    assert network.delay == 4
    for name, layout in network.layouts.items():
        values = rng.random((2, *graph.shapes[name]))
        assert layout.to_lava(values).shape[1:] == parts[name].s_out.shape
        np.testing.assert_array_equal(layout.from_lava(layout.to_lava(values)), values)


def test_the_neuron_works_in_a_lava_program_of_ones_own() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource, Readout, Sink, shared_array
    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    source = CurrentSource(currents=np.array([[0.25, 0.75], [1.5, -0.5]]), interval=2)
    neuron, readout = LavaIntegrateFire(shape=(2,), interval=2), Readout(shape=(2,), bias=0.5, interval=2)
    spikes = shared_array((4, 2), bool)
    sink = Sink(buffer=spikes)
    source.a_out.connect(neuron.a_in)
    neuron.s_out.connect([sink.a_in, readout.a_in])
    try:
        source.run(condition=RunSteps(4), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        potential, total = neuron.u.get(), readout.v.get()
    finally:
        source.stop()
    np.testing.assert_array_equal(spikes, [[0, 1], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(potential, [1.0, -1.0])
    np.testing.assert_array_equal(total, [3.0, 1.0])


def test_the_delay_works_in_a_lava_program_of_ones_own() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource, Delay, Sink, shared_array

    with pytest.raises(ValueError, match=r"Delay 'late': expected a number of steps from 0 on, got -1"):
        Delay(shape=(2,), steps=-1, name="late")
    source = CurrentSource(currents=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), interval=1, offset=1)
    lines = [Delay(shape=(2,), steps=0, gain=3), Delay(shape=(2,), steps=1), Delay(shape=(2,), steps=3, gain=-0.5)]
    kept = [shared_array((6, 2), float) for _ in lines]
    source.a_out.connect([line.a_in for line in lines])
    for line, buffer in zip(lines, kept, strict=True):
        line.a_out.connect(Sink(buffer=buffer).a_in)
    try:
        source.run(condition=RunSteps(6), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
    finally:
        source.stop()
    np.testing.assert_array_equal(kept[0], [[0, 0], [3, 6], [9, 12], [15, 18], [0, 0], [0, 0]])
    np.testing.assert_array_equal(kept[1], [[0, 0], [0, 0], [1, 2], [3, 4], [5, 6], [0, 0]])
    np.testing.assert_array_equal(kept[2], [[0, 0], [0, 0], [0, 0], [0, 0], [-0.5, -1], [-1.5, -2]])


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_run_exactly(rng: np.random.Generator) -> None:
    ones = np.ones(2, dtype=np.float32)
    x = Input(name="x", shape=(2,))
    norm = BatchNorm(name="norm", inputs=("x",), scale=ones, shift=ones)
    with pytest.raises(GraphError, match=r"'norm' \(BatchNorm.*rewrite"):
        build_network(LayerGraph((x, norm)))


@pytest.mark.parametrize(
    ("x", "steps", "message"),
    [
        (np.zeros((2, 5)), 1, r"expected images \[B, 6\], got \(2, 5\)"),
        (np.zeros((0, 6)), 1, "expected images"),
        (np.full((1, 6), np.nan), 1, "NaN"),
        (np.zeros((1, 6)), 0, "at least one time step"),
    ],
)
def test_refuses_wrong_inputs(x: Any, steps: int, message: str, rng: np.random.Generator) -> None:
    network = build_network(named(rng, "mlp"))
    with pytest.raises(InputError, match=message):
        Lava().run(network, x.astype(np.float32), steps)


# ---- failures and what is left behind ------------------------------------------------------------------------------


def traces(segments: list[str]) -> dict[str, Any]:
    """What a run could leave behind. `segments` are the names of Lava's shared memory."""
    from lava.magma.core.process.process import ProcessServer
    from lava.magma.core.process.variable import VarServer

    return {
        "children": sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "multiprocessing": multiprocessing.active_children(),
        "threads": threading.active_count(),
        "shared memory": [name for name in segments if Path("/dev/shm", name).exists()],
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "log handlers": len(logging.getLogger().handlers),
        "processes": len(ProcessServer().processes),
        "vars": len(VarServer().vars),
        "start method": multiprocessing.get_start_method(allow_none=True),
    }


@pytest.fixture
def small(rng: np.random.Generator) -> tuple[LavaNetwork, NDArray[np.float32]]:
    """A network that has run before, so that what Python itself keeps (its resource tracker) is there, and images."""
    graph = chain(rng, (3,), linear(3), spike(), linear(2))
    network, x = build_network(graph), images(rng, graph, 2)
    Lava().run(network, x, 2)
    return network, x


@pytest.fixture
def leaves_nothing(small: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import gc

    from lava.magma.runtime.message_infrastructure.shared_memory_manager import SharedMemoryManager

    create = SharedMemoryManager.create_shared_memory
    segments: list[str] = []

    def create_and_note(manager: Any, size: int) -> Any:
        segments.append((memory := create(manager, size)).name)
        return memory

    monkeypatch.setattr(SharedMemoryManager, "create_shared_memory", create_and_note)
    gc.collect()
    before = traces(segments)
    yield
    assert segments, "Lava's shared memory was not watched"
    gc.collect()
    for _ in range(100):  # threads and memory go a moment after the processes
        after = traces(segments)
        if after == before:
            break
        threading.Event().wait(0.02)
    assert after == before


def fail(model: Any, *_: Any) -> None:
    raise ArithmeticError(f"a fault in {type(model).__name__}")


def die(*_: Any) -> None:
    os._exit(3)


def hang(*_: Any) -> None:
    threading.Event().wait()


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two arguments")


def fail_unpicklably(*_: Any) -> None:
    raise UnpicklableError(1, 2)


@pytest.mark.parametrize(
    ("model", "method", "fault", "message"),
    [
        ("neurons.PyIntegrateFireModelFloat", "run_spk", fail, "a fault in PyIntegrateFireModelFloat"),
        ("neurons.PyReadoutModelFloat", "run_spk", fail, "a fault in PyReadoutModelFloat"),
        ("streams.PyCurrentSourceModel", "__init__", fail, "a fault in PyCurrentSourceModel"),
        ("streams.PySinkModel", "run_spk", die, "exit code 3"),
        ("streams.PySinkModel", "__init__", die, "exit code 3"),
        # Whether Lava gets it through depends on which of its two messages is read: either says what failed.
        ("streams.PySinkModel", "run_spk", fail_unpicklably, "an error that cannot be shown|UnpicklableError"),
        ("streams.PySinkModel", "run_spk", hang, "did not finish within 3 s"),
        ("streams.PySinkModel", "__init__", hang, "did not finish within 3 s"),
    ],
)
def test_a_failing_child_ends_the_run(
    model: str,
    method: str,
    fault: Any,
    message: str,
    small: tuple[LavaNetwork, NDArray[np.float32]],
    leaves_nothing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"exporters.lava.processes.{model}.{method}", fault)
    with pytest.raises(BackendError, match=message):
        Lava(time_limit=3 if fault is hang else 60).run(*small, steps=4)


def test_success_leaves_nothing_either(
    small: tuple[LavaNetwork, NDArray[np.float32]], leaves_nothing: None, capfd: pytest.CaptureFixture[str]
) -> None:
    Lava().run(*small, steps=4)
    assert capfd.readouterr() == ("", "")


# ---- compat --------------------------------------------------------------------------------------------------------


def run_script(script: str) -> None:
    """Run `script` in a fresh interpreter with every warning an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_the_backend_does_not_import_lava() -> None:
    run_script("import sys, exporters.lava; assert not [name for name in sys.modules if name.startswith('lava')]")


@pytest.mark.parametrize("chosen", [None, "fork", "spawn"])
def test_compat_imports_lava_and_changes_nothing_else(chosen: str | None) -> None:
    run_script(f"""
import dataclasses, multiprocessing, numpy as np
decorator = dataclasses.dataclass
if {chosen!r}:
    multiprocessing.set_start_method({chosen!r})
from exporters.lava import Lava, compat
from exporters.lava.backend import build_network
from bridge.graph import Input, IntegrateFire, LayerGraph
compat.apply(), compat.apply()
assert dataclasses.dataclass is decorator
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
graph = LayerGraph((Input(name="x", shape=(2,)), IntegrateFire(name="a", inputs=("x",), level=np.full(2, 0.5))))
record = Lava().run(build_network(graph), np.array([[0.5, 0.25]], dtype=np.float32), 2)
assert record.spikes("a")[:, 0].tolist() == [[True, False], [False, True]]
assert multiprocessing.get_start_method(allow_none=True) == ({chosen!r} or "fork")
""")


def test_reshaped_ports_need_no_newshape() -> None:
    from lava.magma.core.process.ports.ports import ReshapePort

    compat.apply()
    port = ReshapePort(new_shape=(2, 3), old_shape=(6,))
    data = np.arange(6)
    assert port.get_transform_func_fwd()(data).shape == (2, 3)
    assert port.get_transform_func_bwd()(data.reshape(2, 3)).shape == (6,)


def test_runs_in_several_threads_take_turns(small: Any) -> None:
    native, x = small
    expected = Lava().run(native, x, 3)
    records: list[SpikeRecord] = []
    threads = [threading.Thread(target=lambda: records.append(Lava().run(native, x, 3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 3
    for record in records:
        np.testing.assert_array_equal(record.readout, expected.readout)
    assert sys.stdout is not None
