"""The fast engine: the very spikes of the independent oracles, whatever arithmetic, block, batch or thread it chose.

One file, though long: every way of computing is held against the same oracles and networks.
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support import digits, networks, oracle, whole_networks, whole_numbers
from torch import nn

import bridge
from bridge import GraphError, InputError, SpikingNetwork
from bridge.graph import Conv2d, Flatten, Input, IntegrateFire, Layer, LayerGraph, Linear, SumPool2d
from bridge.nir_graph import to_nir
from bridge.simulate.engine import engine, events, kernels
from bridge.simulate.engine import fused_loop as fire
from bridge.simulate.engine.engine import Engine
from bridge.zoo import resnet20

WHOLE = {"mlp": whole_networks.mlp, "cnn": whole_networks.cnn, "residual": whole_networks.residual}
WHOLE["signal"] = whole_networks.signal


WAYS = ("events", "events, together", "int8, compiled", "int8, by torch", "float32, compiled", "float32, by torch")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """How the engine computes: following spikes, or layer by layer in either arithmetic, its loop with numba or not."""
    if fire.compiled() is None:
        pytest.fail("numba is missing: pip install numba")
    if "events" in request.param:
        monkeypatch.setattr(engine, "MOST_EVENTS", 2**62)
        monkeypatch.setattr(engine, "ALONE", 0 if "together" in request.param else 2**62)
        return request.param
    monkeypatch.setattr(engine, "events", lambda *_: None)
    if "by torch" in request.param:
        monkeypatch.setattr(fire, "compiled", lambda: None)
    if "float32" in request.param:
        monkeypatch.setattr(kernels, "has_int8", lambda: False)
    elif not kernels.has_int8():
        pytest.skip("this torch, or this processor, has no int8 operators")
    return request.param


@pytest.fixture
def layer_by_layer(monkeypatch):
    """Not following spikes, however small the network is."""
    monkeypatch.setattr(engine, "events", lambda *_: None)


def anew(network):
    """A copy that no engine has been made for yet."""
    return pickle.loads(pickle.dumps(network))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def assert_equal(result, layers, spikes, readout) -> None:
    """Record, counts and outputs are what the oracle says."""
    assert set(result.record.layers) == set(layers)
    for layer, expected in zip(layers, spikes, strict=True):
        wrong = np.argwhere(result.record.spikes(layer) != expected)
        assert len(wrong) == 0, f"{layer}: {len(wrong)} wrong, first (t, image, neuron) {wrong[0]}"
        assert np.array_equal(result.spikes[layer], expected.sum(axis=tuple(range(2, expected.ndim))))
    np.testing.assert_array_equal(result.record.readout, readout)
    steps = np.arange(1, len(readout) + 1).reshape(-1, *[1] * (readout.ndim - 1))
    np.testing.assert_array_equal(
        result.outputs, (readout.astype(np.float64).cumsum(axis=0) / steps).astype(np.float32)
    )
    assert (result.steps == len(readout)).all()


SIZES = [(1, 1), (19, 1), (19, 7)]  # 19: three blocks, the last one shorter
GRID = [
    pytest.param(
        *(name, steps, images, threads),
        marks=[] if name == "residual" or (steps, images, threads) == (19, 7, 1) else pytest.mark.long,
    )
    for name in networks.ALL
    for steps, images in SIZES
    for threads in (1, 2)
]


@pytest.mark.parametrize(("name", "steps", "images", "threads"), GRID, indirect=["threads"])
def test_floats_on_a_grid(name, steps, images, way, threads):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(images, shape)
    network = bridge.convert(model, x)
    result = network.simulate(x, steps, record=True)
    assert_equal(result, network.layers, *oracle.spikes_of_network(name, images, steps))
    assert (Engine(network.graph).events is not None) == ("events" in way)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("steps", "images"), [(1, 1), (19, 7)])
def test_whole_numbers(name, steps, images, way):
    graph = WHOLE[name](3)
    x = whole_networks.images(images, graph.input.shape, 4)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), x, steps)
    result = SpikingNetwork(graph).simulate(x, steps, record=True)
    assert_equal(result, spikes.keys(), spikes.values(), readout)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(WHOLE)), st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5))
def test_random_networks(name, seed, steps, images):
    graph = WHOLE[name](seed)
    x = whole_networks.images(images, graph.input.shape, seed)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), x, steps)
    result = SpikingNetwork(graph).simulate(x, steps, record=True)
    assert_equal(result, spikes.keys(), spikes.values(), readout)
    made = Engine(graph)
    made.events = None
    assert_equal(made.run(torch.from_numpy(x).float(), steps, record=True), spikes.keys(), spikes.values(), readout)


@st.composite
def convolutions(draw):
    """Two layers of neurons behind convolutions of any kind, a pool and a linear layer, in small whole numbers."""
    number = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    channels = [draw(st.integers(1, 3)), groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))]
    size = draw(st.integers(5, 9)), draw(st.integers(5, 9))
    layers: list[Layer] = [Input(name="x", shape=(channels[0], *size))]
    for k, of_groups in ((1, 1), (2, groups)):
        kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        weight = number.integers(-9, 10, (channels[k], channels[k - 1] // of_groups, *kernel)).astype(np.float32)
        pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
        layers += [
            Conv2d(
                name=f"conv{k}",
                inputs=(layers[-1].name,),
                weight=weight,
                bias=number.integers(-9, 10, channels[k]).astype(np.float32),
                stride=draw(pair),
                padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
                dilation=draw(pair) if kernel[0] < 3 > kernel[1] else (1, 1),
                groups=of_groups,
            ),
            IntegrateFire(
                name=f"neurons{k}",
                inputs=(f"conv{k}",),
                level=number.integers(1, 40, channels[k]).astype(np.float32),
                threshold=np.full(channels[k], 80 if k > 1 else 4000, np.float32),
            ),
        ]
    try:
        height, width = LayerGraph(tuple(layers)).shapes["neurons2"][1:]
    except GraphError:  # the second kernel is larger than what the first leaves
        reject()
    window = draw(st.integers(1, height)), draw(st.integers(1, width))
    layers += [
        SumPool2d(name="pool", inputs=("neurons2",), kernel=window, stride=draw(pair)),
        Flatten(name="flat", inputs=("pool",)),
    ]
    inputs = LayerGraph(tuple(layers)).shapes["flat"][0]
    weight = number.integers(-9, 10, (3, inputs)).astype(np.float32)
    graph = LayerGraph((*layers, Linear(name="out", inputs=("flat",), weight=weight, bias=np.arange(3.0))))
    return graph, number.integers(0, 256, (2, *graph.input.shape)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(1, 10))
def test_events_of_any_convolution(case, steps):
    graph, x = case
    assert events.events(graph, dict.fromkeys(graph.spiking, 2.0**24)) is not None
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), x, steps)
    result = SpikingNetwork(graph).simulate(x, steps, record=True)
    assert_equal(result, spikes.keys(), spikes.values(), readout)


def test_where_spikes_are_followed(monkeypatch):
    """In small networks that are made of convolutions; of whole numbers, only where a run is short."""
    network = digits.quantized(8)
    found = Engine(network.graph)
    ran: list[int] = []
    by_events = found.events
    assert by_events is not None
    run = by_events.run

    def noted(x, *arguments, **options):
        ran.append(len(x))
        return run(x, *arguments, **options)

    monkeypatch.setattr(by_events, "run", noted)
    x = network.pixels(digits.test_images()[0]).float()
    found.run(x[:1], 8)
    assert ran == [1]
    found.run(x, 8)
    assert (ran == [1]) == kernels.has_int8()
    ran.clear()
    found.run(x[:1], 8, memory=by_events.bytes - 1)
    assert ran == []

    def graph(*layers, outputs=2):
        fire = IntegrateFire(name="fire", inputs=("fc",), level=np.full(outputs, 0.5))
        return LayerGraph(
            (*layers, fire, Linear(name="out", inputs=("fire",), weight=np.eye(outputs), bias=np.zeros(outputs)))
        )

    small = Linear(name="fc", inputs=("x",), weight=np.ones((2, 3)), bias=np.zeros(2))
    assert events.events(graph(Input(name="x", shape=(3,)), small), {"fire": 1.0}) is not None
    large = Linear(name="fc", inputs=("x",), weight=np.ones((2000, 1000)), bias=np.zeros(2000))
    assert events.events(graph(Input(name="x", shape=(1000,)), large, outputs=2000), {"fire": 1.0}) is None
    flat = Flatten(name="fc", inputs=("x",))  # whose neurons are not those of a stored map
    assert events.events(graph(Input(name="x", shape=(1, 1, 2)), flat), {"fire": 1.0}) is None


@cache
def digits_expected():
    """The oracle on all digits, 8 steps."""
    network = digits.quantized(8)
    return whole_numbers.spikes_of(network.to_nir(), network.pixels(digits.test_images()[0]).numpy(), 8)


def test_digits_in_whole_numbers(way):
    network = anew(digits.quantized(8))
    x, labels = digits.test_images()
    spikes, readout = digits_expected()
    result = network.simulate(network.pixels(x), 8, record=True)
    assert_equal(result, spikes.keys(), spikes.values(), readout)
    assert result.accuracy(labels)[-1] == (readout.sum(axis=0).argmax(axis=1) == labels).mean() > 0.95


def test_residual_networks_take_the_fast_ways():
    """Convolutions in int8, and joins inside the neurons' loop: what speed rests on, and equality would not show."""
    if not kernels.has_int8():
        pytest.skip("this torch, or this processor, has no int8 operators")
    pixels = torch.randint(0, 256, (8, 3, 32, 32))
    network = bridge.convert(resnet20(levels=4).eval(), pixels / 255)
    whole = network.quantize(8, calibration=pixels / 255, normalisation=([0.0] * 3, [1.0] * 3))
    made = Engine(whole.graph)
    spiking = [layer for layer in whole.graph if isinstance(layer, Conv2d) and layer.name not in whole.graph.constant]
    assert len(spiking) > 15
    assert all("_int8" in made.kernels[layer.name].__qualname__ for layer in spiking)
    assert sum(stage.skip is not None for stage in made.stages) == 7  # all joins but the two with a shortcut's weights
    result = whole.simulate(pixels[:3], 5, record=True)
    spikes, readout = whole_numbers.spikes_of(whole.to_nir(), pixels[:3].numpy(), 5)
    assert_equal(result, spikes.keys(), spikes.values(), readout)


def test_weights_or_inputs_beyond_8_bits_run_in_float(layer_by_layer):
    """Weights of more bits; and sums over windows so large that two products may not fit 16 bits."""
    network = anew(digits.network()).quantize(12, calibration=digits.test_images()[0])
    x = network.pixels(digits.test_images()[0][:5])
    spikes, readout = whole_numbers.spikes_of(network.to_nir(), x.numpy(), 4)
    assert_equal(network.simulate(x, 4, record=True), spikes.keys(), spikes.values(), readout)
    bound = bridge.graph.ranges.Range(*(np.array([value]) for value in (0.0, 200.0, 200.0)))
    layer = Linear(name="fc", inputs=("pool",), weight=np.full((1, 1), 127.0), bias=np.zeros(1))
    assert kernels.int8(layer, bound, bound) is None


def test_a_layer_that_nothing_reaches(way):
    """Whole images in which a layer is silent, beside others in which it is not."""
    fc, deep = np.zeros((4, 3), np.float32), np.full((2, 4), 5.0, np.float32)
    fc[:, 0] = 1
    graph = LayerGraph(
        (
            Input(name="x", shape=(3,)),
            Linear(name="fc", inputs=("x",), weight=fc, bias=np.zeros(4)),
            IntegrateFire(name="a", inputs=("fc",), level=np.full(4, 100.0), threshold=np.full(4, 200.0)),
            Linear(name="fc2", inputs=("a",), weight=deep, bias=np.array([3.0, -3.0])),
            IntegrateFire(name="b", inputs=("fc2",), level=np.full(2, 4.0), threshold=np.full(2, 8.0)),
            Linear(name="out", inputs=("b",), weight=np.eye(2), bias=np.array([1.0, 2.0])),
        )
    )
    x = np.zeros((9, 3), np.uint8)
    x[4] = 255
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), x, 11)
    assert not spikes["a"][:, :4].any()
    assert spikes["a"][:, 4].any()
    assert_equal(SpikingNetwork(graph).simulate(x, 11, record=True), spikes.keys(), spikes.values(), readout)


def test_any_budget_of_memory_any_cache_any_threads(monkeypatch, threads):
    network = anew(digits.quantized(8))
    x = network.pixels(digits.test_images()[0][:50])
    expected = network.run(x, 10)
    for memory, size in ((1, 2**20), (2**18, 1), (2**28, 2**28)):
        monkeypatch.setattr(engine, "CACHE", size)
        result = network.simulate(x, 10, record=True, memory=memory)
        for layer in network.layers:
            assert np.array_equal(result.record.packed[layer], expected.packed[layer])
        assert np.array_equal(result.outputs, expected.outputs())
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == threads


def test_single_images_from_several_threads_at_once(monkeypatch):
    """Threads that share an image wait for each other: never for those of another call, which wait for these."""
    monkeypatch.setattr(engine, "ALONE", 0)
    network = anew(digits.network())
    x, _ = digits.test_images()
    expected = network.run(x[:40], 3).outputs()
    with ThreadPoolExecutor(4) as several:
        found = list(several.map(lambda at: network.simulate(x[at : at + 1], 3).outputs, range(40)))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-5)


def test_concurrent_calls_and_a_network_that_is_copied():
    network = digits.quantized(8)
    x = network.pixels(digits.test_images()[0])
    with ThreadPoolExecutor(4) as several:
        results = list(several.map(lambda at: network.simulate(x[at : at + 90], 5).outputs, range(0, 450, 90)))
    assert np.array_equal(np.concatenate(results, axis=1), network.simulate(x, 5).outputs)
    again = pickle.loads(pickle.dumps(network))
    assert np.array_equal(again.simulate(x, 5).outputs, network.simulate(x, 5).outputs)


@pytest.mark.parametrize(
    ("patience", "threads"),
    [(1, 2), (4, 1), *(pytest.param(*more, marks=pytest.mark.long) for more in ((1, 1), (2, 1), (2, 2), (4, 2)))],
    indirect=["threads"],
)
def test_until_stable(patience, threads, way):
    """Image by image, from the outputs of the full run."""
    network = anew(digits.network())
    x, _ = digits.test_images()
    steps = 12
    full, result = network.run(x, steps).outputs(), network.simulate(x, steps, until="stable", patience=patience)
    assert result.outputs.shape == full.shape
    for image in range(len(x)):
        leaders = full[:, image].argmax(axis=1)
        ends = [t for t in range(patience, steps + 1) if len(set(leaders[t - patience : t])) == 1]
        taken = ends[0] if ends else steps
        assert result.steps[image] == taken
        np.testing.assert_allclose(result.outputs[:taken, image], full[:taken, image], atol=1e-5)
        assert (result.outputs[taken:, image] == result.outputs[taken - 1, image]).all()
        for counts in result.spikes.values():
            assert not counts[taken:, image].any()
    assert result.steps.min() == patience


def test_a_potential_beyond_the_exact_range(way):
    """In the first step it is the bound itself, which is exact; in the second it is beyond."""
    weight = np.full((1, 1), -(2.0**16), np.float32)
    graph = LayerGraph(
        (
            Input(name="x", shape=(1,)),
            Linear(name="fc", inputs=("x",), weight=weight, bias=np.array([-(2.0**16)])),
            IntegrateFire(name="deep", inputs=("fc",), level=np.array([4.0]), threshold=np.array([8.0])),
        )
    )
    x = np.full((1, 1), 255, np.uint8)
    assert not SpikingNetwork(graph).simulate(x, 1).spikes["deep"].any()
    for steps in (2, 9):
        with pytest.raises(InputError, match=r"'deep'.*beyond.*fewer steps"):
            SpikingNetwork(graph).simulate(x, steps)


def test_bad_input():
    network = digits.quantized(8)
    x = network.pixels(digits.test_images()[0][:2])
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"steps": 0}, "steps"),
        ({"until": "bored"}, "stable"),
        ({"until": "stable", "record": True}, "record"),
        ({"patience": 0}, "patience"),
        ({"memory": 0}, "memory"),
        ({"device": "gpu"}, "device: expected the name of one that torch knows, .* got 'gpu'"),
        ({"device": "meta"}, "device: nothing can be computed on 'meta' here"),
        ({"device": "cuda:99"}, "device: nothing can be computed on 'cuda:99' here"),
    )
    for arguments, message in refused:
        with pytest.raises(InputError, match=message):
            network.simulate(x, **{"steps": 3, **arguments})
    for wrong in (x.int() + 255, x.int() - 255):
        with pytest.raises(InputError, match=r"x: integers are pixels from 0 to 255, got int32 from"):
            network.simulate(wrong, 3)
    with pytest.raises(InputError, match=r"x: this network is in integers and takes pixels, .* got float32"):
        SpikingNetwork(network.graph).simulate(x + 0.5, 3)
    with pytest.raises(InputError, match="NaN"):
        network.simulate(x * torch.nan, 3)
    with pytest.raises(InputError, match=r"expected images \[B, 1, 8, 8\], got \[2, 1, 7, 8\]"):
        network.simulate(x[:, :, 1:], 3)
    with pytest.raises(InputError, match="expected at least one image"):
        network.simulate(x[:0], 3)


def test_numpys_numbers_are_numbers():
    network = digits.quantized(8)
    x = network.pixels(digits.test_images()[0][:2])
    three: Any = np.int64(3)
    memory: Any = np.int64(2**28)
    found = network.simulate(x, three, until="stable", patience=three, memory=memory)
    np.testing.assert_array_equal(found.outputs, network.simulate(x, 3, until="stable", patience=3).outputs)


@pytest.mark.parametrize(
    "labels", [[0], [0, 1, 2], [0.0, 1.0], [[0, 1]], None, [[0], [0, 1]], torch.zeros(3).long(), [0, 10], [-1, 0]]
)
def test_labels_that_do_not_fit(labels):
    network = digits.quantized(8)
    result = network.simulate(network.pixels(digits.test_images()[0][:2]), 2)
    with pytest.raises(InputError, match="labels: "):
        result.accuracy(labels)
    assert result.accuracy(torch.tensor(result.top1[-1]))[-1] == 1


def test_the_twin_refuses_what_lava_would(way):
    """A register's bound, found by the twin where it is passed and not before."""
    twin = bridge.registry.get("lava-twin")
    graph = whole_networks.mlp(1)
    native = twin.export(to_nir(graph))
    x = whole_networks.images(3, graph.input.shape, 1)
    expected = SpikingNetwork(graph).run(x, 8)
    record = twin.run(native, x, 8, membranes=True)
    assert record.backend == "lava-twin"
    for layer in graph.spiking:
        assert np.array_equal(record.packed[layer], expected.packed[layer])
    assert set(record.membranes) == set(graph.spiking)
    largest = max(float(np.abs(values).max()) for values in record.membranes.values())
    name = max(record.membranes, key=lambda layer: np.abs(record.membranes[layer]).max())
    at_bound = Engine(graph, limits=dict.fromkeys(graph.spiking, largest))
    at_bound.run(torch.from_numpy(x).float(), 8)
    below = replace(native, engine=Engine(graph, limits=dict.fromkeys(graph.spiking, largest - 1)))
    with pytest.raises(InputError, match=name):
        twin.run(below, x, 8)
    with pytest.raises(InputError, match="in integers and takes pixels, whole from 0 to 255"):
        twin.run(native, x + np.float32(0.5), 8)
    model = nn.Sequential(nn.Linear(3, 4), bridge.QCFS(4))
    with pytest.raises(bridge.GraphError, match="whole numbers"):
        twin.export(bridge.convert(model, torch.rand(2, 3)).to_nir())


def test_other_devices_get_all_that_a_layer_needs():
    """On torch's meta device, which has shapes only, and refuses what was left on the processor."""
    meta = torch.device("meta")
    kinds = set()
    for network in (
        bridge.convert(networks.ALL[name]()[0], torch.zeros(1, *networks.ALL[name]()[1])) for name in networks.ALL
    ):
        for layer in network.graph.layers[1:]:
            if not isinstance(layer, IntegrateFire):
                inputs = [torch.empty(2, *network.graph.shapes[source], device=meta) for source in layer.inputs]
                output = kernels.on_device(layer, meta)(*inputs)
                assert output.device == meta
                assert output.shape == (2, *network.graph.shapes[layer.name])
                kinds.add(type(layer).__name__)
    assert kinds >= {"Conv2d", "Linear", "Conv1d", "Add", "Scale", "AvgPool2d", "Flatten"}


def test_the_way_of_other_devices_on_this_one(monkeypatch, layer_by_layer):
    """What a GPU would compute, computed here: torch's operators and its loop."""
    monkeypatch.setattr(fire, "compiled", lambda: None)
    monkeypatch.setattr(engine, "kernel", lambda graph, layer, **_: kernels.on_device(layer, torch.device("cpu")))
    model, shape = networks.residual()
    x = networks.dyadic_images(4, shape)
    network = bridge.convert(model, x)
    result = network.simulate(x, 11, record=True)
    assert_equal(result, network.layers, *oracle.spikes_of(model, x.numpy(), 11))


@pytest.mark.lava
def test_the_twin_beside_lava():
    """Lava on a sample, its twin on all."""
    from support.backends import require

    require("lava-fixed")
    network = digits.quantized(8)
    x, labels = digits.test_images()
    agreement = network.validate(
        network.pixels(x), 8, ["lava-fixed", "lava-twin"], labels=labels, images={"lava-fixed": 40}
    )
    assert agreement.agreed
    assert agreement.backends["lava-fixed"].images == 40
    assert agreement.backends["lava-twin"].images == len(x)
    assert not any(map(any, agreement.between["lava-fixed | lava-twin"].values()))
    accuracy = agreement.backends["lava-twin"].accuracy
    assert accuracy is not None
    assert accuracy[-1] > 0.95


def test_a_run_with_membranes():
    """Of more images than are run at once; the spikes are where the potential reaches the level."""
    network = digits.quantized(8)
    x = network.pixels(digits.test_images()[0][:70])
    record = network.run(x, 3, membranes=True)
    for name in network.layers:
        neuron = network.graph[name]
        assert isinstance(neuron, IntegrateFire)
        level = neuron.level.reshape(-1, *[1] * (record.membranes[name].ndim - 3))
        np.testing.assert_array_equal(record.membranes[name] >= level, record.spikes(name))
    assert not network.run(x[:2], 2).membranes
