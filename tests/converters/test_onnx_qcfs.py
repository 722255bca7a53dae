"""QCFS in files written by hand: recognised by what it computes in whatever order, and what only looks like it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import layers, networks
from support.onnx_models import build, constants, evaluated, kinds, refusal, runtime, spike

from bridge import BridgeError
from bridge.converters.onnx_files.capture import capture
from bridge.graph import Add, BatchNorm, ClipFloorShift, Input, Linear, Scale

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
    output = layers.of_kind(graph, graph.output.name, ClipFloorShift)
    assert output.levels == 4
    assert output.threshold.tolist() == [2.0] * 4
    x = networks.dyadic_images(20, (4,)) * 4
    np.testing.assert_array_equal(evaluated(graph, x), runtime(tmp_path / "m.onnx", x))


def test_qcfs_with_clip_attributes_and_thresholds_as_initializers(tmp_path):
    body = "a=Mul(x,l) b=Div(a,t) c=Add(b,h) d=Floor(c) e=Div(d,l) f=Clip<min=0.0,max=1.0>(e) y=Mul(f,t)"
    extra = "<float[1] l={4}, float[1,4,1,1] t={1,2,4,0.5}, float h={0.5}>"
    build(body, x="float[N,4,2,2] x", y="float[N,4,2,2] y", opset=9, path=tmp_path / "m.onnx", extra=extra)
    graph = capture(tmp_path / "m.onnx")
    assert kinds(graph) == [Input, ClipFloorShift]
    assert layers.of_kind(graph, graph.output.name, ClipFloorShift).threshold.tolist() == [1, 2, 4, 0.5]


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
    usual, body = FORMS[form]
    values = dict(pair.split("=") for pair in f"{usual} {changes}".split())
    model = build(body, extra="<" + ",".join(f"float {name}={{0}}" for name in values) + ">")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.array(values[tensor.name], np.float32), tensor.name))
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
        ("a=Add(x,h) b=Floor(a) y=Sub(b,x)", "b (Floor): it floors, but is not clipped"),
        ("a=Add(x,h) b=Floor(a) y=Sub(b,a)", "not the output of a layer"),
        ("a=Add(x,h) b=Floor(a) c=Sub(b,a) y=Mul(c,h)", "difference of two signals"),
        ("a=Add(x,h) b=Floor(a) c=Sub(b,a) y=Add(c,b)", "difference of two signals"),
        ("a=Add(x,h) b=Round(a) y=Clip(b,o,i)", "b (Round): QCFS rounds with Floor"),
        ("y=Max(x,o,i)", "compares 3 tensors"),
        ("y=Div(i,x)", "divides by a signal"),
        ("y=Mul(x,x)", "a product of two signals"),
        ("y=Add(x,v)", "its operands do not fit"),
        ("y=Add(x,w)", "it mixes the images of a batch"),
        ("y=Identity(x)", "has no QCFS activation"),
        ("y=Identity(o)", "not the output of a layer"),
        ("x0=Mul(x,h) " + " ".join(f"x{n + 1}=Mul(x{n},h)" for n in range(99)) + "y=Floor(x99)", "in a row"),
    ],
)
def test_what_looks_like_qcfs_and_is_not(body, says, tmp_path):
    extra = "<float h={0.5}, float o={0}, float i={1}, float[3] v={1,2,3}, float[1,1,4] w={1,2,3,4}>"
    build(body, path=tmp_path / "m.onnx", extra=extra)
    assert says in refusal(tmp_path / "m.onnx", BridgeError)


def test_stairs_that_are_not_as_high_as_wide(tmp_path):
    values, body = FORMS["paper"]
    build(constants(f"{values} k=5") + body.replace("y=Mul(f,t)", "y=Mul(f,k)"), path=tmp_path / "m.onnx")
    assert "d (Floor): its stairs are not as high as wide" in refusal(tmp_path / "m.onnx")
    # clipped first, the same is a QCFS with λ = 1 between two factors
    values, body = FORMS["authors"]
    build(constants(f"{values} k=5") + body.replace("y=Mul(f,t)", "y=Mul(f,k)"), path=tmp_path / "m.onnx")
    assert kinds(capture(tmp_path / "m.onnx")) == [Input, Scale, ClipFloorShift, Scale]
