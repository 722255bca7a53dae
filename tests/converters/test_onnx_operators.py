"""ONNX operators, against the runtime: what each of them becomes, and which of their options are refused and how."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support import layers, networks
from support.onnx_models import (
    EXPORTER_WARNINGS,
    EXTRA,
    build,
    evaluated,
    export,
    initializer,
    kinds,
    refusal,
    runtime,
    spike,
)
from torch import nn

from bridge import QCFS, BridgeError
from bridge.converters.onnx_files.capture import capture
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
    Layer,
    Linear,
)

pytestmark = EXPORTER_WARNINGS

POOL = "y=AveragePool<kernel_shape=[2,2],strides=[2,2]"
OPERATORS: dict[str, tuple[str, str, list[type[Layer]]]] = {
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
    assert layers.affine(graph, graph.output.name).weight.tolist() == [[1, 4, 7, 1], [2, 5, 8, 2], [3, 6, 9, 3]]


def test_bfloat16_is_converted_and_constants_are_cast_like_others(tmp_path):
    model = build("k=CastLike(c,w) e=CastLike(c,x) a=Mul(x,k) g=Div(a,e)" + spike("g", "z") + "y=Gemm(z,w,b)",
                  y="float[N,3] y", extra=EXTRA)  # fmt: skip
    initializer(model).CopyFrom(TensorProto(name="w", data_type=16, dims=[4, 3], raw_data=b"\x80\x3f" * 12))
    onnx.save(model, tmp_path / "m.onnx")
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift, Linear]
    assert layers.affine(graph, graph.output.name).weight.tolist() == [[1.0] * 4] * 3


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


@pytest.mark.parametrize(
    ("body", "says"),
    [
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
        ("a=Flatten(z) y=MatMul(q,a)", "its operands do not fit"),
        ("a=Flatten(z) y=MatMul(a,w)", "its operands do not fit"),
        ("y=AveragePool<kernel_shape=[1,1],pads=[1,1,1,1]>(z)", "nothing but padding"),
        ("y=AveragePool<kernel_shape=[9,9]>(z)", "at least as large as"),
        ("y=AveragePool<kernel_shape=[2]>(z)", "does not slide"),
        ("y=AveragePool(z)", "malformed"),
        ("y=ReduceMean(z)", "it mixes the images of a batch"),
        ("y=ReduceMean<axes=[1,2,3],keepdims=0>(z)", "it leaves nothing but a number for each image"),
        ("y=ReduceMean<axes=[2,2,3]>(z)", "do not fit 4 dimensions"),
        ("y=ReduceMean<axes=[2,7]>(z)", "do not fit 4 dimensions"),
        ("y=Flatten<axis=2>(z)", "it mixes the images of a batch"),
        ("k=Constant<value_ints=[1,-1]>() y=Reshape(z,k)", "it mixes the images of a batch"),
        ("k=Constant<value_ints=[0,4,8]>() y=Reshape(z,k)", "became [B, 4, 8]: no NIR node turns"),
        ("k=Constant<value_ints=[0,5]>() y=Reshape(z,k)", "does not fit its input"),
        ("k=Constant<value_ints=[-1,-1]>() y=Reshape(z,k)", "does not fit its input"),
        ("k=Constant<value_ints=[-1,0]>() y=Reshape(z,k)", "it mixes the images of a batch"),
        ("k=Constant<value_floats=[0.0,32.0]>() y=Reshape(z,k)", "short list of integers"),
        ("k=Shape(z) l0=Mul(k,k) y=Reshape(z,l0)", "does not fit its input"),
        ("s=Shape(z) i=Constant<value_ints=[0,1]>() g=Gather(s,i) p=ReduceProd(g) y=Reshape(z,p)", "p (ReduceProd)"),
        ("s=Shape(z) i=Constant<value_ints=[9]>() g=Gather(s,i) y=Reshape(z,g)", "its operands do not fit"),
        ("y=Transpose<perm=[0,1,3,2]>(z)", "no NIR node turns or mirrors a map"),
        ("k=Constant<value_ints=[0]>() y=Squeeze(z,k)", "its operands do not fit"),
        (
            "k=Constant<value_ints=[0,-1,8,4]>() a=Reshape(z,k) y=Conv(a,w)",
            "what a (Reshape) hands it: [B, 2, 4, 4] became [B, 1, 8, 4]: no NIR node enlarges a map",
        ),
        ("k=Constant<value_ints=[2,2,4,4]>() y=Reshape(z,k)", "with 3 images; with 2 it can be converted"),
        ("k=Constant<value_ints=[1,2]>() a,e=Split<axis=1>(z,k) y=Add(a,e)", "its operands do not fit"),
        ("k=Constant<value_ints=[0]>() e=ReduceSum(z,k) y=Gather(z,e)", "e (ReduceSum)"),
        ("y=Gather(z,z)", "where it moves data depends on the data"),
        ("y=Gather(b,z)", "is a constant, expected data"),
        (
            "k=Shape(z) i=Constant<value_ints=[0]>() e=Gather(k,i) g=Sub(e,two) one1=Constant<value_ints=[1]>() "
            "y=Slice(z,g,two,one1)",
            "with 3 images; with 2 it can be converted",
        ),
        ("a=Flatten(z) y=Gemm(a,r,q)", "its bias has shape [2, 3], expected [4]"),
        ("a=Flatten(z) y=GlobalAveragePool(a)", "its input has none"),
        ("k=Constant<value_int=1,value_float=1.0>() y=Mul(z,k)", "expected one attribute"),
        ("k=Cast<to=8>(b) y=Mul(z,k)", "it casts to STRING"),
        ("a=Mul(z,huge) e=Mul(a,huge) y=Relu(e)", "y (Relu): put a bridge.QCFS there"),
        ("a=Mul(z,huge) y=Mul(a,huge)", "multiply to NaN or infinity"),
        ("y=Concat<axis=1>(z,w)", "its operands do not fit"),
        ("y=BatchNormalization<training_mode=1>(z,b,b,b,b)", "inference"),
        ("y=BatchNormalization(z,b,b,b,n)", "must be positive together"),
        ("y=BatchNormalization(z,b,b,b,t)", "variance has shape [3], expected [2]"),
        ("t1=Constant<value=bool{1}>() y=Dropout(z,,t1)", "drops at inference"),
        ("y=Cast<to=10>(z)", "casts to FLOAT16"),
        ("a=Flatten(z) y=Add(z,a)", "its operands do not fit"),
        ('k=Constant<value_string="a">() y=Add(z,k)', "given as value_string"),
        (
            "s=Shape(z) f0=Cast<to=1>(s) i=Constant<value_int=0>() g=Gather(f0,i) y=Mul(z,g)",
            "depends on the batch size",
        ),
        ("k=Constant<value_ints=[1,2]>() y=Mul(z,k)", "holds int64, expected floats"),
        ("a=com.custom.Thing(z) y=Identity(a)", "an operator of com.custom"),
        ("y=NoSuchOperator(z)", "y (NoSuchOperator): not supported; supported are Conv"),
        ("y=Pad(z,b)", "short list of integers"),
        ("y=Pad(z,two)", "its padding [2] does not fit 4 dimensions"),
        ('k=Constant<value_ints=[0,0,1,1,0,0,1,1]>() y=Pad<mode="reflect">(z,k)', "values of the map (reflect)"),
        ("k=Constant<value_ints=[0,0,1,1,0,0,1,1]>() y=Pad(w,z)", "where it moves data depends on the data"),
        ("k=Constant<value_ints=[1,1,2,2]>() y=Tile(z,k)", "no NIR node enlarges a map"),
        ("a=GlobalAveragePool(z) k=Shape(z) y=Expand(a,k)", "no NIR node enlarges a map"),
        ("a=GlobalAveragePool(z) y=Add(z,a)", "no NIR node enlarges a map"),
        ("a=Concat<axis=1>(z,z) y=DepthToSpace<blocksize=2>(a)", "no NIR node enlarges a map"),
        ("y=ConvTranspose(z,w)", "y (ConvTranspose): no NIR node enlarges a map"),
        ("y=Resize(z)", "y (Resize): no NIR node enlarges a map"),
        ("y=LayerNormalization(z,b,b)", "y (LayerNormalization): use BatchNorm"),
        ("k=Cast<to=9>(z) y=Where(k,z,z)", "it casts to BOOL"),
        ("y=Where(z,z,z)", "what it chooses depends on the data"),
        ("y=MatMul(z,z)", "a product of two signals"),
        ('y=Einsum<equation="bchw,bchw->bchw">(z,z)', "a product of two signals"),
        ('y=Einsum<equation="b...,c->b...c">(z,b)', "an ellipsis"),
        ('y=Einsum<equation="bchw,cd->bdhx">(z,f)', "its operands do not fit"),
        ("k=Constant<value_ints=[2,2,4,4]>() a=ConstantOfShape(k) y=Add(z,a)", "with 3 images; with 2 it can be"),
        ("k=Shape(z) a=ConstantOfShape<value=float[2] {1,2}>(k) y=Add(z,a)", "with 2 values"),
        ("k=Constant<value_ints=[1,1,2,4]>() e=Reshape(r,k) y=Mul(z,e)", "does not fit its input"),
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
