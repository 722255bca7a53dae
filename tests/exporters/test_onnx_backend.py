"""The spiking network as ONNX models: exact in ONNX Runtime, over T steps and step by step; all shapes known."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError

import nir
import numpy as np
import onnx
import pytest
import torch
from support import digits, networks, oracle, whole_networks, whole_numbers
from support.backends import assert_equal, require
from support.layers import ours
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.graph import BatchNorm, Conv2d, Flatten, Input, IntegrateFire, LayerGraph, Linear, SumPool2d
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate
from exporters.onnx_runtime import OnnxRuntime, backend
from exporters.onnx_runtime.network import OnnxNetwork

STEPS = 5


@pytest.fixture(scope="module", autouse=True)
def onnxruntime():
    """ONNX Runtime itself, which all of this needs."""
    require("onnxruntime")
    return import_module("onnxruntime")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def exported(graph: LayerGraph) -> OnnxNetwork:
    return OnnxRuntime().export(to_nir(graph))


def test_one_model_for_all_numbers_of_images_and_steps(case):
    model, network, x = case
    native = exported(network.graph)
    for images, steps in ((3, 1), (1, STEPS), (3, STEPS), (1, 1), (2, 8)):
        spikes, readout = oracle.spikes_of(model, x[:images].numpy(), steps)
        record = OnnxRuntime().run(native, x[:images].numpy(), steps)
        assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)
        assert record.backend == "onnxruntime"
        assert not record.membranes


def test_membranes_are_those_of_the_reference(case):
    _, network, x = case
    expected = simulate(network.graph, x, STEPS, membranes=True)
    record = OnnxRuntime().run(exported(network.graph), x.numpy(), STEPS, membranes=True)
    assert_equal(record, {layer: expected.spikes(layer) for layer in expected.layers}, expected.readout)
    for layer in expected.layers:
        np.testing.assert_array_equal(record.membranes[layer], expected.membranes[layer])


def test_a_level_for_each_channel():
    weight = np.eye(3, dtype=np.float32)
    graph = LayerGraph(
        (
            Input(name="input", shape=(3, 2, 2)),
            Conv2d(name="conv", inputs=("input",), weight=weight[:, :, None, None], bias=np.zeros(3, np.float32)),
            IntegrateFire(name="fire", inputs=("conv",), level=np.array([0.25, 0.5, 0.875], np.float32)),
            Flatten(name="flatten", inputs=("fire",)),
        )
    )
    x = networks.dyadic_images(4, (3, 2, 2))
    expected = simulate(graph, x, 7)
    record = OnnxRuntime().run(exported(graph), x.numpy(), 7)
    assert_equal(record, {"fire": expected.spikes("fire")}, expected.readout)


def test_the_output_is_the_mean_over_the_steps(case):
    _, network, x = case
    np.testing.assert_array_equal(exported(network.graph)(x.numpy(), 4), network.run(x, 4).outputs()[-1])


def test_streaming_step_by_step(case):
    model, network, x = case
    native = exported(network.graph)
    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    state = start = native.initial_state(3)
    for t in range(STEPS):
        now, state = native.step(x.numpy(), state)
        np.testing.assert_array_equal(now, readout[t])
    assert all((values == 0).all() for values in start.values()), "a step must not change the state it was given"
    np.testing.assert_array_equal(native.step(x.numpy(), start)[0], readout[0])


def test_saved_files_in_plain_onnxruntime(onnxruntime, case, tmp_path):
    model, network, x = case
    native = exported(network.graph)
    native.save(tmp_path / "net.onnx")
    native.save(tmp_path / "step.onnx", one_step=True)
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)

    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x", "steps"]
    assert [value.name for value in session.get_outputs()] == ["output", "readout"]
    output, readout = session.run(None, {"x": x.numpy(), "steps": np.array(STEPS)})
    np.testing.assert_array_equal(readout, expected)
    np.testing.assert_allclose(output, expected.mean(axis=0), rtol=1e-6, atol=1e-6)

    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    states = [value.name for value in session.get_inputs()][1:]
    assert sorted(states) == sorted(f"{layer}_potential" for layer in network.layers)
    assert [value.name for value in session.get_outputs()] == ["readout", *(f"{state}_next" for state in states)]
    feeds = {
        state: np.zeros((3, *network.graph.shapes[state.removesuffix("_potential")]), np.float32) for state in states
    }
    for t in range(STEPS):
        readout, *after = session.run(None, {"x": x.numpy(), **feeds})
        np.testing.assert_array_equal(readout, expected[t])
        feeds = dict(zip(states, after, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "step.onnx"]


def test_the_checker_and_a_shape_for_every_value(case):
    _, network, _ = case
    native = exported(network.graph)
    for model in (native.model, native.step_model):
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain for opset in model.opset_import} == {""}, "standard operators only"
        for graph in graphs(model.graph):
            assert unknown(graph) == set()
        # What is inferred from nothing but inputs, outputs and weights is the same, but for what a loop carries.
        bare = onnx.ModelProto.FromString(model.SerializeToString())
        for graph in graphs(bare.graph):
            del graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
        for graph in graphs(inferred.graph):
            assert all(name.endswith("_potential_final") for name in unknown(graph))


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """`graph` and what its loops hold."""
    return [graph, *(attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))]


def unknown(graph: onnx.GraphProto) -> set[str]:
    """Values that nodes of `graph` compute and whose shape, a size or a name for each dimension, is not there."""
    known = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(size.dim_param or size.HasField("dim_value") for size in value.type.tensor_type.shape.dim)
    }
    return {name for node in graph.node for name in node.output} - known


def test_layers_are_found_by_name(case):
    _, network, _ = case
    graph = network.graph
    model = exported(graph).model
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    inside, outside = ({node.name for node in part.node} for part in (body, model.graph))
    layers = {layer.name for layer in graph.layers[1:]}
    assert graph.constant - {graph.input.name} <= outside, "computed once"
    assert layers - graph.constant <= inside


@pytest.mark.parametrize("name", whole_networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_numbers(name, seed):
    graph = whole_networks.NETWORKS[name](seed)
    pixels = whole_networks.images(4, graph.input.shape, seed)
    assert_equal(OnnxRuntime().run(exported(graph), pixels, 9), *whole_numbers.spikes_of(to_nir(graph), pixels, 9))


def test_whole_digits():
    for scheme in ("per_layer", "per_channel"):
        network = digits.quantized(8, scheme)
        pixels = network.pixels(digits.test_images()[0][:30]).numpy()
        record = OnnxRuntime().run(exported(network.graph), pixels, 8)
        assert_equal(record, *whole_numbers.spikes_of(network.to_nir(), pixels, 8))


def test_sums_of_nine_are_whole():
    """A ninth of a sum times nine is not that sum for every sum, in float32."""
    fired = IntegrateFire(
        name="fire", inputs=("input",), level=np.full(2, 100, np.float32), threshold=np.full(2, 200, np.float32)
    )
    graph = LayerGraph(
        (
            Input(name="input", shape=(2, 9, 9)),
            fired,
            SumPool2d(name="pool", inputs=("fire",), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            SumPool2d(name="pool2", inputs=("pool",), kernel=(3, 5), stride=(1, 1)),
        )
    )
    pixels = whole_networks.images(5, (2, 9, 9), 3)
    assert_equal(OnnxRuntime().run(exported(graph), pixels, 8), *whole_numbers.spikes_of(to_nir(graph), pixels, 8))


def wide(limit: int, seed: int = 0) -> LayerGraph:
    """Two large layers in a row, in whole numbers up to `limit`; the first hears the images."""
    w = whole_networks.Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(40,)),
            Linear(name="fc1", inputs=("input",), weight=w(512, 40, limit=20), bias=w(512, limit=2000)),
            w.neurons("a1", "fc1", 512, 3000),
            Linear(name="fc2", inputs=("a1",), weight=w(512, 512, limit=limit), bias=w(512)),
            w.neurons("a2", "fc2", 512, 300),
            Linear(name="readout", inputs=("a2",), weight=w(600, 512, limit=limit), bias=w(600)),
        )
    )


@pytest.mark.parametrize(("limit", "integer"), [(127, True), (300, False)])
def test_large_matrices_in_integers(limit, integer):
    graph = wide(limit)
    native = exported(graph)
    kinds = [node.op_type for part in graphs(native.model.graph) for node in part.node]
    assert kinds.count("MatMulInteger") == (2 if integer else 0)
    pixels = whole_networks.images(3, (40,), 1)
    expected = whole_numbers.spikes_of(to_nir(graph), pixels, 8)
    assert_equal(OnnxRuntime().run(native, pixels, 8), *expected)
    state = native.initial_state(3)
    for readout in expected[1]:
        now, state = native.step(pixels, state)
        np.testing.assert_array_equal(now, readout)
    for model in (native.model, native.step_model):
        onnx.checker.check_model(model, full_check=True)
    assert len(native.model.SerializeToString()) < (1.1 if integer else 4.1) * (512 * 512 + 512 * 600 + 512 * 40)


def test_awkward_names():
    """Names that the models give to something else, and one that would be that of a value beside another layer."""
    graph = whole_networks.residual(0)
    rename = {
        "input": "steps",
        "readout": "fc",
        "c1": "x",
        "a1": "readout",
        "c2": "readout_potential",
        "add1": "output",
        "a2": "zeros_4x8x8",
    }
    renamed = LayerGraph(
        tuple(
            replace(
                layer,
                name=rename.get(layer.name, layer.name),
                inputs=tuple(rename.get(source, source) for source in layer.inputs),
            )
            for layer in graph
        )
    )
    native = exported(renamed)
    for model in (native.model, native.step_model):
        onnx.checker.check_model(model, full_check=True)
    pixels = whole_networks.images(2, graph.input.shape, 0)
    record = OnnxRuntime().run(native, pixels, 6)
    spikes, readout = whole_numbers.spikes_of(to_nir(graph), pixels, 6)
    assert_equal(record, {rename.get(layer, layer): fired for layer, fired in spikes.items()}, readout)


def test_copies_and_pickles(case):
    _, network, x = case
    native = exported(network.graph)
    expected = OnnxRuntime().run(native, x.numpy(), 3)
    for twin in (copy.deepcopy(native), pickle.loads(pickle.dumps(native))):
        record = OnnxRuntime().run(twin, x.numpy(), 3)
        assert_equal(record, {layer: expected.spikes(layer) for layer in expected.layers}, expected.readout)


def test_a_network_from_a_file(case, tmp_path):
    model, network, x = case
    network.save(tmp_path / "net.nir")
    record = OnnxRuntime().run(exported(ours(bridge.load(tmp_path / "net.nir")).graph), x.numpy(), STEPS)
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)


def test_as_a_backend_of_the_validator():
    model, shape = networks.residual()
    x = networks.dyadic_images(6, shape)
    agreement = bridge.convert(model, x).validate(x, 6, [OnnxRuntime()])
    assert agreement.agreed
    assert agreement.backends["onnxruntime"].total_differing == 0


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 5), np.float32), 4, r"expected images \[B, 6\], got \[2, 5\]"),
        (np.zeros((0, 6), np.float32), 4, r"expected at least one image, \[B, 6\], got \[0, 6\]"),
        (np.full((2, 6), np.nan, np.float32), 4, "12 values that are NaN"),
        (np.zeros((2, 6), np.float32), 0, "steps: expected a whole number of at least 1, got 0"),
    ],
)
def test_bad_input(x, steps, says):
    model, shape = networks.mlp()
    native = exported(bridge.convert(model, torch.zeros(1, *shape)).graph)
    with pytest.raises(InputError, match=says):
        OnnxRuntime().run(native, x, steps)
    with pytest.raises(InputError, match=says):
        native(x, steps)
    if steps:
        with pytest.raises(InputError, match=says):
            native.step(x, native.initial_state(2))


def test_bad_states():
    model, shape = networks.mlp()
    native = exported(bridge.convert(model, torch.zeros(1, *shape)).graph)
    with pytest.raises(InputError, match="batch: expected a whole number of at least 1, got 0"):
        native.initial_state(0)
    x = np.zeros((2, 6), np.float32)
    for state in ({}, native.initial_state(3), {**native.initial_state(2), "more": np.zeros((2, 3), np.float32)}):
        with pytest.raises(InputError, match="the state of 2 images"):
            native.step(x, state)


def test_a_folder_is_no_file(tmp_path):
    model, shape = networks.mlp()
    with pytest.raises(InputError, match="folder"):
        exported(bridge.convert(model, torch.zeros(1, *shape)).graph).save(tmp_path)


def test_layers_without_an_operator(monkeypatch):
    ones = np.ones(3, np.float32)
    graph = LayerGraph(
        (Input(name="input", shape=(3,)), BatchNorm(name="norm", inputs=("input",), scale=ones, shift=ones))
    )
    monkeypatch.setattr(backend, "from_nir", lambda _: graph)
    with pytest.raises(GraphError, match=r"'norm'.*BatchNorm"):
        OnnxRuntime().export(nir.NIRGraph({}, []))
    with pytest.raises(GraphError, match=r"'norm'.*BatchNorm"):
        _ = OnnxNetwork(graph).model


def test_more_weights_than_a_file_holds(monkeypatch):
    model, shape = networks.mlp()
    monkeypatch.setattr("exporters.onnx_runtime.models.LARGEST_FILE", 100)
    with pytest.raises(GraphError, match="at most 2 GB"):
        exported(bridge.convert(model, torch.zeros(1, *shape)).graph)


def test_available_under_every_name_of_the_package(monkeypatch):
    assert OnnxRuntime().available().usable
    versions = {"onnxruntime-gpu": "9.9", "onnx": "1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert OnnxRuntime().available().versions == versions


def test_weights_off_the_grid():
    """There the validator accepts nothing but ties."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.Conv2d(8, 8, 3, 2, 1), bridge.QCFS(4)),
        *(nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8 * 2 * 2, 10)),
    )
    x = torch.rand(8, 3, 8, 8)
    assert bridge.convert(model, x).validate(x, 8, [OnnxRuntime()]).agreed
