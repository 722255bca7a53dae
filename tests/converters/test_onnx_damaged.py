"""ONNX files that are broken, hostile or not there: each is refused with a reason, soon and without harm."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import layers
from support.onnx_models import EXTRA, build, every_kind, every_kind_1d, initializer, refusal, spike

from bridge import BridgeError, ConversionError
from bridge.converters.onnx_files.capture import capture
from bridge.converters.onnx_files.writer import write
from bridge.errors import GraphError
from bridge.graph import LayerGraph


def good():
    return build(spike("x", "z") + "y=Gemm(z,w,b)", y="float[N,3] y", extra=EXTRA)


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
    model.graph.node[-1].attribute.append(
        onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="beta")
    )


def name_that_is_not_text(model):
    return model.SerializeToString().replace(b"sa", b"\xff\xfe")


def weights_of_strings(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.STRING, [4, 3], [b"a"] * 12))  # type: ignore[list-item]


def weights_of_integers(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.INT64, [4, 3], [1] * 12))


def weights_of_complex_numbers(model):
    initializer(model).CopyFrom(helper.make_tensor("w", TensorProto.COMPLEX64, [4, 3], [1j] * 12))  # type: ignore[list-item]


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
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2000, 2000), np.float32), "big"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2000
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
        graph = capture(folder / "m.onnx")
        assert layers.affine(graph, graph.output.name).weight[:, 0].tolist() == [first, first + 1, first + 2]
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
