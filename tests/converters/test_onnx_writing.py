"""ONNX out: what is written is valid, is what the runtime and torch compute, and comes back as the same network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from support import layers, networks
from support.onnx_models import assert_same, evaluated, every_kind, every_kind_1d, runtime
from support.same_nir import same_nir_up_to_names

import bridge
from bridge import ConversionError
from bridge.converters.onnx_files.capture import capture
from bridge.converters.onnx_files.writer import write
from bridge.converters.torch_models.model import capture as capture_torch
from bridge.graph import ClipFloorShift, Input, IntegrateFire, LayerGraph
from bridge.zoo import resnet20


def graphs():
    yield every_kind()
    yield every_kind_1d()
    for make in networks.ALL.values():
        model, shape = make()
        yield capture_torch(model, (1, *shape))


@pytest.mark.parametrize("graph", list(graphs()), ids=["every_kind", "every_kind_1d", *networks.ALL])
def test_what_is_written_is_valid_complete_exact_and_read_back(graph, tmp_path):
    path = tmp_path / "folder" / "ann.onnx"
    write(graph, path)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    described = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        dims = described[node.output[0]].type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in dims[1:])
    for layer in graph.layers[1:]:
        dims = described[layer.name].type.tensor_type.shape.dim
        assert tuple(dim.dim_value for dim in dims[1:]) == graph.shapes[layer.name]
    assert {node.domain for node in model.graph.node} == {""}
    assert model.opset_import[0].version >= 17
    assert_same(capture(path), graph, names=True)
    for batch in (1, 3):
        x = networks.dyadic_images(batch, graph.input.shape)
        np.testing.assert_array_equal(runtime(path, x), evaluated(graph, x))


@pytest.mark.parametrize("name", networks.ALL)
def test_runtime_agrees_with_torch_itself(name, tmp_path):
    model, shape = networks.ALL[name]()
    write(capture_torch(model, (1, *shape)), tmp_path / "ann.onnx")
    x = networks.dyadic_images(7, shape)
    with torch.no_grad():
        np.testing.assert_array_equal(runtime(tmp_path / "ann.onnx", x), model.eval()(x).numpy())


def test_the_activation_is_bit_equal_on_any_numbers(tmp_path):
    rng = np.random.default_rng(3)
    for levels in (1, 4, 7, 10):
        threshold = rng.uniform(0.1, 5, 16).astype(np.float32).astype(np.float64)
        graph = LayerGraph(
            (
                Input(name="input", shape=(16, 40, 40)),
                ClipFloorShift(name="act", inputs=("input",), levels=levels, threshold=threshold),
            )
        )
        write(graph, tmp_path / "act.onnx")
        x = rng.normal(1, 3, (2, 16, 40, 40)).astype(np.float32)
        np.testing.assert_array_equal(runtime(tmp_path / "act.onnx", x), evaluated(graph, x))
        assert_same(capture(tmp_path / "act.onnx"), graph, names=True)


def test_only_the_ann_can_be_written_and_nothing_is_left_behind(tmp_path):
    graph = LayerGraph(
        (Input(name="input", shape=(2,)), IntegrateFire(name="spike", inputs=("input",), level=np.ones(2)))
    )
    with pytest.raises(ConversionError, match=r"'spike' \(IntegrateFire\) has no ONNX operator"):
        write(graph, tmp_path / "snn.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", networks.ALL)
def test_torch_to_onnx_to_nir_is_torch_to_nir(name, tmp_path):
    """The same NIR graph, and the same spikes; test_onnx_from_torch.py has this of files that torch wrote."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(2, shape)
    direct = bridge.convert(model, x)
    direct.ann_to_onnx(tmp_path / "ours.onnx")
    again = bridge.convert(str(tmp_path / "ours.onnx"))
    same_nir_up_to_names(again.to_nir(), direct.to_nir())
    np.testing.assert_array_equal(again.run(x, 4).readout, direct.run(x, 4).readout)


def test_a_zoo_network_there_and_back(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(3, 3, 32, 32)
    model = bridge.fit_thresholds(resnet20(levels=4).eval(), x)
    network = bridge.convert(model, x)
    network.ann_to_onnx(tmp_path / "ann.onnx")
    onnx.checker.check_model(str(tmp_path / "ann.onnx"), full_check=True)
    same_nir_up_to_names(bridge.convert(tmp_path / "ann.onnx").to_nir(), network.to_nir())
    with torch.no_grad():
        np.testing.assert_allclose(runtime(tmp_path / "ann.onnx", x), model(x).numpy(), rtol=1e-3, atol=1e-3)


def test_a_network_of_spikes_alone_has_no_ann_to_write(tmp_path):
    model, shape = networks.mlp()
    bridge.convert(model, torch.zeros(1, *shape)).save(tmp_path / "net.nir")
    with pytest.raises(ConversionError, match="holds spikes only"):
        layers.ours(bridge.load(tmp_path / "net.nir")).ann_to_onnx(tmp_path / "none.onnx")
