"""Whole-number networks on Lava, in either arithmetic and by every route, against int64, bit for bit."""

from __future__ import annotations

import multiprocessing
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.lava import LAVA
from support.lava_fixed import NETWORKS, Whole, cnn, expect_equal, mlp, pixels, plain_run, residual, run, signal

from bridge import registry
from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import Add, Conv2d, Flatten, LayerGraph, Linear, Scale
from bridge.nir_graph import to_nir
from exporters.lava import Lava, LavaFixed
from exporters.lava.backend import build_network

pytestmark = LAVA

ROUTES: dict[str, tuple[Lava, int]] = {
    "floating point": (Lava(), 4),
    "lanes": (LavaFixed(lanes=3), 7),
    "one lane": (LavaFixed(lanes=1), 4),
    "stock synapses": (LavaFixed(synapses="stock"), 3),
    "graded": (LavaFixed(inputs="graded"), 5),
    "graded, stock synapses": (LavaFixed(inputs="graded", synapses="stock"), 3),
    "stock": (LavaFixed(synapses="stock", neuron="atrlif"), 2),
    "stock, graded": (LavaFixed(synapses="stock", neuron="atrlif", inputs="graded"), 1),
}


CHOSEN: dict[str, tuple[str, ...]] = {
    "floating point": ("cnn",),
    "lanes": ("mlp", "cnn", "residual", "signal"),
    "one lane": ("residual",),
    "stock synapses": ("residual", "signal"),
    "graded": ("mlp", "residual"),
    "graded, stock synapses": ("cnn",),
    "stock": ("mlp",),
    "stock, graded": ("residual",),
}
"""Every route, every network, every kind of layer in either synapses and with either input; all others are `long`."""


# ---- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "route"),
    [
        pytest.param(name, route, marks=[] if name in CHOSEN[route] else [pytest.mark.long])
        for name in NETWORKS
        for route in ROUTES
    ],
)
def test_every_route_equals_int64(name: str, route: str) -> None:
    graph, (backend, count) = NETWORKS[name](), ROUTES[route]
    x = pixels(graph, count)
    record = run(backend, graph, x, 5, membranes=True)
    assert set(record.membranes) == set(graph.spiking)
    assert record.backend == ("lava-fixed" if isinstance(backend, LavaFixed) else "lava")
    for layer in graph.spiking:
        assert 0.02 < record.spikes(layer).mean() < 0.98, f"{layer} is silent or saturated, which proves nothing"
    expect_equal(record, graph, x, 5)


def test_from_nir_with_thresholds_of_their_own_and_a_batch_that_does_not_fill_the_lanes() -> None:
    net = (
        Whole((2, 5, 4)).affine(Conv2d, "conv1", shape=(3, 2, 2, 2), limit=100).spike("a", thresholds=[12800, 6402, 2])
    )
    net.affine(Conv2d, "conv2", shape=(3, 3, 2, 2)).spike("b", thresholds=[2, 90, 250]).add(Flatten, "flat")
    graph = net.affine(Linear, "fc", shape=(3, 18)).graph
    x = pixels(graph, 17) // 8
    backend = registry.usable("lava-fixed")
    record = backend.run(backend.export(to_nir(graph)), x, 3, membranes=True)
    expect_equal(record, graph, x, 3)


# ---- in a Lava program of one's own --------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["fixed_pt", "floating_pt"])
def test_the_process_in_a_lava_program_of_ones_own(tag: str) -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer
    from lava.proc.monitor.process import Monitor

    from exporters.lava.processes import CurrentSource

    graph = signal()
    images = pixels(graph, 3)
    network = build_network(graph, LavaFixed())
    process = network.process(steps=4)
    ((name, values),) = network.feed(images).items()
    source = CurrentSource(currents=values, interval=4)
    source.a_out.connect(process.inputs[name])
    monitor, readout = Monitor(), RingBuffer(shape=process.y_out.shape, buffer=3 * 4 + network.delay)
    monitor.probe(process.states["b"], 3 * 4 + network.delay)
    process.y_out.connect(readout.a_in)
    try:
        process.run(RunSteps(3 * 4 + network.delay), Loihi2SimCfg(select_tag=tag))
        probed = monitor.get_data()[process.name]["b_u"]
        said, total = readout.data.get(), process.v.get()
    finally:
        process.stop()
    spikes, membranes, output = plain_run(graph, images, 4)
    unit = 64 if tag == "fixed_pt" else 1  # registers of layers with synapses hold 64 times the network's units
    held = (membranes["b"] - 160 * spikes["b"]) * unit
    offset = network.offsets["b"]
    seen = network.layouts["b"].from_lava(probed[offset : offset + 12])
    np.testing.assert_array_equal(seen.reshape(3, 4, 4, 7).swapaxes(0, 1), held)
    np.testing.assert_array_equal(said.T[network.delay :].reshape(3, 4, 2).swapaxes(0, 1), output)
    np.testing.assert_array_equal(total, output[:, -1].sum(axis=0))


def test_the_example_of_the_documentation() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.monitor.process import Monitor

    from exporters.lava.network import LavaNetwork
    from exporters.lava.processes import CurrentSource

    example = (LavaNetwork.__doc__ or "").split("::\n", 1)[1].split("    A feed", 1)[0]
    net = Whole((4,)).affine(Linear, "fc1", shape=(5, 4), limit=20).spike("act1", thresholds=[2560] * 5)
    graph = net.affine(Linear, "fc2", shape=(3, 5)).graph
    known: dict[str, Any] = {"graph": to_nir(graph), "images": pixels(graph, 3), "LavaFixed": LavaFixed}
    known |= {"CurrentSource": CurrentSource, "Monitor": Monitor, "RunSteps": RunSteps, "Loihi2SimCfg": Loihi2SimCfg}
    exec(textwrap.dedent(example), known)
    spikes, membranes, _ = plain_run(graph, known["images"], 8)
    after = (membranes["act1"] - 2560 * spikes["act1"]).swapaxes(0, 1).reshape(24, 5)
    np.testing.assert_array_equal(known["potentials"][:24], after)  # it hears the images alone: not shifted


def test_graded_pixels_from_lavas_own_source_and_nothing_connected_but_one_layers_spikes() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    graph = cnn()
    image = pixels(graph, 1)
    network = build_network(graph, LavaFixed(inputs="graded", synapses="stock"))
    process = network.process(steps=3)
    ((name, values),) = network.feed(image).items()
    source = Source(data=np.repeat(values[0][..., None], 3 + network.delay, axis=-1))
    source.s_out.connect(process.inputs[name])
    sink = Sink(shape=process.spikes["b"].shape, buffer=3 + network.offsets["b"])
    process.spikes["b"].connect(sink.a_in)
    try:
        process.run(RunSteps(3 + network.offsets["b"]), Loihi2SimCfg(select_tag="fixed_pt"))
        data = sink.data.get()
    finally:
        process.stop()
    seen = network.layouts["b"].from_lava(np.moveaxis(data, -1, 0)[network.offsets["b"] :])
    np.testing.assert_array_equal(seen, plain_run(graph, image, 3)[0]["b"][:, 0])


def test_parts_of_the_stock_route_are_lavas_own() -> None:
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import Delay, Readout

    graph = residual()
    network = build_network(graph, LavaFixed(synapses="stock", neuron="atrlif"))
    with pytest.raises(InputError, match=r"expected the currents of \['a', 'd'\] for one image"):
        network.process(steps=3)
    currents = {name: values[0] for name, values in network.feed(pixels(graph, 1)).items()}
    process = network.process(steps=3, currents=currents)
    process.compile(Loihi2SimCfg(select_tag="fixed_pt"))
    ours = {type(part) for part in process.procs.members if not type(part).__module__.startswith("lava.")}
    assert ours == {Delay, Readout}


# ---- streaming -----------------------------------------------------------------------------------------------------


def small_residual() -> LayerGraph:
    """A join of branches of different depth, small enough to be run often."""
    net = Whole((2, 3, 3))
    net.affine(Conv2d, "stem", shape=(3, 2, 2, 2), limit=20, padding=(1, 1)).spike("a", thresholds=[3840] * 3)
    net.affine(Conv2d, "conv1", shape=(3, 3, 3, 3), padding=(1, 1)).spike("b", thresholds=[220] * 3)
    net.affine(Conv2d, "conv2", shape=(3, 3, 3, 3), padding=(1, 1)).add(Scale, "skip", "a", scale=np.full(3, 90.0))
    net.add(Add, "sum", "conv2", "skip").spike("c", thresholds=[300] * 3).add(Flatten, "flat")
    return net.affine(Linear, "fc", shape=(3, 48)).graph


def test_a_stream_of_100_images_equals_int64() -> None:
    graph = small_residual()
    x = pixels(graph, 100)
    expect_equal(run(LavaFixed(lanes=1), graph, x, 4), graph, x, 4)


def test_without_delays_a_stream_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(model: Any) -> None:
        model.a_out.send(model.gain * model.a_in.recv())

    graph = small_residual()
    x = pixels(graph, 20)
    spikes = plain_run(graph, x, 4)[0]
    backend = LavaFixed(lanes=1)
    network = build_network(graph, backend)

    def wrong(layer: str) -> int:
        return int((backend.run(network, x, 4).spikes(layer) != (spikes[layer] == 1)).sum())

    assert wrong("c") == 0
    monkeypatch.setattr("exporters.lava.processes.streams.PyDelayModelFixed.run_spk", at_once)
    assert wrong("b") == 0, "before the join nothing can be late"
    assert wrong("c") > 0


# ---- refusals ------------------------------------------------------------------------------------------------------


def changed(graph: LayerGraph, name: str, **values: Any) -> LayerGraph:
    return graph.rewrite({name: [replace(graph[name], **values)]})


def full(graph: LayerGraph, name: str, field: str, value: float) -> LayerGraph:
    return changed(graph, name, **{field: np.full_like(getattr(graph[name], field), value)})


FIXED = LavaFixed()
ATRLIF = LavaFixed(neuron="atrlif")
UNFIT: dict[str, tuple[Callable[[], LayerGraph], LavaFixed, str]] = {
    "weight": (lambda: full(cnn(), "conv2", "weight", 128), FIXED, "'conv2': its weights go from 128 to 128"),
    "graded weight": (
        lambda: full(cnn(), "conv1", "weight", -129),
        LavaFixed(inputs="graded"),
        "'conv1': its weights go from -129 to -129, a synapse holds -128 to 127",
    ),
    "factor": (lambda: full(mlp(), "skip", "scale", 257), FIXED, "'skip': its factor 257"),
    "exponent": (lambda: full(mlp(), "skip", "scale", 2**15), FIXED, "'skip': its factor 32768"),
    "bias": (lambda: full(cnn(), "conv2", "bias", 4097), FIXED, "'b': biases from 4097 to 4097 are not within ±4095"),
    "large bias": (lambda: full(cnn(), "conv2", "bias", 8192), FIXED, "'b': biases from 8192"),
    "threshold": (lambda: full(mlp(), "b", "threshold", 2**17), FIXED, "'b': its threshold of 131072 is over 131071"),
    "synaptic input": (
        lambda: full(mlp(), "fc1", "weight", 127),
        LavaFixed(inputs="graded"),
        r"'a': its synaptic input can come to 0 … 194310, beyond ±131071",
    ),
    "two thresholds": (
        lambda: changed(mlp(), "b", threshold=np.array([2.0] * 9 + [4]), level=np.array([1.0] * 9 + [2])),
        ATRLIF,
        "'b': ATRLIF has one threshold a layer .*from 2 to 4 .*per_layer",
    ),
    "another level": (lambda: full(mlp(), "b", "level", 7), ATRLIF, "'b': ATRLIF .* fires at half of it"),
    "fractions": (lambda: full(mlp(), "fc2", "weight", 0.5), FIXED, "whole numbers only.*quantize"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_refuses_networks_that_do_not_fit(what: str) -> None:
    make, backend, message = UNFIT[what]
    graph = make()
    with pytest.raises(GraphError, match=message):
        build_network(graph, backend)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((1, 6), 256), "takes pixels, whole from 0 to 255"),
        (np.full((1, 6), 0.5), "takes pixels, whole from 0 to 255"),
        (np.full((1, 6), -1), "takes pixels, whole from 0 to 255"),
        (np.full((1, 5), 1), r"expected images \[B, 6\]"),
    ],
)
def test_refuses_images_that_are_not_pixels(x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(FIXED, mlp(), x.astype(np.float32), 2)


def one_neuron(weight: int, threshold: int) -> LayerGraph:
    net = Whole((1,)).add(Linear, "fc", weight=np.full((1, 1), weight, np.float32), bias=np.zeros(1, np.float32))
    return net.spike("a", thresholds=[threshold]).graph


def test_a_saturating_potential_is_refused_at_the_step_at_which_it_would_saturate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = one_neuron(-127, 2)  # shifted by 6: up to 131071
    bright, dark = np.array([[0], [255]], np.float32), np.array([[0], [1]], np.float32)
    assert plain_run(graph, bright, 5)[1]["a"][:, 1, 0].tolist() == [-32385, -64770, -97155, -129540, -161925]
    expect_equal(run(FIXED, graph, bright, 4, membranes=True), graph, bright, 4)
    expect_equal(run(FIXED, graph, dark, 5, membranes=True), graph, dark, 5)
    message = r"'a': its potential comes to -161925 at step 5 of image 1; the register holds up to ±131071"
    with pytest.raises(InputError, match=message):
        run(FIXED, graph, bright, 5)
    with pytest.raises(InputError, match=r"'a': its potential"):
        run(FIXED, graph, dark, 10_000)
    monkeypatch.setattr("exporters.lava.bounds.check_images", lambda *_: None)
    record = run(FIXED, graph, bright, 5, membranes=True)
    assert record.membranes["a"][-1, 1, 0] == -(2**23 - 1) / 64, "this is what the refusal is for"


def test_a_layer_that_hears_the_images_alone_has_64_times_the_range() -> None:
    graph, x = one_neuron(-127, 128), np.array([[255]], np.float32)
    record = run(FIXED, graph, x, 250, membranes=True)
    assert record.membranes["a"].min() == -250 * 127 * 255
    expect_equal(record, graph, x, 250)
    with pytest.raises(InputError, match=r"-8420100 at step 260 of image 0; the register holds up to ±8388607"):
        run(FIXED, graph, x, 260)


def test_lavas_own_neuron_needs_more_room() -> None:
    x = np.array([[255]], np.float32)
    with pytest.raises(InputError, match=r"'a': its potential comes to .* at step 7"):
        run(ATRLIF, one_neuron(80, 40000), x, 7)  # 7 · 20400, though spikes take 40000 off
    run(FIXED, one_neuron(80, 40000), x, 7)
    with pytest.raises(InputError, match=r"'a': its refractory state comes to 140000 at step 7"):
        run(ATRLIF, one_neuron(73, 20000), x, 7)  # the potential: 7 · 18615 = 130305
    with pytest.raises(
        InputError, match=r"'a': these images give it currents from 32768 to .*ATRLIF takes up to ±32767"
    ):
        run(ATRLIF, changed(one_neuron(127, 128), "fc", bias=np.array([383.0])), x, 2)


def test_refuses_options_that_there_are_not() -> None:
    with pytest.raises(BackendError, match=r"synapses is one of \('torch', 'stock'\), got 'Torch'"):
        LavaFixed(synapses="Torch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"lanes: .* at least 1, got -1"):
        run(LavaFixed(lanes=-1), mlp(), pixels(mlp(), 1), 2)


def test_lavas_own_processes_take_one_lane() -> None:
    for backend in (LavaFixed(synapses="stock", lanes=2), LavaFixed(neuron="atrlif")):
        network = build_network(mlp(), backend)
        currents = {name: values[0] for name, values in network.feed(pixels(network.graph, 1)).items()}
        with pytest.raises(InputError, match=r"expected one lane.*got 2"):
            network.process(steps=2, lanes=2, currents=currents)
    with pytest.raises(InputError, match="expected one lane"):
        run(LavaFixed(synapses="stock", lanes=2), mlp(), pixels(mlp(), 2), 2)


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["neurons.PyIntegrateFireModelFixed", "synapses.PyTorchDenseModelFixed"])
def test_a_failing_part_ends_the_run_with_its_own_traceback(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lava.magma.core.process.process import ProcessServer

    def fail(model: Any) -> None:
        raise ArithmeticError(f"a fault in {type(model).__name__}")

    before = len(ProcessServer().processes)
    monkeypatch.setattr(f"exporters.lava.processes.{model}.run_spk", fail)
    with pytest.raises(BackendError, match=f"a fault in {model.split('.')[1]}"):
        run(LavaFixed(time_limit=60), mlp(), pixels(mlp(), 2), 3)
    assert multiprocessing.active_children() == []
    assert len(ProcessServer().processes) == before
