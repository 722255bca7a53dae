"""A `Scale` with one factor per position: everywhere it can stand, in both arithmetics, by everything that runs it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import nir
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import networks, oracle, whole_numbers
from support.backends import assert_equal, require
from support.layers import of_kind
from support.whole_networks import Weights, images
from torch import nn

import bridge.loihi
from bridge import ConversionError, GraphError, SpikingNetwork
from bridge.converters.onnx_files.writer import write
from bridge.graph import (
    Add,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    SumPool2d,
)
from bridge.graph.ranges import ranges
from bridge.nir_graph import from_nir, read, to_nir
from bridge.passes.calibration.gradient import refine
from bridge.passes.calibration.layerwise import calibrate
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.passes.fold_thresholds import fold_thresholds
from bridge.passes.to_float32 import to_float32
from bridge.simulate.ann import activations
from bridge.simulate.connections import connections
from bridge.simulate.engine import engine, kernels
from bridge.simulate.engine import fused_loop as fire
from bridge.simulate.engine.engine import Engine
from bridge.simulate.reference import simulate
from exporters.lava_dl.netx_plan import NetXPlan

STEPS, IMAGES = 9, 3
BACKENDS = ("nengo", "norse", "onnxruntime", "rockpool", "sinabs", "slayer", "snntorch", "spikingjelly", "spyx")
COUNTS = np.outer([2, 3, 2], [2, 3, 2])
"""Of the 3×3 windows that a pool over 5×5 has with a padding of 1 and a stride of 2: pixels that are no padding."""


def maps() -> LayerGraph:
    """At the input, on a residual branch, behind a pool, right before neurons and in front of the readout."""
    w = Weights(0)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 5, 5)),
            Scale(name="window", inputs=("input",), scale=w(2, 5, 5, limit=3)),
            Conv2d(name="c1", inputs=("window",), weight=w(4, 2, 3, 3, limit=20), bias=w(4, limit=900), padding=(1, 1)),
            w.neurons("a1", "c1", 4, 12000),
            Conv2d(name="c2", inputs=("a1",), weight=w(4, 4, 3, 3), bias=w(4), padding=(1, 1)),
            Scale(name="skip", inputs=("a1",), scale=w(4, 5, 5, limit=300)),
            Add(name="add", inputs=("c2", "skip")),
            w.neurons("a2", "add", 4, 300),
            SumPool2d(name="pool", inputs=("a2",), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            Scale(name="mean", inputs=("pool",), scale=np.broadcast_to(36 / COUNTS, (4, 3, 3)).astype(np.float32)),
            Conv2d(name="c3", inputs=("mean",), weight=w(5, 4, 2, 2), bias=w(5)),
            Scale(name="gain", inputs=("c3",), scale=w(5, 2, 2, limit=3)),
            w.neurons("a3", "gain", 5, 9000),
            Scale(name="last", inputs=("a3",), scale=w(5, 2, 2, limit=100)),
            Flatten(name="flatten", inputs=("last",)),
            Linear(name="readout", inputs=("flatten",), weight=w(3, 20), bias=w(3)),
        )
    )


def signal() -> LayerGraph:
    """The same in one dimension, where the readout itself is scaled."""
    w = Weights(1)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 9)),
            Conv1d(name="c1", inputs=("input",), weight=w(4, 2, 3), bias=w(4), padding=1),
            Scale(name="window", inputs=("c1",), scale=w(4, 9, limit=5)),
            w.neurons("a1", "window", 4, 60000),
            Scale(name="taper", inputs=("a1",), scale=w(4, 9)),
            Conv1d(name="c2", inputs=("taper",), weight=w(3, 4, 3, limit=9), bias=w(3)),
            w.neurons("a2", "c2", 3, 2000),
            Scale(name="readout", inputs=("a2",), scale=w(3, 7)),
        )
    )


WHOLE = {"maps": maps, "signal": signal}


@cache
def expected(name: str) -> tuple[NDArray[Any], dict[str, Any], Any]:
    """Images for a network, and what an independent interpreter of NIR finds for them: spikes and readouts."""
    graph = WHOLE[name]()
    x = images(IMAGES, graph.input.shape, 2)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), x, STEPS)
    assert all(0.05 < fired.mean() < 0.95 for fired in spikes.values())
    return x, spikes, readout


@pytest.mark.parametrize("name", WHOLE)
def test_the_reference(name):
    x, spikes, readout = expected(name)
    assert WHOLE[name]().integer
    assert_equal(simulate(WHOLE[name](), torch.from_numpy(x).float(), STEPS), spikes, readout)


@pytest.mark.parametrize("way", ["int8", "float32", "by torch"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_engine(name, way, monkeypatch):
    if way == "by torch":
        monkeypatch.setattr(fire, "compiled", lambda: None)
    elif way == "float32":
        monkeypatch.setattr(kernels, "has_int8", lambda: False)
    monkeypatch.setattr(engine, "CACHE", 1)  # a few images at a time
    x, spikes, readout = expected(name)
    made = Engine(WHOLE[name]())
    assert made.events is None
    assert [stage.skip for stage in made.stages if stage.skip] == (["a1"] if name == "maps" else [])
    record = made.run(torch.from_numpy(x).float(), STEPS, record=True).record
    assert record is not None
    assert_equal(record, spikes, readout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WHOLE)
def test_every_backend_that_runs_it(backend, name):
    found = require(backend)
    x, spikes, readout = expected(name)
    assert_equal(found.run(found.export(to_nir(WHOLE[name]())), x, STEPS), spikes, readout)


def without(graph: LayerGraph, *names: str) -> LayerGraph:
    """`graph` with one factor per channel in these layers."""
    layers = (of_kind(graph, name, Scale) for name in names)
    return graph.rewrite({one.name: [replace(one, scale=one.scale[:, 0, 0])] for one in layers})


def test_loihis_backends_refuse_it():
    """By the layer's name, whichever comes first; with one factor per channel in its place the twin runs it."""
    graph, remedy = to_nir(maps()), "count_include_pad=True"
    twin = require("lava-twin")
    with pytest.raises(GraphError, match=rf"'window'.*differ within a channel.*{remedy}"):
        twin.export(graph)
    with pytest.raises(GraphError, match=r"'mean'.*differ within a channel"):
        twin.export(to_nir(without(maps(), "window", "skip", "gain", "last")))
    with pytest.raises(GraphError, match=r"'taper'.*convolutions and matrices.*slayer"):
        NetXPlan(signal())


@pytest.mark.lava
def test_lava_refuses_it():
    with pytest.raises(GraphError, match=r"'window'.*differ within a channel.*another backend"):
        require("lava").export(to_nir(maps()))


def test_tools_that_know_hard_resets_alone_get_no_other_network():
    with pytest.raises(GraphError, match=r"'window'.*differ within a channel.*neuron='exact'.*count_include_pad"):
        to_nir(maps(), neuron="if")
    plain = to_nir(without(maps(), "window", "skip", "mean", "gain", "last"), neuron="if")
    assert not any(isinstance(node, nir.Scale) for node in plain.nodes.values())


@pytest.mark.parametrize("name", WHOLE)
def test_through_a_file(name, tmp_path):
    graph = WHOLE[name]()
    SpikingNetwork(graph).save(tmp_path / "net.nir")
    again = from_nir(read(tmp_path / "net.nir"))
    assert again.integer
    scales = [layer for layer in graph if isinstance(layer, Scale)]
    for layer in scales:
        np.testing.assert_array_equal(of_kind(again, layer.name, Scale).scale, layer.scale)
    x, spikes, readout = expected(name)
    assert_equal(simulate(again, torch.from_numpy(x).float(), STEPS), spikes, readout)


def test_one_factor_per_channel_is_read_as_such():
    """In the full shape or not, what a file holds is the same, and so is what is read from it."""
    graph = without(maps(), "skip")
    skip = of_kind(graph, "skip", Scale)
    full = replace(skip, scale=np.array(np.broadcast_to(skip.scale[:, None, None], (4, 5, 5))))
    written = to_nir(graph.rewrite({"skip": [full]})).nodes["skip"]
    np.testing.assert_array_equal(written.scale, to_nir(graph).nodes["skip"].scale)
    assert of_kind(from_nir(to_nir(graph)), "skip", Scale).scale.shape == (4,)


@pytest.mark.parametrize("shape", [(4, 3, 5), (2, 5, 5), (5, 5), (4, 5, 5, 1), (3,)])
def test_factors_of_another_shape(shape):
    graph = maps()
    skip = replace(of_kind(graph, "skip", Scale), scale=np.ones(shape, np.float32))
    with pytest.raises(GraphError, match=r"'skip'.*expected"):
        graph.rewrite({"skip": [skip]})
    written = to_nir(graph)
    written.nodes["skip"].scale = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with pytest.raises(GraphError, match=r"'skip'.*expected"):
        from_nir(written)


def test_resets_stay_per_channel():
    written = to_nir(maps())
    written.nodes["a1_reset"].scale[0, 0, 0] *= 2
    with pytest.raises(GraphError, match=r"'a1_reset'.*one value a channel"):
        from_nir(written)


def test_bounds_hold_and_are_reached():
    factors = np.array([[[-2.0, 0.0], [3.0, 1.0]], [[1.0, 1.0], [0.0, 2.0]]], np.float32)
    first, spikes = Input(name="x", shape=(2, 2, 2)), np.full(2, 8.0, np.float32)
    layers: tuple[Layer, ...] = (
        first,
        Scale(name="s", inputs=("x",), scale=factors),
        IntegrateFire(name="a", inputs=("s",), level=spikes / 2, threshold=spikes),
        Scale(name="t", inputs=("a",), scale=factors),
    )
    found = ranges(LayerGraph(layers))
    np.testing.assert_array_equal(found["s"].low, [-510, 0])
    np.testing.assert_array_equal(found["s"].high, [765, 510])
    np.testing.assert_array_equal(found["s"].partial, [765, 510])
    np.testing.assert_array_equal(found["t"].low, [-2, 0])
    np.testing.assert_array_equal(found["t"].high, [3, 2])


def test_connections_are_counted_one_by_one():
    graph = maps()
    factors = of_kind(graph, "last", Scale).scale.copy()
    factors[1, 0, 1] = 0
    graph = graph.rewrite({"last": [replace(of_kind(graph, "last", Scale), scale=factors)]})
    weight = of_kind(graph, "readout", Linear).weight.reshape(3, 5, 2, 2)
    found = connections(graph, zeros=False)["readout"]
    np.testing.assert_array_equal(found.fan_out["a3"], ((weight != 0) & (factors != 0)).sum(axis=0))
    cost = bridge.loihi.report(SpikingNetwork(graph)).layers[-1]
    assert (cost.connections, cost.weights) == (3 * 20, 3 * 20 + 20)


# ---- real numbers --------------------------------------------------------------------------------------------------


def chain(pool: type[AvgPool2d] = AvgPool2d) -> tuple[list[Any], LayerGraph]:
    """Stages of one network on a dyadic grid, as modules, factors and thresholds, and the same as a graph of layers.

    Where `pool` is a sum, the factors behind it divide by the windows' size.
    """
    modules = networks.make_dyadic(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3), nn.Linear(12, 3)), 4
    )
    rng = np.random.default_rng(4)

    def factors(*shape: int) -> NDArray[np.float64]:
        return np.exp2(rng.integers(-2, 2, shape).astype(np.float64))

    stages: list[Any] = [
        *(factors(2, 6, 6), modules[0], (4, factors(4))),  # at the input
        *(nn.AvgPool2d(2), factors(4, 3, 3), modules[1], (8, factors(3))),  # between a pool and a convolution
        *(factors(3, 2, 2), (4, factors(3))),  # between two activations
        *(factors(3, 2, 2), modules[2], (4, factors(3))),  # before a norm, which then has no affine layer to fold into
        *(factors(3, 2, 2), nn.Flatten(), modules[3]),  # in front of the readout
    ]
    layers: list[Layer] = [Input(name="x", shape=(2, 6, 6))]
    for number, stage in enumerate(stages):
        names: dict[str, Any] = {"name": f"layer_{number}", "inputs": (layers[-1].name,)}
        match stage:
            case np.ndarray():
                layers.append(Scale(**names, scale=stage / 4 if type(layers[-1]) is SumPool2d else stage))
            case (levels, threshold):
                layers.append(ClipFloorShift(**names, levels=levels, threshold=threshold))
            case nn.Conv2d():
                weight, bias, padding = stage.weight, stage.bias, oracle.pair(stage.padding)
                layers.append(Conv2d(**names, weight=oracle.numpy(weight), bias=oracle.numpy(bias), padding=padding))
            case nn.Linear():
                layers.append(Linear(**names, weight=oracle.numpy(stage.weight), bias=oracle.numpy(stage.bias)))
            case nn.BatchNorm2d():
                scale = oracle.numpy(stage.weight) / np.sqrt(oracle.numpy(stage.running_var))
                shift = oracle.numpy(stage.bias) - scale * oracle.numpy(stage.running_mean)
                layers.append(BatchNorm(**names, scale=scale, shift=shift))
            case nn.AvgPool2d():
                layers.append(pool(**names, kernel=(2, 2), stride=(2, 2)))
            case _:
                layers.append(Flatten(**names))
    return stages, LayerGraph(tuple(layers))


def by_loop(stages: list[Any], x: NDArray[Any], steps: int) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Spikes ``[T, B, ...]`` by activation, and readouts, by the neuron's equation: λ, v(0) = λ/2, nothing folded."""
    membranes: dict[int, Any] = {}
    spikes: dict[int, list[Any]] = {}
    readouts = []
    for _ in range(steps):
        value = x.astype(np.float64)
        for number, stage in enumerate(stages):
            if isinstance(stage, nn.Module):
                value = oracle.transform(stage, value)
            elif isinstance(stage, np.ndarray):
                value = value * stage
            else:
                threshold = oracle.per_channel(stage[1], value)
                v = membranes.get(number, threshold / 2) + value
                value = threshold * (v >= threshold)
                membranes[number] = v - value
                spikes.setdefault(number, []).append(value > 0)
        readouts.append(value)
    return [np.stack(fired) for fired in spikes.values()], np.stack(readouts)


def spiking(pool: type[AvgPool2d] = AvgPool2d) -> LayerGraph:
    return to_float32(fold_thresholds(fold_batch_norm(chain(pool)[1])))


POOLS = pytest.mark.parametrize("pool", [AvgPool2d, SumPool2d])
X = networks.dyadic_images(4, (2, 6, 6))


@POOLS
def test_folding_keeps_every_spike(pool):
    stages, _ = chain(pool)
    spikes, readout = by_loop(stages, X.numpy(), STEPS)
    assert all(0.05 < fired.mean() < 0.95 for fired in spikes)
    graph = spiking(pool)
    result = SpikingNetwork(graph).simulate(X, STEPS, record=True).record
    assert result is not None
    for record in (simulate(graph, X, STEPS), result):
        assert_equal(record, dict(zip(graph.spiking, spikes, strict=True)), readout)


@POOLS
def test_the_ann_and_its_file(pool, tmp_path):
    stages, ann = chain(pool)
    value, found = X.numpy().astype(np.float64), []
    for stage in stages:
        if isinstance(stage, nn.Module):
            value = oracle.transform(stage, value)
        elif isinstance(stage, np.ndarray):
            value = value * stage
        else:
            value = oracle.activation(value, stage[0], oracle.per_channel(stage[1], value))
            found.append(value / oracle.per_channel(stage[1], value))
    rates, _, output = activations(to_float32(ann), X)
    for rate, expected_rate in zip(rates.values(), found, strict=True):
        np.testing.assert_array_equal(rate, expected_rate)
    np.testing.assert_array_equal(output, value)
    write(ann, tmp_path / "ann.onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "ann.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": X.numpy()})[0], value)


@POOLS
@pytest.mark.parametrize("bits", [8, 16])
def test_quantized(bits, pool):
    """An independent interpreter of NIR finds the same spikes, and they are those of before, but for rounding.

    One channel in front of a `Scale` never fires on the calibration images; its factors are rounded as well as others.
    """
    network = SpikingNetwork(spiking(pool), to_float32(chain(pool)[1]))
    calibration = networks.dyadic_images(64, (2, 6, 6))
    assert (network.run(calibration, 8).spikes("layer_11").sum(axis=(0, 1, 3, 4)) == 0).any()
    whole = network.quantize(bits, calibration=calibration)
    assert whole.graph.integer
    assert {layer.name for layer in whole.graph if isinstance(layer, Scale) and layer.per_position} == {
        layer.name for layer in spiking() if isinstance(layer, Scale) and layer.per_position
    }
    pixels = whole.pixels(X)
    record = whole.run(pixels, STEPS)
    assert_equal(record, *whole_numbers.spikes_of(whole.to_nir(), pixels.numpy(), STEPS))
    before = network.run(X, STEPS)
    for name in network.layers:
        assert (record.spikes(name) != before.spikes(name)).mean() < 0.1


def test_factors_too_far_apart_are_refused():
    """No rounding takes a factor of 10^9 and one of 1 into whole numbers that fit; the layer is named."""
    graph = spiking()
    name = next(layer.name for layer in graph if isinstance(layer, Scale) and layer.per_position)
    wide = of_kind(graph, name, Scale).scale.copy()
    wide[0, 0, 0] = 1e9
    with pytest.raises(ConversionError, match="layer"):
        SpikingNetwork(graph.rewrite({name: [replace(of_kind(graph, name, Scale), scale=wide)]})).quantize(
            8, calibration=X
        )


def test_calibration_moves_a_channel_as_one():
    _, ann = chain()
    graph, before = spiking(), "layer_7"  # before neurons
    for kind in (["gain"], ["potential", "gain", "bias"]):
        fitted = calibrate(graph, to_float32(ann), X, 4, kind)
        one_gain(graph, fitted, before)
    gains = one_gain(graph, refine(graph, X, activations(to_float32(ann), X)[2], 4, ["gain"]), before)
    assert (gains != 1).any()


def one_gain(before: LayerGraph, after: LayerGraph, name: str) -> NDArray[Any]:
    ratio = of_kind(after, name, Scale).scale / of_kind(before, name, Scale).scale
    np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones_like(ratio), rtol=1e-6)
    return ratio
