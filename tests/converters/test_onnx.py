"""ONNX in and out: torch's exporters and hand-written files against onnxruntime and torch; broken files."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support import networks
from torch import nn

from bridge import QCFS, BridgeError, ConversionError
from bridge.converters.onnx_files.reader import capture
from bridge.converters.onnx_files.writer import write
from bridge.converters.torch_models import model as torch_model
from bridge.errors import GraphError
from bridge.graph import (
    Add,
    AvgPool2d,
    BatchNorm,
    ClipFloorShift,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    LayerGraph,
    Linear,
    Scale,
)
from bridge.passes.fold_batch_norm import fold_batch_norm
from bridge.simulate.ann import activations

# What torch's two exporters warn of in their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]

EXPORTERS = ("dynamo", "legacy")


def export(model: nn.Module, shape, path, exporter, batch=None, **options):
    """`model` as torch writes it: with a symbolic batch size unless `batch` is given."""
    x = torch.zeros(batch or 2, *shape)
    if exporter == "dynamo":
        dynamic = {} if batch else {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False, **dynamic, **options)
    else:
        dynamic = {} if batch else {"dynamic_axes": {"x": {0: "batch"}}}
        torch.onnx.export(model.eval(), (x,), path, dynamo=False, input_names=["x"], **dynamic, **options)
    return path


def runtime(path, x):
    """The output of onnxruntime for `x`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x, dtype=np.float32)})
    return result


def evaluated(graph, x):
    return activations(graph, torch.as_tensor(x, dtype=torch.float32))[2].numpy()


def kinds(graph):
    return [type(layer) for layer in graph]


def assert_same(got: LayerGraph, expected: LayerGraph, rtol=0.0, names=False):
    """Same layers in the same order, with the same arrays; and the same edges."""
    assert kinds(got) == kinds(expected)
    places = [{layer.name: at for at, layer in enumerate(graph)} for graph in (got, expected)]
    for a, b in zip(got, expected, strict=True):
        assert [places[0][name] for name in a.inputs] == [places[1][name] for name in b.inputs]
        assert not names or a.name == b.name
        for key, value in vars(b).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(getattr(a, key), value, rtol=rtol, atol=rtol, err_msg=f"{b.name}.{key}")
            elif key not in ("name", "inputs"):
                assert getattr(a, key) == value, (b.name, key)


# Networks


class Residual(nn.Module):
    """A block with an identity and one with a projection, batch norm, and a mean over space."""

    def __init__(self, pool):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 4, 3, padding=1), networks.qcfs(4, 4)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), networks.qcfs(4, 4)
        self.conv3, self.project, self.act3 = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2), networks.qcfs(8)
        self.pool, self.fc = pool, nn.Linear(6, 3)

    def forward(self, x):
        x = self.act1(self.conv1(x))
        x = self.act2(self.bn2(self.conv2(x)) + x)
        x = self.act3(self.conv3(x) + self.project(x))
        return self.fc(self.pool(x))


class Branches(nn.Module):
    """Concatenation, depthwise and dilated convolutions, a shuffle written out, slices, batch norm after the join."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 4, 3, padding=1), networks.qcfs(4)
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), networks.qcfs(4, 4))
        self.thin = nn.Sequential(nn.Conv2d(2, 2, 1), networks.qcfs(8, 2), nn.Identity(), nn.Dropout())
        self.pool = nn.Sequential(nn.AvgPool2d(2, 2, 1), nn.BatchNorm2d(10), networks.qcfs(4, 10))
        self.fc = nn.Linear(10 * 5 * 4, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat((self.wide(x), self.thin(right), x[:, 3:], x[:, 1:3], left[:, :1]), 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 5, channels // 5, height, width).transpose(1, 2).contiguous()
        x = self.pool(x.view(batch, -1, height, width))
        return self.fc(x.view(x.size(0), -1))


class Signal1d(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv1d(2, 4, 3, stride=2, padding=1),
            networks.qcfs(4, 4),
            nn.Conv1d(4, 4, 3, dilation=2, groups=2),
            networks.qcfs(),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Floor(torch.autograd.Function):
    """A floor with its own gradient, as the official repositories have it."""

    @staticmethod
    def forward(ctx, x):
        return x.floor()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Official(nn.Module):
    """Written after the description of ANN_SNN_QCFS: divide, clamp, round with a shift of one half, multiply."""

    def __init__(self, levels=4, threshold=8.0):
        super().__init__()
        self.thresh, self.L = nn.Parameter(torch.tensor([threshold])), levels

    def forward(self, x):
        x = torch.clamp(x / self.thresh, 0, 1)
        return Floor.apply(x * self.L + 0.5) / self.L * self.thresh


class Older(nn.Module):
    """Written after the description of SNN_conversion_QCFS, with the straight-through difference."""

    def __init__(self, levels=8, threshold=2.0):
        super().__init__()
        self.up, self.t = nn.Parameter(torch.tensor([threshold])), levels

    def forward(self, x):
        x = torch.clip(x / self.up, 0, 1)
        level = x * self.t + 0.5
        return ((level.floor() - level).detach() + level) / self.t * self.up


class MeanOverSpace(nn.Module):
    def __init__(self, keepdim=False):
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x):
        x = x.mean((2, 3), keepdim=self.keepdim)
        return x.flatten(1) if self.keepdim else x


class View(nn.Module):
    """Flattening as people write it, with sizes taken from the tensor."""

    def forward(self, x):
        return x.view(x.size(0), x.size(1) * x.size(2) * x.size(3))


POOLS = {
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "mean": MeanOverSpace,
    "mean_kept": lambda: MeanOverSpace(True),
    "view": lambda: nn.Sequential(nn.AvgPool2d(4), View()),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("name", "batch"),
    [*((name, None) for name in networks.ALL), *((name, at) for name in ("cnn", "dense") for at in (1, 2))],
)
def test_torch_to_onnx_and_back_is_what_torch_gives(name, exporter, batch, tmp_path):
    if (name, exporter) == ("dense", "legacy"):
        pytest.skip("torch's older exporter has no ChannelShuffle")
    model, shape = networks.ALL[name]()
    got = capture(export(model, shape, tmp_path / "m.onnx", exporter, batch))
    expected = torch_model.capture(model, torch.zeros(2, *shape))
    # the exporters fold batch norms behind convolutions themselves
    assert_same(fold_batch_norm(got), fold_batch_norm(expected))
    spiking = [[layer.name for layer in graph if isinstance(layer, ClipFloorShift)] for graph in (got, expected)]
    assert spiking[0] == spiking[1]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        *((lambda pool=pool: Residual(pool()), (2, 8, 8)) for pool in POOLS.values()),
        (Branches, (2, 8, 6)),
        (Signal1d, (2, 15)),
    ],
    ids=[*(f"residual-{pool}" for pool in POOLS), "branches", "signal"],
)
def test_joins_pools_and_signals(make, shape, exporter, tmp_path):
    model = networks.make_dyadic(make()).eval()
    path = export(model, shape, tmp_path / "m.onnx", exporter)
    graph = capture(path)
    x = networks.dyadic_images(5, shape)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(evaluated(graph, x), expected)
    write(graph, tmp_path / "again.onnx")
    np.testing.assert_array_equal(runtime(tmp_path / "again.onnx", x), expected)
    assert_same(capture(tmp_path / "again.onnx"), graph, names=True)


def test_names_are_those_of_torch_modules(tmp_path):
    for exporter in EXPORTERS:
        graph = capture(export(networks.make_dyadic(Branches()), (2, 8, 6), tmp_path / f"{exporter}.onnx", exporter))
        spiking = [layer.name for layer in graph if isinstance(layer, ClipFloorShift)]
        assert spiking == ["act", "wide_1", "thin_1", "pool_2"]
        assert {"stem", "wide_0", "thin_0", "fc"} <= {layer.name for layer in graph}
        assert all(layer.name.isidentifier() for layer in graph)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", [Official, Older])
def test_the_authors_layers(kind, exporter, tmp_path):
    given = [(levels, threshold) for levels in (1, 4, 6, 7, 10, 32) for threshold in (1.0, 8.0, 3.7, 0.013)]
    model = nn.Sequential(*(part for each in given for part in (nn.Linear(3, 3), kind(*each))), nn.Linear(3, 3))
    graph = capture(export(model, (3,), tmp_path / "m.onnx", exporter))
    assert kinds(graph) == [Input, *[Linear, ClipFloorShift] * len(given), Linear]
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    assert [layer.levels for layer in found] == [levels for levels, _ in given]
    assert [layer.threshold.tolist() for layer in found] == [[float(np.float32(each))] * 3 for _, each in given]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("channels", [0, 3])
def test_lambda_comes_back_to_the_last_bit(channels, exporter, tmp_path):
    generator = torch.Generator().manual_seed(1)
    given = [(levels, torch.rand(channels or (), generator=generator) * 3 + 0.01) for levels in (1, 3, 4, 7, 10)]
    model = nn.Sequential(*(part for each in given for part in (nn.Conv2d(3, 3, 1), QCFS(*each))))
    graph = capture(export(model, (3, 2, 2), tmp_path / "m.onnx", exporter))
    found = [layer for layer in graph if isinstance(layer, ClipFloorShift)]
    for layer, (levels, threshold) in zip(found, given, strict=True):
        assert layer.levels == levels
        np.testing.assert_array_equal(layer.threshold, threshold.expand(3).double().numpy())


def test_without_the_exporters_own_constant_folding(tmp_path):
    model, shape = networks.cnn()
    expected = torch_model.capture(model, torch.zeros(2, *shape))
    path = export(
        model, shape, tmp_path / "a.onnx", "legacy", do_constant_folding=False, keep_initializers_as_inputs=True
    )
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))
    path = export(model, shape, tmp_path / "b.onnx", "dynamo", optimize=False)
    assert_same(fold_batch_norm(capture(path)), fold_batch_norm(expected))


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_older_opsets(opset, tmp_path):
    model = networks.make_dyadic(Residual(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    path = export(model, (2, 8, 8), tmp_path / "m.onnx", "legacy", opset_version=opset)
    x = networks.dyadic_images(3, (2, 8, 8))
    with torch.no_grad():
        np.testing.assert_array_equal(evaluated(capture(path), x), model(x).numpy())


# Writing


def every_kind():
    """A graph with every kind of layer that an ANN can have, on a dyadic grid."""
    rng = np.random.default_rng(0)

    def grid(*shape):
        return rng.integers(-6, 7, shape) / 8

    return LayerGraph(
        (
            Input(name="input", shape=(2, 8, 6)),
            Scale(name="scale", inputs=("input",), scale=np.array([2.0, -0.5])),
            Conv2d(name="conv", inputs=("scale",), weight=grid(4, 1, 3, 2), bias=grid(4), padding=(1, 0), groups=2),
            BatchNorm(name="norm", inputs=("conv",), scale=grid(4), shift=grid(4)),
            ClipFloorShift(name="act", inputs=("norm",), levels=4, threshold=np.array([1.0, 2.0, 0.5, 4.0])),
            AvgPool2d(name="pool", inputs=("act",), kernel=(2, 1), stride=(2, 1), padding=(1, 0)),
            Concat(name="join", inputs=("pool", "pool", "pool")),
            Conv2d(name="mix", inputs=("join",), weight=grid(4, 12, 1, 1), bias=grid(4)),
            Add(name="sum", inputs=("mix", "pool")),
            ClipFloorShift(name="act2", inputs=("sum",), levels=2, threshold=np.array([1.0, 2.0, 0.5, 4.0])),
            Flatten(name="flat", inputs=("act2",)),
            Linear(name="out", inputs=("flat",), weight=grid(3, 100), bias=grid(3)),
        )
    )


def every_kind_1d():
    return LayerGraph(
        (
            Input(name="input", shape=(2, 9)),
            Conv1d(
                name="conv",
                inputs=("input",),
                weight=np.arange(8.0).reshape(2, 2, 2) / 8,
                bias=np.array([0.5, -0.25]),
                stride=2,
                padding=1,
                dilation=3,
            ),
            Scale(name="scale", inputs=("conv",), scale=np.array([0.5, 2.0])),
            ClipFloorShift(name="act", inputs=("scale",), levels=4, threshold=np.array([1.0, 2.0])),
        )
    )


def graphs():
    yield every_kind()
    yield every_kind_1d()
    for make in networks.ALL.values():
        model, shape = make()
        yield torch_model.capture(model, torch.zeros(1, *shape))


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
    write(torch_model.capture(model, torch.zeros(1, *shape)), tmp_path / "ann.onnx")
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


# Files written by hand: everything has the same frame, a body in between


def build(body, x="float[N,4] x", y="float[N,4] y", opset=17, path=None, extra=""):
    if "sm = Mul" in body:
        body = constants(LEVELS) + body
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "com.custom" : 1]> net ({x}) => ({y}) {extra} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    if path is not None:
        onnx.save(model, path)
    return model


LEVELS = "l=4 th=2 h=0.5 zero=0 one=1"


def spike(before, after="y"):
    """QCFS with L = 4 and λ = 2 from one tensor to another."""
    return f"""
        sm = Mul ({before}, l) sd = Div (sm, th) sa = Add (sd, h) sf = Floor (sa)
        sq = Div (sf, l) sc = Clip (sq, zero, one) {after} = Mul (sc, th)
    """


def constants(values):
    """Constant nodes for ``a=1 b=2``."""
    pairs = (pair.split("=") for pair in values.split())
    return "\n".join(f"{name} = Constant <value = float {{{value}}}> ()" for name, value in pairs)


FORMS = {
    "paper": (
        "l=4 t=2 h=0.5 o=0 i=1",
        "a=Mul(x,l) b=Div(a,t) c=Add(b,h) d=Floor(c) e=Div(d,l) f=Clip(e,o,i) y=Mul(f,t)",
    ),
    "divided first": (
        "l=4 t=2 h=0.5 o=0 i=1",
        "a=Div(x,t) b=Mul(l,a) c=Add(h,b) d=Floor(c) e=Div(d,l) f=Clip(e,o,i) y=Mul(t,f)",
    ),
    "folded": ("m=2 h=0.5 o=0 t=2 q=0.5", "b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Mul(d,q) y=Clip(e,o,t)"),
    "reciprocals": (
        "l=0.25 t=0.5 h=-0.5 o=0 i=1",
        "a=Div(x,l) b=Mul(a,t) c=Sub(b,h) d=Floor(c) e=Mul(d,l) f=Clip(e,o,i) y=Div(f,t)",
    ),
    "clip levels": ("m=2 h=0.5 o=0 l=4 q=0.5", "b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Clip(d,o,l) y=Mul(e,q)"),
    "min and max": ("m=2 h=0.5 o=0 t=2 q=0.5", "b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Mul(d,q) f=Max(e,o) y=Min(t,f)"),
    "max after min": ("m=2 h=0.5 o=0 t=2 q=0.5", "b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Mul(d,q) f=Min(e,t) y=Max(o,f)"),
    "relu and min": ("m=2 h=0.5 t=2 q=0.5", "b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Mul(d,q) f=Relu(e) y=Min(t,f)"),
    "authors": (
        "l=4 t=2 h=0.5 o=0 i=1",
        "a=Div(x,t) b=Clip(a,o,i) c=Mul(b,l) d=Add(c,h) e=Floor(d) f=Div(e,l) y=Mul(f,t)",
    ),
    "authors folded": ("m=2 t=2 h=0.5 o=0 q=0.5", "b=Clip(x,o,t) c=Mul(b,m) d=Add(c,h) e=Floor(d) y=Mul(e,q)"),
    "straight through": (
        "l=4 t=2 h=0.5 o=0 i=1",
        "a=Mul(x,l) b=Div(a,t) c=Add(b,h) d=Floor(c) s=Sub(d,c) u=Add(s,c) e=Div(u,l) f=Clip(e,o,i) y=Mul(f,t)",
    ),
    "computed constants": (
        "l=4 t=2 h=0.5 o=0 i=1",
        "m=Div(l,t) q=Div(t,l) b=Mul(x,m) c=Add(b,h) d=Floor(c) e=Mul(d,q) k=Identity(t) y=Clip(e,o,k)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_qcfs_in_its_usual_orders(form, tmp_path):
    values, body = FORMS[form]
    build(constants(values) + body, path=tmp_path / "m.onnx")
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift]
    assert graph.output.levels == 4
    assert graph.output.threshold.tolist() == [2.0] * 4
    x = networks.dyadic_images(20, (4,)) * 4
    np.testing.assert_array_equal(evaluated(graph, x), runtime(tmp_path / "m.onnx", x))


def test_qcfs_with_clip_attributes_and_thresholds_as_initializers(tmp_path):
    body = "a=Mul(x,l) b=Div(a,t) c=Add(b,h) d=Floor(c) e=Div(d,l) f=Clip<min=0.0,max=1.0>(e) y=Mul(f,t)"
    extra = "<float[1] l={4}, float[1,4,1,1] t={1,2,4,0.5}, float h={0.5}>"
    build(body, x="float[N,4,2,2] x", y="float[N,4,2,2] y", opset=9, path=tmp_path / "m.onnx", extra=extra)
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift]
    assert graph.output.threshold.tolist() == [1, 2, 4, 0.5]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("z=Mul(x,s)", "y=Identity(w)", [Input, Scale, ClipFloorShift]),
        ("z=Identity(x)", "y=Mul(w,s)", [Input, ClipFloorShift, Scale]),
        ("z=Mul(x,s)", "y=Mul(w,k)", [Input, Scale, ClipFloorShift, Scale]),
        ("z=Add(x,s)", "y=Sub(w,k)", [Input, BatchNorm, ClipFloorShift, BatchNorm]),
        ("z=Sub(s,x)", "v=Neg(w) y=Div(v,k)", [Input, BatchNorm, ClipFloorShift, Scale]),
        ("z=Identity(x)", "v=Mul(w,one) y=Add(v,zero)", [Input, ClipFloorShift]),
        ("z=Add(x,x)", "y=Add(w,w)", [Input, Scale, ClipFloorShift, Scale]),
        ("z=Add(x,h)", "y=Identity(w)", [Input, BatchNorm, ClipFloorShift]),
        ("z=Mul(x,s)", "y=Add(w,z)", [Input, Scale, ClipFloorShift, Add]),
        ("z=Mul(x,s)", "v=Mul(w,k) y=Sum(w,z,v)", [Input, Scale, ClipFloorShift, Scale, Add, Add]),
    ],
)
def test_factors_and_terms_around_qcfs(before, after, expected, tmp_path):
    extra = "<float[4] s={1,2,0.5,4}, float[1,4] k={2,8,4,0.5}>"
    build(before + spike("z", "w") + after, path=tmp_path / "m.onnx", extra=extra)
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == expected
    x = networks.dyadic_images(20, (4,)) * 4
    np.testing.assert_array_equal(evaluated(graph, x), runtime(tmp_path / "m.onnx", x))


def test_an_activation_that_several_layers_read_is_one_layer(tmp_path):
    body = spike("x", "w") + "a=MatMul(w,m) b=Mul(w,s) c=Add(a,b) y=Add(c,w)"
    build(
        body, path=tmp_path / "m.onnx", extra="<float[4] s={1,2,0.5,4}, float[4,4] m={1,0,0,1,0,1,0,0,2,0,1,0,0,0,0,1}>"
    )
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift, Linear, Scale, Add, Add]
    x = networks.dyadic_images(20, (4,)) * 4
    np.testing.assert_array_equal(evaluated(graph, x), runtime(tmp_path / "m.onnx", x))


EXTRA = """<
    float[4,3] w={1,2,3,4,5,6,7,8,9,1,2,3}, float[3,4] v={1,2,3,4,5,6,7,8,9,1,2,3}, float[3] b={1,-2,3}, float c={2},
    float[2,2,1,1] m={1,2,3,4}, float[2,1,3,3] d={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[4,2] f={1,2,3,4,5,6,7,8},
    float[3] s={1,2,3}, float[3] t={1,2,0.5}, float[3] u={1,4,0.25}, float[2] p={1,2}, float[2] q={-1,-2}
>"""
POOL = "y=AveragePool<kernel_shape=[2,2],strides=[2,2]"
OPERATORS = {
    "gemm": ("N,4 N,3", "y=Gemm(z,w,b)", [Linear]),
    "gemm without bias": ("N,4 N,3", "y=Gemm(z,w)", [Linear]),
    "gemm alpha beta": ("N,4 N,3", "y=Gemm<alpha=0.5,beta=2.0,transB=1>(z,v,c)", [Linear]),
    "matmul": ("N,4 N,3", "y=MatMul(z,w)", [Linear]),
    "matmul add": ("N,4 N,3", "a=MatMul(z,w) y=Add(b,a)", [Linear]),
    "matmul transpose": ("N,4 N,3", "k=Transpose<perm=[1,0]>(v) y=MatMul(z,k)", [Linear]),
    "matmul, two readers": ("N,4 N,3", "a=MatMul(z,w) e=Add(b,a) y=Add(a,e)", [Linear, BatchNorm, Add]),
    "fixed batch": ("3,4 3,3", "y=MatMul(z,w)", [Linear]),
    "conv same": ("N,2,4,6 N,2,4,6", 'y=Conv<auto_pad="SAME_UPPER",group=2,kernel_shape=[3,3]>(z,d)', [Conv2d]),
    "conv same strided": ("N,2,5,7 N,2,3,4", 'y=Conv<auto_pad="SAME_LOWER",group=2,strides=[2,2]>(z,d)', [Conv2d]),
    "conv valid": ("N,2,4,6 N,2,2,4", 'y=Conv<auto_pad="VALID",group=2>(z,d)', [Conv2d]),
    "pool same": ("N,2,4,6 N,2,2,3", f'{POOL},auto_pad="SAME_UPPER">(z)', [AvgPool2d]),
    "pool padded": ("N,2,4,6 N,2,3,4", f"{POOL},pads=[1,1,1,1],count_include_pad=1>(z)", [AvgPool2d]),
    "pool ceil that divides": ("N,2,4,6 N,2,2,3", f"{POOL},ceil_mode=1>(z)", [AvgPool2d]),
    "pool signal": ("N,2,8 N,2,4", "y=AveragePool<kernel_shape=[2],strides=[2]>(z)", [Conv1d]),
    "global": ("N,2,4,2 N,2,1,1", "y=GlobalAveragePool(z)", [AvgPool2d]),
    "global signal": ("N,2,4 N,2,1", "y=GlobalAveragePool(z)", [Conv1d]),
    "global of a point": ("N,2,1,1 N,2,1,1", "y=GlobalAveragePool(z)", []),
    "mean": ("N,2,4,2 N,2,1,1", "y=ReduceMean<axes=[2,3]>(z)", [AvgPool2d]),
    "mean flattened": ("N,2,4,2 N,2", "y=ReduceMean<axes=[-1,2],keepdims=0>(z)", [AvgPool2d, Flatten]),
    "squeeze": (
        "N,2,4,2 N,2",
        "k=Constant<value_ints=[2,3]>() a=GlobalAveragePool(z) y=Squeeze(a,k)",
        [AvgPool2d, Flatten],
    ),
    "flatten": ("N,2,2,1 N,2", "a=Flatten<axis=-3>(z) y=MatMul(a,f)", [Flatten, Linear]),
    "reshape": ("N,2,2,1 N,2", "k=Constant<value_ints=[0,-1]>() a=Reshape(z,k) y=MatMul(a,f)", [Flatten, Linear]),
    "reshape to what it is": ("N,2,2,1 N,2,2,1", "k=Constant<value_ints=[-1,2,2,1]>() y=Reshape(z,k)", []),
    "reshape, fixed batch": (
        "5,2,2,1 5,2",
        "k=Constant<value_ints=[5,4]>() a=Reshape(z,k) y=MatMul(a,f)",
        [Flatten, Linear],
    ),
    "reshape, computed": (
        "N,2,2,1 N,2",
        """i=Constant<value_int=0>() j=Constant<value_int=1>() k=Constant<value_ints=[0]>() e=Constant<value_ints=[2]>()
        pp=Constant<value_ints=[4]>() ss=Shape(z) bb=Gather(ss,i) cc=Gather(ss,j) qq=Slice(ss,e,pp)
        mm=Mul(cc,cc) uu=Unsqueeze(bb,k) vv=Unsqueeze(mm,k) o=Concat<axis=0>(uu,vv) a=Reshape(z,o) y=MatMul(a,f)""",
        [Flatten, Linear],
    ),
    "there and back": (
        "N,2,2,1 N,2,2,1",
        "a=Transpose<perm=[1,3,2,0]>(z) e=Identity(a) k=Shape(e) g=Reshape(e,k) y=Transpose<perm=[3,0,2,1]>(g)",
        [],
    ),
    "channels": (
        "N,4,2,1 N,3,2,1",
        "k=Constant<value_ints=[1,3]>() a,e=Split<axis=1>(z,k) i=Constant<value_ints=[2,0,1]>() y=Gather<axis=1>(e,i)",
        [Conv2d],
    ),
    "concat": ("N,2,2,1 N,4,2,1", "y=Concat<axis=-3>(z,z)", [Concat]),
    "concat of one": ("N,2,2,1 N,2,2,1", "y=Concat<axis=1>(z)", []),
    "batch norm": ("N,3 N,3", "y=BatchNormalization<epsilon=0.0>(z,s,b,t,u)", [BatchNorm]),
    "dropout": ("N,3 N,3", "y,mask=Dropout(z)", []),
    "cast": ("N,3 N,3", "y=Cast<to=1>(z)", []),
    "dead ends": ("N,3 N,3", "y=Identity(z) a=Sigmoid(z) e=Relu(a)", []),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_give_what_the_runtime_gives(name, tmp_path):
    shapes, body, expected = OPERATORS[name]
    x, y = (f"float[{shape}]" for shape in shapes.split())
    build(spike("x", "z") + body, x=f"{x} x", y=f"{y} y", path=tmp_path / "m.onnx", extra=EXTRA)
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift, *expected]
    images = networks.dyadic_images(5 if x.startswith("float[5") else 3, graph.input.shape) * 4
    np.testing.assert_array_equal(evaluated(graph, images), runtime(tmp_path / "m.onnx", images))


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_other_float_types_are_converted(kind, tmp_path):
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    model = build(spike("x", "z") + "y=Gemm(z,w,b)", y="float[N,3] y", extra=EXTRA)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = number
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    graph = capture(tmp_path / "m.onnx")
    assert graph.output.weight.tolist() == [[1, 4, 7, 1], [2, 5, 8, 2], [3, 6, 9, 3]]


def test_bfloat16_is_converted_and_constants_are_cast_like_others(tmp_path):
    model = build("k=CastLike(c,w) e=CastLike(c,x) a=Mul(x,k) g=Div(a,e)" + spike("g", "z") + "y=Gemm(z,w,b)",
                  y="float[N,3] y", extra=EXTRA)  # fmt: skip
    initializer(model).CopyFrom(TensorProto(name="w", data_type=16, dims=[4, 3], raw_data=b"\x80\x3f" * 12))
    onnx.save(model, tmp_path / "m.onnx")
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift, Linear]
    assert graph.output.weight.tolist() == [[1.0] * 4] * 3


def test_only_one_and_two_dimensions(tmp_path):
    for body, says in (("y=GlobalAveragePool(z)", "pools over 3 dim"), ("y=Conv(z,w)", "a convolution over 3 dim")):
        build(
            spike("x", "z") + body,
            x="float[N,1,2,2,2] x",
            y="float[N,1,a,b,c] y",
            path=tmp_path / "m.onnx",
            extra="<float[1,1,1,1,1] w={1}>",
        )
        assert says in refusal(tmp_path / "m.onnx")


def test_external_data_beside_the_model_is_read(tmp_path):
    model, shape = networks.mlp()
    path = export(model, shape, tmp_path / "m.onnx", "dynamo")
    loaded = onnx.load(path)
    onnx.save(loaded, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size > 0
    assert_same(capture(tmp_path / "outside.onnx"), capture(path), names=True)


# What is refused


def refusal(path, error=ConversionError):
    with pytest.raises(error) as caught:
        capture(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ("l=3.5", "L must be a whole number of at least 1, got 3.5"),
        ("l=0.5", "L must be a whole number of at least 1"),
        ("h=0.25", "exactly 1/2"),
        ("h=0.5000001", "exactly 1/2"),
        ("t=-2", "λ must be positive, got -2"),
        ("o=-1", "clipped at -1 below"),
        ("o=0.25", "clipped at 0.25 below"),
        ("t=nan", "1 values that are NaN or infinite"),
        ("t=0", "divides by zero"),
        ("o=nan", "must be one number"),
        ("o=2", "clips between 2 and 1"),
        ("l=1e9", "whole number"),
    ],
)
@pytest.mark.parametrize("form", ["paper", "authors"])
def test_constants_that_are_not_those_of_qcfs(form, changes, says, tmp_path):
    values, body = FORMS[form]
    values = dict(pair.split("=") for pair in f"{values} {changes}".split())
    model = build(body, extra="<" + ",".join(f"float {name}={{0}}" for name in values) + ">")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.float32(values[tensor.name]), tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    assert says in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("a=Floor(x) y=Clip(a,o,i)", "a (Floor): it floors, but QCFS adds exactly 1/2"),
        ("a=Add(x,h) y=Floor(a)", "is not clipped between 0 and λ"),
        ("a=Add(x,h) b=Floor(a) y=Clip(b,o)", "not clipped above"),
        ("a=Add(x,h) b=Floor(a) y=Relu(b)", "not clipped above"),
        ("a=Add(x,h) b=Floor(a) y=Min(b,i)", "clipped at -inf below"),
        ("y=Clip(x,o,i)", "y (Clip): put a bridge.QCFS there"),
        ("a=Add(x,h) b=Floor(a) y=Sub(b,x)", "y (Sub): it subtracts one signal"),
        ("a=Add(x,h) b=Floor(a) y=Sub(b,a)", "not the output of a layer"),
        ("a=Add(x,h) b=Floor(a) c=Sub(b,a) y=Mul(c,h)", "difference of two signals"),
        ("a=Add(x,h) b=Floor(a) c=Sub(b,a) y=Add(c,b)", "difference of two signals"),
        ("a=Add(x,h) b=Round(a) y=Clip(b,o,i)", "b (Round): QCFS rounds with Floor"),
        ("y=Max(x,o,i)", "compares 3 tensors"),
        ("y=Div(i,x)", "divides by a signal"),
        ("y=Mul(x,x)", "a product of two signals"),
        ("y=Add(x,v)", "has shape [3]; expected one number"),
        ("y=Add(x,w)", "has shape [1, 1, 4]; expected one number"),
        ("y=Identity(x)", "has no QCFS activation"),
        ("y=Identity(o)", "not the output of a layer"),
        ("x0=Mul(x,h) " + " ".join(f"x{n + 1}=Mul(x{n},h)" for n in range(99)) + "y=Floor(x99)", "in a row"),
    ],
)
def test_what_looks_like_qcfs_and_is_not(body, says, tmp_path):
    extra = "<float h={0.5}, float o={0}, float i={1}, float[3] v={1,2,3}, float[1,1,4] w={1,2,3,4}>"
    build(body, path=tmp_path / "m.onnx", extra=extra)
    assert says in refusal(tmp_path / "m.onnx", BridgeError)


def test_every_offending_node_is_listed_with_what_to_use_instead(tmp_path):
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 4, 3, padding=1))
    model.add_module("act", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("block", nn.Sequential(nn.Sigmoid(), nn.LeakyReLU()))
    model.add_module("spike", QCFS(4))
    model.add_module("up", nn.ConvTranspose2d(4, 4, 2))
    model.add_module("softmax", nn.Softmax(1))
    message = refusal(export(model, (1, 8, 8), tmp_path / "m.onnx", "legacy"))
    lines = {line.split()[1]: line for line in message.splitlines()[1:]}
    assert set(lines) == {
        "/act/Relu",
        "/pool/MaxPool",
        "/block/block.0/Sigmoid",
        "/block/block.1/LeakyRelu",
        "/up/ConvTranspose",
        "/softmax/Softmax",
    }
    assert "replace_activations" in lines["/act/Relu"]
    assert "average pooling" in lines["/pool/MaxPool"]
    assert "QCFS" in lines["/block/block.0/Sigmoid"]
    assert "leave it out" in lines["/softmax/Softmax"]


def test_problems_of_layers_behind_a_refused_activation_are_listed_too(tmp_path):
    body = "a=Relu(x) k=MatMul(a,w) e=Sigmoid(k) j=MatMul(e,w) g=InstanceNormalization(j,b,b) y=Gemm(g,v)"
    build(body, path=tmp_path / "m.onnx", y="float[N,3] y", extra=EXTRA)
    message = refusal(tmp_path / "m.onnx")
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == [
        "  - a (Relu)",
        "  - e (Sigmoid)",
        "  - j (MatMul)",
        "  - g (InstanceNormalization)",
    ]


def test_stairs_that_are_not_as_high_as_wide(tmp_path):
    values, body = FORMS["paper"]
    build(constants(f"{values} k=5") + body.replace("y=Mul(f,t)", "y=Mul(f,k)"), path=tmp_path / "m.onnx")
    assert "d (Floor): its stairs are not as high as wide" in refusal(tmp_path / "m.onnx")
    # clipped first, the same is a QCFS with λ = 1 between two factors
    values, body = FORMS["authors"]
    build(constants(f"{values} k=5") + body.replace("y=Mul(f,t)", "y=Mul(f,k)"), path=tmp_path / "m.onnx")
    assert kinds(capture(tmp_path / "m.onnx")) == [Input, Scale, ClipFloorShift, Scale]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("y=Conv<pads=[1,1,2,2],group=2>(z,d)", "lopsided, [1, 1] before and [2, 2] after"),
        ('y=Conv<auto_pad="SAME_UPPER",strides=[2,2],group=2>(z,d)', "lopsided"),
        ("y=Conv<group=3>(z,d)", "do not divide into 3 groups"),
        ("y=Conv(z,d)", "expected a feature map of 1 channels"),
        ("y=Conv<kernel_shape=[2,2],group=2>(z,d)", "is not that of its weight"),
        ("y=Conv<strides=[0,1],group=2>(z,d)", "strides [0, 1]"),
        ("y=Conv<strides=[1],group=2>(z,d)", "strides [1]"),
        ("y=Conv<pads=[-1,0,-1,0],group=2>(z,d)", "padding NOTSET"),
        ('y=Conv<auto_pad="AROUND",group=2>(z,d)', "padding AROUND"),
        ("y=Conv<dilations=[9,9],group=2>(z,d)", "at least as large as"),
        ("y=Conv<pads=[99999999,99999999,99999999,99999999],group=2>(z,d)", "is larger than"),
        ("y=Conv<strides=[1.5,1.0],group=2>(z,d)", "malformed"),
        ("y=Conv<colour=3,group=2>(z,d)", "malformed"),
        ("y=Conv(z)", "malformed"),
        ("y=Conv(z,z)", "computed from the data"),
        ("y=Conv(w,w)", "is a constant, expected data"),
        ("y=Conv(z,q)", "over 0 dimensions"),
        ("y=Conv(z,w,q)", "bias has shape [2, 3], expected [2]"),
        ("y=Gemm(z,f)", "flatten feature maps first"),
        ("a=Flatten(z) y=Gemm<transA=1>(a,f)", "transA"),
        ("a=Flatten(z) y=Gemm(a,w)", "expected two dimensions"),
        ("a=Flatten(z) y=Gemm(a,q)", "expected an input of shape (2,)"),
        ("a=Flatten(z) y=MatMul(q,a)", "is a constant, expected data"),
        ("a=Flatten(z) y=MatMul(a,w)", "only a matrix"),
        ("y=AveragePool<kernel_shape=[2,2],pads=[1,1,1,1]>(z)", "count_include_pad"),
        ("y=AveragePool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>(z)", "ceil_mode"),
        ("y=AveragePool<kernel_shape=[9,9]>(z)", "at least as large as"),
        ("y=AveragePool<kernel_shape=[2]>(z)", "does not slide"),
        ("y=AveragePool(z)", "malformed"),
        ("y=ReduceMean<axes=[1]>(z)", "mean over all dimensions of space"),
        ("y=ReduceMean(z)", "mean over all dimensions of space"),
        ("y=ReduceMean<axes=[2,2,3]>(z)", "do not fit 4 dimensions"),
        ("y=ReduceMean<axes=[2,7]>(z)", "do not fit 4 dimensions"),
        ("y=Flatten<axis=2>(z)", "by more than flattening"),
        ("k=Constant<value_ints=[1,-1]>() y=Reshape(z,k)", "by more than flattening"),
        ("k=Constant<value_ints=[0,4,8]>() y=Reshape(z,k)", "by more than flattening"),
        ("k=Constant<value_ints=[0,5]>() y=Reshape(z,k)", "does not fit its input"),
        ("k=Constant<value_ints=[-1,-1]>() y=Reshape(z,k)", "does not fit its input"),
        ("k=Constant<value_ints=[-1,0]>() y=Reshape(z,k)", "by more than flattening"),
        ("k=Constant<value_floats=[0.0,32.0]>() y=Reshape(z,k)", "short list of integers"),
        ("k=Shape(z) l0=Mul(k,k) y=Reshape(z,l0)", "does not fit its input"),
        ("s=Shape(z) i=Constant<value_ints=[0,1]>() g=Gather(s,i) p=ReduceProd(g) y=Reshape(z,p)", "p (ReduceProd)"),
        ("s=Shape(z) i=Constant<value_ints=[9]>() g=Gather(s,i) y=Reshape(z,g)", "its operands do not fit"),
        ("y=Transpose<perm=[0,1,3,2]>(z)", "by more than flattening"),
        ("k=Constant<value_ints=[0]>() y=Squeeze(z,k)", "its operands do not fit"),
        (
            "k=Constant<value_ints=[0,-1,2,4]>() a=Reshape(z,k) y=Conv(a,w)",
            "what a (Reshape) hands it: [B, 2, 4, 4] became",
        ),
        ("k=Constant<value_ints=[2,-1]>() y=Reshape(z,k)", "by more than flattening"),
        ("k=Constant<value_ints=[1,2]>() a,e=Split<axis=1>(z,k) y=Add(a,e)", "its operands do not fit"),
        ("k=Constant<value_ints=[0]>() e=ReduceSum(z,k) y=Gather(z,e)", "e (ReduceSum)"),
        ("y=Gather(z,z)", "where it moves data depends on the data"),
        ("y=Gather(b,z)", "is a constant, expected data"),
        (
            "k=Shape(z) i=Constant<value_ints=[0]>() e=Gather(k,i) g=Sub(e,two) one1=Constant<value_ints=[1]>() "
            "y=Slice(z,g,two,one1)",
            "what y (Slice) hands it depends on the batch size",
        ),
        ("a=Flatten(z) y=Gemm(a,r,q)", "its bias has shape [2, 3], expected [4]"),
        ("a=Flatten(z) y=GlobalAveragePool(a)", "its input has none"),
        ("k=Constant<value_int=1,value_float=1.0>() y=Mul(z,k)", "expected one attribute"),
        ("k=Cast<to=8>(b) y=Mul(z,k)", "it casts to STRING"),
        ("a=Mul(z,huge) e=Mul(a,huge) y=Relu(e)", "y (Relu): put a bridge.QCFS there"),
        ("a=Mul(z,huge) y=Mul(a,huge)", "multiply to NaN or infinity"),
        ("y=Concat<axis=2>(z,z)", "along axis 2"),
        ("y=Concat<axis=1>(z,w)", "is a constant, expected data"),
        ("y=BatchNormalization<training_mode=1>(z,b,b,b,b)", "inference"),
        ("y=BatchNormalization(z,b,b,b,n)", "must be positive together"),
        ("y=BatchNormalization(z,b,b,b,t)", "variance has shape [3], expected [2]"),
        ("t1=Constant<value=bool{1}>() y=Dropout(z,,t1)", "drops at inference"),
        ("y=Cast<to=10>(z)", "casts to FLOAT16"),
        ("a=Flatten(z) y=Add(z,a)", "expected two inputs of one shape"),
        ('k=Constant<value_string="a">() y=Add(z,k)', "given as value_string"),
        (
            "s=Shape(z) f0=Cast<to=1>(s) i=Constant<value_int=0>() g=Gather(f0,i) y=Mul(z,g)",
            "depends on the batch size",
        ),
        ("k=Constant<value_ints=[1,2]>() y=Mul(z,k)", "holds int64, expected floats"),
        ("a=com.custom.Thing(z) y=Identity(a)", "an operator of com.custom"),
        ("y=NoSuchOperator(z)", "y (NoSuchOperator): not supported; supported are Conv"),
        ("y=Pad(z,b)", "use padding of a convolution"),
    ],
)
def test_options_without_a_spiking_form(body, says, tmp_path):
    extra = """<
        float[2,2,1,1] w={1,2,3,4}, float[2,1,3,3] d={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[2,3] q={1,2,3,4,5,6},
        float[2,1] f={1,2}, float[2] b={1,2}, float[3] t={1,2,3}, float[2] n={-1,-2},
        int64[1] two={2}, double huge={1e200},
        float[32,4] r={RRR}
    >"""
    extra = extra.replace("RRR", ",".join("1" * 128))
    model = build(spike("x", "z") + body, x="float[N,2,4,4] x", y="float[N,2,4,4] y", extra=extra)
    onnx.save(model, tmp_path / "m.onnx")
    assert says in refusal(tmp_path / "m.onnx", BridgeError)


# Broken files


def good():
    return build(spike("x", "z") + "y=Gemm(z,w,b)", y="float[N,3] y", extra=EXTRA)


def initializer(model, name="w"):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def truncated(model):
    return model.SerializeToString()[:-40]


def no_file_format(model):
    return b"this is no ONNX file, but some text that is long enough to be one"


def a_pickle(model):
    return pickle.dumps({"state_dict": [1, 2, 3]})


def empty(model):
    return b""


def no_nodes(model):
    del model.graph.node[:]


def no_opset(model):
    del model.opset_import[:]


def opset_of_the_future(model):
    model.opset_import[0].version = 9999


def opset_of_the_past(model):
    model.opset_import[0].version = 1


def second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 2]))


def no_input(model):
    del model.graph.input[:]


def second_output(model):
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))


def output_from_nowhere(model):
    model.graph.output[0].name = "nowhere"


def wrong_output_shape(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def input_of_integers(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def input_of_a_type_that_is_none(model):
    model.graph.input[0].type.tensor_type.elem_type = 1234


def input_that_is_a_sequence(model):
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def input_without_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def symbolic_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"


def negative_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -4


def huge_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**60


def wrong_input_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def missing_initializer(model):
    model.graph.initializer.remove(initializer(model))


def twice_the_same_initializer(model):
    model.graph.initializer.append(initializer(model))


def dangling_edge(model):
    model.graph.node[-1].input[0] = "gone"


def cycle(model):
    next(node for node in model.graph.node if node.op_type == "Add").input[1] = "sc"


def not_in_order(model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def given_twice(model):
    model.graph.node[-2].output[0] = "sa"


def node_without_output(model):
    del model.graph.node[-1].output[:]


def too_many_inputs(model):
    model.graph.node[-1].input.extend(["b"] * 5)


def attribute_of_another_type(model):
    model.graph.node[-1].attribute.append(helper.make_attribute("alpha", "a lot"))


def attribute_without_type(model):
    model.graph.node[-1].attribute.append(onnx.AttributeProto(name="alpha", f=1.0))


def attribute_that_refers(model):
    model.graph.node[-1].attribute.append(onnx.AttributeProto(name="alpha", type=1, ref_attr_name="beta"))


def name_that_is_not_text(model):
    return model.SerializeToString().replace(b"sa", b"\xff\xfe")


def weights_of_strings(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.STRING, [4, 3], [b"a"] * 12))


def weights_of_integers(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.INT64, [4, 3], [1] * 12))


def weights_of_complex_numbers(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.COMPLEX64, [4, 3], [1j] * 12))


def weights_of_no_type(model):
    initializer(model).data_type = 0


def weights_of_an_unknown_type(model):
    initializer(model).data_type = 99


def weights_that_are_not_finite(model):
    initializer(model).CopyFrom(numpy_helper.from_array(np.full((4, 3), np.nan, np.float32), "w"))


def weights_beyond_float32(model):
    initializer(model).CopyFrom(numpy_helper.from_array(np.full((4, 3), 1e300), "w"))


def bias_that_is_infinite(model):
    initializer(model, "b").CopyFrom(numpy_helper.from_array(np.array([1, np.inf, 2], np.float32), "b"))


def weights_of_another_shape(model):
    initializer(model).CopyFrom(numpy_helper.from_array(np.ones((5, 3), np.float32), "w"))


def weights_with_too_little_data(model):
    tensor = initializer(model)
    tensor.CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 3], raw_data=b"\0" * 44))


def weights_with_too_much_data(model):
    initializer(model).CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 3], raw_data=b"\0" * 52))


def weights_of_half_a_number(model):
    initializer(model).CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 3], raw_data=b"\0" * 47))


def weights_that_declare_a_huge_size(model):
    initializer(model).CopyFrom(TensorProto(name="w", data_type=1, dims=[2**40, 2**20], raw_data=b"\0" * 48))


def weights_with_a_negative_size(model):
    initializer(model).CopyFrom(TensorProto(name="w", data_type=1, dims=[-1, 3], raw_data=b"\0" * 48))


def weights_without_dimensions(model):
    initializer(model).CopyFrom(TensorProto(name="w", data_type=1, dims=[0, 3], raw_data=b""))


def weights_that_are_sparse(model):
    values = TensorProto(name="s", data_type=1, dims=[1], float_data=[1.0])
    index = TensorProto(data_type=7, dims=[1], int64_data=[3])
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=index, dims=[2**40]))


def standard_operator_redefined(model):
    model.functions.append(onnx.FunctionProto(domain="", name="Gemm"))


def subgraph(model):
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("If", ["z"], ["chosen"], name="choice", then_branch=body, else_branch=body)
    model.graph.node[-1].input[0] = "chosen"
    model.graph.node.insert(len(model.graph.node) - 1, node)


def external(model, location, **more):
    tensor = initializer(model)
    entries = {"location": location, **more}
    tensor.CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 3], data_location=TensorProto.EXTERNAL))
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def constant_that_grows(model):
    """Each node doubles the constant of the one before it: 2**60 numbers."""
    nodes = [helper.make_node("Concat", ["b", "b"], ["g0"], axis=0)]
    nodes += [helper.make_node("Concat", [f"g{n}"] * 2, [f"g{n + 1}"], axis=0) for n in range(60)]
    model.graph.node[-1].input[2] = "g60"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant_that_is_expanded(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**40, 3]), "size"))
    model.graph.node.insert(0, helper.make_node("Expand", ["b", "size"], ["e"]))
    model.graph.node[-1].input[2] = "e"


def weights_used_over_and_over(model):
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4000, 4000), np.float32), "big"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4000
    del model.graph.node[-1]
    for n in range(200):
        model.graph.node.append(helper.make_node("MatMul", [f"m{n - 1}" if n else "z", "big"], [f"m{n}"]))
    model.graph.output[0].name = "m199"


BROKEN = {
    truncated: "damaged, or not an ONNX file",
    no_file_format: "damaged, or not an ONNX file",
    a_pickle: "not an ONNX|no ONNX",
    empty: "no ONNX graph",
    no_nodes: "no ONNX graph",
    no_opset: "one version of the standard operators",
    opset_of_the_future: "opset 9999 is not supported",
    opset_of_the_past: "opset 1 is not supported",
    second_input: "exactly one input; the file has x, more",
    no_input: "exactly one input; the file has none",
    second_output: "exactly one output; the file has y, z",
    output_from_nowhere: "nowhere is not computed from the input",
    wrong_output_shape: r"is declared as \[N, 5\], but is \[B, 3\]",
    input_of_integers: "a tensor of floats, got INT64",
    input_of_a_type_that_is_none: "a tensor of floats, got type 1234",
    input_that_is_a_sequence: "a tensor of floats",
    input_without_shape: "expected a shape",
    symbolic_size: r"only the batch size may be symbolic, got \[N, width\]",
    negative_size: "only the batch size may be symbolic",
    huge_input: "is larger than",
    wrong_input_size: r"expected an input of shape \(4,\)",
    missing_initializer: "reads w, which nothing gives",
    twice_the_same_initializer: "the same name",
    dangling_edge: "reads gone, which nothing gives",
    cycle: "only a later node gives: a cycle",
    not_in_order: "only a later node gives",
    given_twice: "which exists already",
    node_without_output: "no output",
    too_many_inputs: "malformed",
    attribute_of_another_type: "malformed",
    attribute_without_type: "malformed",
    attribute_that_refers: "malformed",
    name_that_is_not_text: "not text",
    weights_of_strings: "holds STRING; expected numbers",
    weights_of_integers: "holds int64, expected floats",
    weights_of_complex_numbers: "holds COMPLEX64; expected numbers",
    weights_of_no_type: "holds UNDEFINED; expected numbers",
    weights_of_an_unknown_type: "holds type 99; expected numbers",
    weights_that_are_not_finite: "w holds 12 values that are NaN or infinite",
    weights_beyond_float32: "w holds 12 values that are NaN or infinite",
    bias_that_is_infinite: "b holds 1 values that are NaN or infinite",
    weights_of_another_shape: r"expected an input of shape \(5,\)",
    weights_with_too_little_data: "does not fit its shape",
    weights_with_too_much_data: "does not fit its shape",
    weights_of_half_a_number: "does not fit its shape",
    weights_that_declare_a_huge_size: "does not fit its shape",
    weights_with_a_negative_size: "negative size",
    weights_without_dimensions: "is empty",
    weights_that_are_sparse: "sparse",
    standard_operator_redefined: "redefined standard operators",
    subgraph: r"choice \(If\): it depends on the data",
    constant_that_grows: "far more memory",
    constant_that_is_expanded: "far more memory",
    weights_used_over_and_over: "far more memory",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_broken_files_are_refused_with_a_reason(damage, tmp_path):
    model = good()
    damaged = damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString() if damaged is None else damaged)
    start = time.monotonic()
    with pytest.raises((ConversionError, GraphError), match=BROKEN[damage]):
        capture(tmp_path / "m.onnx")
    assert time.monotonic() - start < 20


def test_files_with_very_many_nodes_do_not_take_forever(tmp_path):
    count = 5000
    nodes = [
        helper.make_node("MatMul", [f"m{at - 1}" if at else "x", "i"], [f"m{at}"], name="same") for at in range(count)
    ]
    model = build("y=Identity(x)", extra="<float[4,4] i={1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}>")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = f"m{count - 1}"
    onnx.save(model, tmp_path / "m.onnx")
    start = time.monotonic()
    assert "has no QCFS activation" in refusal(tmp_path / "m.onnx")
    assert time.monotonic() - start < 20


def test_files_that_are_not_there(tmp_path):
    assert "no such file" in refusal(tmp_path / "m.onnx", GraphError)
    assert "not a file" in refusal(tmp_path, GraphError)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a file" in refusal(tmp_path / "pipe.onnx", GraphError)


@pytest.mark.parametrize(
    ("location", "more", "says"),
    [
        ("../secret.bin", {}, "outside the model's folder"),
        ("sub/../../secret.bin", {}, "outside the model's folder"),
        ("{folder}/../secret.bin", {}, "outside the model's folder"),
        ("{folder}/inside.bin", {}, "outside the model's folder"),
        ("link.bin", {}, "outside the model's folder"),
        ("/dev/zero", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("gone.bin", {}, "not a file beside the model"),
        ("pipe.bin", {}, "not a file beside the model"),
        ("sub", {}, "not a file beside the model"),
        ("inside.bin", {}, "takes 64 bytes, expected 48"),
        ("inside.bin", {"offset": 16}, None),
        ("inside.bin", {"length": 2**60}, "expected 48"),
        ("inside.bin", {"offset": 2**60}, "expected 48"),
        ("inside.bin", {"offset": 2**60, "length": 48}, "cannot be read"),
        ("inside.bin", {"offset": -4, "length": 48}, "cannot be read"),
        ("inside.bin", {"length": "many"}, "cannot be read"),
        ("inside.bin", {"length": 44}, "takes 44 bytes, expected 48"),
        ("inside.bin", {"length": 48}, None),
    ],
)
def test_external_data_stays_in_the_folder(location, more, says, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret.bin", folder / "inside.bin"):
        file.write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(folder / "pipe.bin")
    model = good()
    external(model, location.format(folder=folder), **more)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    if says is None:
        first = more.get("offset", 0) // 4
        assert capture(folder / "m.onnx").output.weight[:, 0].tolist() == [first, first + 1, first + 2]
    else:
        assert says in refusal(folder / "m.onnx")


def test_a_constant_that_claims_to_be_external(tmp_path):
    model = build("k=Constant<value=float[4] {1,2,3,4}>() a=Mul(x,k)" + spike("a"), path=None)
    value = model.graph.node[0].attribute[0].t
    value.ClearField("float_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert "outside the model's folder" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_gives_another_error(seed, tmp_path):
    sources = []
    for number, graph in enumerate((every_kind(), every_kind_1d())):
        write(graph, tmp_path / f"{number}.onnx")
        sources.append((tmp_path / f"{number}.onnx").read_bytes())
    sources.append(good().SerializeToString())
    chance = random.Random(seed)
    path = tmp_path / "m.onnx"
    for _ in range(150):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(data))
            if chance.random() < 0.7:
                data[at] = chance.randrange(256)
            elif chance.random() < 0.5:
                del data[at : at + chance.randrange(1, 9)]
            else:
                data[at:at] = chance.randbytes(chance.randrange(1, 5))
        path.write_bytes(data)
        with contextlib.suppress(ConversionError, GraphError):
            assert isinstance(capture(path), LayerGraph)


def test_without_onnx_the_message_says_what_to_install(tmp_path, monkeypatch):
    build(spike("x"), path=tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    for attempt in (lambda: capture(tmp_path / "m.onnx"), lambda: write(every_kind(), tmp_path / "out.onnx")):
        with pytest.raises(BridgeError, match='pip install "onnx'):
            attempt()


def test_onnx_is_imported_only_when_it_is_used():
    files = "bridge.converters.onnx_files"
    code = f"import sys, bridge, {files}.writer, {files}.reader; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NAMES = ("graph", "input", "9 lives", "ärger", "class", "", "a.b/c", "\n", "x" * 5000, "graph", "graph_1")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_identifiers_and_unique(name, tmp_path):
    body = spike("x", "z") + "k=Gemm(z,w) j=Mul(k,b) e=Gemm<transB=1>(j,w) y=Gemm(e,w)"
    model = build(body, y="float[N,3] y", extra=EXTRA)
    for node in model.graph.node:
        node.name = name
    onnx.save(model, tmp_path / "m.onnx")
    names = [layer.name for layer in capture(tmp_path / "m.onnx")]
    assert len(set(names)) == len(names) == 6
    assert all(name.isidentifier() and not hasattr(torch.fx.GraphModule, name) for name in names)


def same_nir_up_to_names(one, other) -> None:
    """Both NIR graphs have the same nodes with the same parameters, joined by the same edges, whatever their names."""
    import nir

    def signature(node) -> tuple:
        values = {key: value for key, value in node.to_dict().items() if key not in ("metadata", "type")}
        arrays = tuple((key, np.asarray(value).tobytes()) for key, value in sorted(values.items()))
        return type(node).__name__, hash(arrays)

    def walk(graph: nir.NIRGraph) -> list:
        """Nodes from the input on, breadth first, each with its signature and those of what feeds it."""
        order, seen = ["input"], {"input"}
        for name in order:
            readers = sorted(
                (b for a, b in graph.edges if a == name and b not in seen), key=lambda b: signature(graph.nodes[b])
            )
            seen |= set(readers)
            order += readers
        assert len(order) == len(graph.nodes)
        feeds = {name: sorted(signature(graph.nodes[a]) for a, b in graph.edges if b == name) for name in order}
        return [(signature(graph.nodes[name]), feeds[name]) for name in order]

    assert walk(one) == walk(other)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", networks.ALL)
def test_torch_to_onnx_to_nir_is_torch_to_nir(name, tmp_path):
    """Through torch's exporter, and through our own writer, to the same NIR graph and the same spikes."""
    import bridge

    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(2, shape)
    direct = bridge.convert(model, x)
    torch.onnx.export(model.eval(), (x,), tmp_path / "theirs.onnx", dynamo=True, dynamic_shapes=({0: "batch"},))
    direct.ann_to_onnx(tmp_path / "ours.onnx")
    for path in (tmp_path / "theirs.onnx", str(tmp_path / "ours.onnx")):
        again = bridge.convert(path)
        same_nir_up_to_names(again.to_nir(), direct.to_nir())
        expected, got = direct.run(x, 4), again.run(x, 4)
        np.testing.assert_array_equal(got.readout, expected.readout)


@pytest.mark.filterwarnings("ignore")
def test_a_zoo_network_there_and_back(tmp_path):
    import bridge
    from bridge.zoo import resnet20

    torch.manual_seed(0)
    x = torch.rand(3, 3, 32, 32)
    model = bridge.fit_thresholds(resnet20(levels=4).eval(), x)
    network = bridge.convert(model, x)
    network.ann_to_onnx(tmp_path / "ann.onnx")
    onnx.checker.check_model(str(tmp_path / "ann.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "ann.onnx"))
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, model(x).numpy(), rtol=1e-3, atol=1e-3)
    same_nir_up_to_names(bridge.convert(tmp_path / "ann.onnx").to_nir(), network.to_nir())
    network.save(tmp_path / "net.nir")
    with pytest.raises(ConversionError, match="holds spikes only"):
        bridge.load(tmp_path / "net.nir").ann_to_onnx(tmp_path / "none.onnx")
