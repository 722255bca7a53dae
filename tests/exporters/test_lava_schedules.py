"""Staged and grouped networks in Lava, image behind image: every spike, membrane and output, and none of them late."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support import networks, staged_oracle
from support.backends import assert_equal
from support.exact_networks import RANDOM, drawn
from support.lava import FIXED, FLOAT, LAVA, Driven

import bridge
from bridge import GraphError, InputError
from bridge.graph import BiasOnce, Conv2d, Input, LayerGraph, Linear, MaxPool, WindowFire
from bridge.nir_graph import to_nir
from bridge.zoo.digits import load_digits
from bridge.zoo.pretrained import pretrained
from exporters.lava import Lava, LavaFixed
from exporters.lava.plan import LavaPlan

pytestmark = LAVA

WAYS = {
    "one lane": LavaFixed(lanes=1),
    "lanes": LavaFixed(lanes=3),
    "stock synapses": LavaFixed(synapses="stock"),
    "graded images": LavaFixed(inputs="graded", lanes=2),
    "graded spikes": LavaFixed(spikes="graded", lanes=2),
    "all graded": LavaFixed(spikes="graded", inputs="graded", synapses="stock"),
}


# ---- floating point, against an oracle that shares nothing with the package ----------------------------------------


@pytest.mark.parametrize("name", networks.ALL)
def test_staged_in_floating_point(name):
    """Three images in a stream, each at the steps that it would have alone; and longer than it takes."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    network, expected = bridge.convert(model, x, schedule="staged"), staged_oracle.of_network(name, 3, None)
    backend = Lava()
    native = backend.export(network.to_nir())
    steps = expected.latency + 2
    record = backend.run(native, x.numpy(), steps, membranes=True)
    fired = {layer: spikes[:steps] for layer, spikes in zip(network.layers, expected.spikes, strict=True)}
    assert_equal(record, fired, expected.readout[:steps])
    np.testing.assert_array_equal(record.outputs()[-1], expected.output)
    for layer, membranes in zip(network.layers, expected.membranes, strict=True):
        window = network.graph[layer]
        assert isinstance(window, WindowFire)
        inside = slice(window.opens, window.opens + window.steps)
        np.testing.assert_array_equal(record.membranes[layer][inside], membranes[inside], err_msg=layer)
        assert not np.delete(record.membranes[layer], np.r_[inside], axis=0).any()
    early = backend.run(native, x[:1].numpy(), 2)
    np.testing.assert_array_equal(early.readout, expected.readout[:2, :1])


@pytest.mark.parametrize("name", ["awkward", "residual", "signal"])
def test_grouped_in_floating_point(name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    network, expected = bridge.convert(model, x, schedule="grouped"), staged_oracle.of_network(name, 3, None)
    record = Lava().run(Lava().export(network.to_nir()), x.numpy(), 2, membranes=True)
    for layer, spikes in zip(network.layers, expected.spikes, strict=True):
        counts = spikes.sum(axis=0)
        for step in range(2):
            np.testing.assert_array_equal(record.spikes(layer)[step].sum(axis=1), counts, err_msg=layer)
        assert record.membranes[layer].shape == record.spikes(layer).shape
    np.testing.assert_array_equal(record.readout, np.stack([expected.output] * 2))


# ---- fixed point -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "schedule", "way"),
    [
        (kind, schedule, way)
        for kind, schedule, way in itertools.product(RANDOM, ("staged", "grouped"), WAYS)
        if schedule == "grouped" or WAYS[way].spikes == "binary"
    ],
)
def test_whole_numbers(kind, schedule, way):
    """Every way equals the reference and the integer ANN, to the last spike and output."""
    network, x = drawn(kind, schedule, 8)
    agreement = network.validate(x[:5], backends=[WAYS[way]])
    (found,) = agreement.backends.values()
    assert agreement.agreed
    assert agreement.equals_ann is not None
    assert agreement.equals_ann.equal
    assert found.total_differing == found.readouts_wrong == found.readout_error == 0
    assert found.images == 5


@cache
def digits(schedule: str):
    """The packaged network in 8 bits, and 48 test images as pixels."""
    x, _, test, _ = load_digits()
    network = bridge.convert(pretrained("digits"), test[:1], schedule=schedule).quantize(8, x[:300])
    return network, network.pixels(test[:48])


@pytest.mark.parametrize(
    ("schedule", "backend", "interval", "delay"),
    [
        ("staged", LavaFixed(lanes=1), 8, 17),
        ("staged", Lava(), 8, 18),  # its pool is a Process
        ("grouped", LavaFixed(lanes=1), 1, 3),
        ("grouped", LavaFixed(lanes=1, spikes="graded"), 1, 3),
    ],
)
def test_digits_stream(schedule, backend, interval, delay):
    """One image behind the other at the pace of a plain network, and every activation is the integer ANN's."""
    network, x = digits(schedule)
    x = x if isinstance(backend, LavaFixed) else x[:8]
    native = backend.export(network.to_nir())
    assert native.interval(network.latency) == interval
    assert native.delay == delay
    record = backend.run(native, x.numpy(), network.latency)
    expected = network.run(x)
    assert_equal(record, {name: expected.spikes(name) for name in expected.layers}, expected.readout)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_resnet20_streams():
    """Eight images behind each other through twenty layers with skips."""
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = bridge.convert(pretrained("resnet20-cifar10"), x, schedule="staged").quantize(8, x)
    agreement = network.validate(network.pixels(x), backends=[LavaFixed(lanes=1)])
    assert agreement.agreed
    assert agreement.equals_ann is not None
    assert agreement.equals_ann.equal
    assert next(iter(agreement.backends.values())).total_differing == 0


# ---- what the delays are for -----------------------------------------------------------------------------------------


def test_what_is_lost_without_the_delays(monkeypatch):
    """Where branches of different depth meet, a layer gets spikes of the next image with those of its own."""
    model, shape = networks.ALL["residual"]()
    x = networks.dyadic_images(6, shape)
    network, expected = bridge.convert(model, x, schedule="staged", steps=4), staged_oracle.of_network("residual", 6, 4)

    def wrong():
        backend = Lava()
        record = backend.run(backend.export(network.to_nir()), x.numpy(), expected.latency)
        pairs = zip(network.layers, expected.spikes, strict=True)
        return [int((record.spikes(name) != spikes[: expected.latency]).sum()) for name, spikes in pairs]

    assert sum(wrong()) == 0
    monkeypatch.setattr(LavaPlan, "waits", lambda self, source, until: 0)
    lost = wrong()
    assert sum(lost) > 100
    assert lost[:2] == [0, 0]  # up to there nothing branches


# ---- the Processes, one by one, against loops ------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [FLOAT, FIXED])
def test_windows_equal_a_loop(tag):
    from exporters.lava.processes import WindowFire as Process

    rng = np.random.default_rng(0)
    steps, interval, offset, shape = 3, 4, 5, (2, 6)
    kind = np.int32 if tag == FIXED else float
    drives = rng.integers(-9, 30, (29, *shape)).astype(kind)
    level, threshold = rng.integers(-20, 5, shape), rng.integers(1, 12, 6)
    neurons = Process(shape=shape, level=level, threshold=threshold, steps=steps, interval=interval, offset=offset)
    driven = Driven(neurons, tag)
    sent = [driven.step(a_in=drive - 1, bias_in=np.ones(shape, kind)) for drive in drives]
    for start in range(offset, 25, interval):
        begin = 0 if start == offset else start - interval + 1
        potential = drives[begin : start + 1].sum(axis=0)
        for step in range(interval):
            potential = potential - threshold
            inside = step < steps
            np.testing.assert_array_equal(sent[start + step]["u_out"], potential * inside)
            np.testing.assert_array_equal(sent[start + step]["s_out"], (potential >= level) & inside)
    assert not any(one["s_out"].any() for one in sent[:offset])


def test_windows_saturate():
    from exporters.lava.processes import WindowFire as Process

    driven = Driven(Process(shape=(1,), level=[0], threshold=[5], steps=1, interval=1), FIXED)
    sent = driven.step(a_in=np.array([2**24], np.int32))
    assert sent["u_out"] == 2**23 - 1 - 5


def test_a_window_longer_than_the_interval_is_refused():
    from exporters.lava.processes import WindowFire as Process

    with pytest.raises(ValueError, match="window of 1 to 4 steps, got 5"):
        Process(shape=(1,), level=0, steps=5, interval=4)


@pytest.mark.parametrize("tag", [FLOAT, FIXED])
def test_groups_and_counts_equal_a_loop(tag):
    from exporters.lava.processes import GroupSum, SpikeCount, Thresholds

    rng = np.random.default_rng(1)
    shape, most = (3, 2, 4), 5
    kind = np.int32 if tag == FIXED else float
    drive, bias = rng.integers(-30, 90, shape).astype(kind), rng.integers(-9, 9, shape)
    level, threshold = rng.integers(-8, 0, shape), rng.integers(1, 20, 4)
    levels = np.stack([level + k * threshold for k in range(1, most + 1)])
    expected = np.array([drive + bias >= one for one in levels])  # [L, W, H, C]
    groups = Driven(Thresholds(shape=shape, level=levels, bias=bias), tag).step(a_in=drive)
    np.testing.assert_array_equal(groups["s_out"], np.concatenate(list(expected), axis=-1))
    np.testing.assert_array_equal(groups["u_out"], drive + bias)
    count = Driven(SpikeCount(shape=shape, level=level, threshold=threshold, most=most, bias=bias), tag).step(
        a_in=drive
    )
    np.testing.assert_array_equal(count["s_out"], expected.sum(axis=0))
    total = Driven(GroupSum(shape=shape, levels=most), tag).step(a_in=groups["s_out"])
    np.testing.assert_array_equal(total["a_out"], expected.sum(axis=0))


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("tag", [FLOAT, FIXED])
def test_maximum_of_counts(tag, lanes):
    from exporters.lava.processes import MaxPool as Process

    pool = MaxPool(name="p", inputs=("x",), kernel=(3, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 1))
    pool = replace(pool, minimum=np.array([False, True]))
    counts = np.random.default_rng(2).integers(0, 9, (lanes, 2, 5, 6))
    maxima = torch.nn.functional.max_pool2d(torch.from_numpy(counts).float(), (3, 2), 2, (1, 0)).numpy()
    minima = -torch.nn.functional.max_pool2d(torch.from_numpy(-counts).float(), (3, 2), 2, (1, 0)).numpy()
    given = counts.transpose(0, 3, 2, 1).astype(np.int32 if tag == FIXED else float)
    process = Process(pool=pool, before=(2, 5, 6), lanes=lanes)
    (sent,) = Driven(process, tag).step(a_in=given if lanes > 1 else given[0]).values()
    sent = sent.reshape(lanes, *sent.shape[-3:]).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(sent[:, 0], maxima[:, 0])
    np.testing.assert_array_equal(sent[:, 1], minima[:, 1])


def test_sources_and_readouts_of_what_comes_once():
    from exporters.lava.processes import CurrentSource, Readout

    currents = np.arange(1, 7, dtype=float).reshape(3, 2)
    source = Driven(CurrentSource(currents=currents, interval=2, offset=1, once=True), FLOAT)
    sent = [source.step()["a_out"].tolist() for _ in range(8)]
    assert sent == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0], [5, 6], [0, 0], [0, 0]]
    readout = Driven(Readout(shape=(2,), bias=[10.0, 20.0], once=True, interval=2, offset=1), FLOAT)
    sent = [readout.step(a_in=np.ones(2))["y_out"].tolist() for _ in range(5)]
    assert sent == [[0, 0], [11, 21], [1, 1], [11, 21], [1, 1]]
    assert readout.model.v.tolist() == [12, 22]


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["plain", "staged"])
def test_graded_spikes_are_of_groups(schedule):
    network, _ = digits(schedule) if schedule == "staged" else (drawn("maps", "staged", 8)[0], None)
    with pytest.raises(GraphError, match="this network has no groups: convert with schedule='grouped'"):
        LavaFixed(spikes="graded").export(network.to_nir())


def test_only_what_comes_once_is_streamed():
    x = Input(name="x", shape=(2,))
    weight, level = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    held = Linear(name="held", inputs=("x",), weight=weight, bias=level)
    fire = WindowFire(name="fire", inputs=("held",), level=level - 1, threshold=level + 2, opens=3, steps=4)
    middle = (held, BiasOnce(name="once", inputs=("held",), bias=level), replace(fire, inputs=("once",)))
    for layers in ((held, fire), middle):
        with pytest.raises(GraphError, match="all but spikes comes in the first step"):
            LavaFixed().export(to_nir(LayerGraph((x, *layers))))


def test_what_the_registers_do_not_hold_is_refused():
    network, x = drawn("maps", "grouped", 8)
    layer = network.graph["layer_0"]
    assert isinstance(layer, Conv2d)
    weight = layer.weight.copy()
    weight[0, 0, 0, 0] = 200
    wide = network.graph.rewrite({layer.name: [replace(layer, weight=weight)]})
    with pytest.raises(GraphError, match=r"its weights go from .* a synapse holds -128 to 127"):
        LavaFixed(spikes="graded").export(to_nir(wide))
    with pytest.raises(InputError, match="takes pixels, whole from 0 to 255"):
        LavaFixed().run(LavaFixed().export(network.to_nir()), x.numpy() + np.float32(0.5), 1)
