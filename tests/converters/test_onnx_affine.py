"""Every affine operation of ONNX, however it is written: ANN and spiking network give what the runtime gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from support import networks
from support.onnx_models import build, evaluated, refusal, runtime, spike

import bridge
from bridge.converters.onnx_files.capture import capture
from bridge.graph import AvgPool2d, Conv1d, Conv2d, LayerGraph, Scale

MAP, SQUARE, LINE, TOKENS, VECTOR = (2, 4, 6), (4, 4, 4), (2, 7), (5, 4), (12,)


def model_of(
    body: str, shape: tuple[int, ...], path: Path, tensors: dict[str, NDArray[Any]], before: str, opset: int
) -> Path:
    """A file with `body` from ``z`` to ``y``, behind what is `before`, and with `tensors` as initializers."""
    text = ",".join(("N", *map(str, shape)))
    source = "x" if before else "z"
    if opset < 11:  # limits were attributes
        before = before.replace("Clip (sq, zero, one)", "Clip<min=0.0,max=1.0>(sq)")
    model = build(before + body, x=f"float[{text}] {source}", y="float[N] y", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    onnx.save(model, path)
    return path


def dyadic(*shape: int) -> NDArray[np.float32]:
    result: NDArray[np.float32] = networks.dyadic_images(1, shape).numpy()[0] * 8 - 4
    return result


def spikes(x: NDArray[np.float32], steps: int) -> list[NDArray[np.float32]]:
    """λ times the spikes of each step of a neuron with λ = 2 whose input is `x`, as in the paper."""
    potential, result = np.ones_like(x), []
    for _ in range(steps):
        potential = potential + x
        fired = (potential >= 2).astype(np.float32)
        potential = potential - 2 * fired
        result.append(2 * fired)
    return result


def expect_same(
    body: str, shape: tuple[int, ...], folder: Path, tensors: dict[str, NDArray[Any]] | None = None, opset: int = 17
) -> LayerGraph:
    """The ANN in the file, once its outputs and the readouts of its spiking network were held against the runtime."""
    whole = model_of(body, shape, folder / "m.onnx", tensors or {}, spike("x", "z"), opset)
    alone = model_of(body, shape, folder / "alone.onnx", tensors or {}, "", opset)
    graph = capture(whole)
    x = networks.dyadic_images(5, shape).numpy() * 4
    expected = runtime(whole, x)
    np.testing.assert_allclose(evaluated(graph, x), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0
    readouts = bridge.convert(whole).run(torch.from_numpy(x), 4).readout
    np.testing.assert_allclose(readouts, [runtime(alone, each) for each in spikes(x, 4)], rtol=1e-5, atol=1e-5)
    return graph


CONSTANTS = {
    "one per channel": (2, 1, 1),
    "one per row": (4, 1),
    "one per position": (4, 6),
    "one for each": (2, 4, 6),
    "one of each image": (1, 2, 4, 6),
}


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("sizes", CONSTANTS.values(), ids=CONSTANTS)
def test_multiples(op, sizes, tmp_path):
    factor = np.resize(np.array([2, -0.5, 4, 1, -8], np.float32), sizes)
    expect_same(f"y={op}(z,k)", MAP, tmp_path, {"k": factor})


@pytest.mark.parametrize("sizes", CONSTANTS.values(), ids=CONSTANTS)
def test_terms_before_a_flattening(sizes, tmp_path):
    """Only a vector may have as many biases as values."""
    body = "a=Sub(k,z) b=Add(a,k) c=Add(z,b) y=Flatten(c)"
    expect_same(body, MAP, tmp_path, {"k": dyadic(*sizes)})
    body = body.replace("y=Flatten(c)", "y=Add(k,z)")
    message = (
        ""
        if np.prod(sizes) == 2
        else refusal(model_of(body, MAP, tmp_path / "n.onnx", {"k": dyadic(*sizes)}, spike("x", "z"), 17))
    )
    assert ("constants that differ between the positions" in message) == (np.prod(sizes) != 2)


BODIES: dict[str, tuple[str, tuple[int, ...]]] = {
    "sum of three": ("a=Mul(z,two) b=Neg(z) y=Sum(a,b,z,single)", MAP),
    "mean of three": ("a=Mul(z,two) b=Neg(z) y=Mean(a,b,z)", MAP),
    "sum of one": ("y=Sum(z)", MAP),
    "difference": ("a=Conv<kernel_shape=[1,1]>(z,m) y=Sub(z,a)", MAP),
    "difference from itself reversed": ("a=Slice(z,first,low,axis1,back) y=Sub(a,z)", VECTOR),
    "broadcast over channels": ("a,b=Split<axis=1>(z) y=Sub(z,b)", MAP),
    "split and joined the other way": ("a,b=Split<axis=1>(z) y=Concat<axis=1>(b,a,b)", MAP),
    "padded by channels": ("y=Pad(z,two_channels)", MAP),
    "joined along rows": ("y0=Concat<axis=2>(z,z) y=Flatten(y0)", MAP),
    "steps": ("y=Slice(z,low0,high0,axes,steps)", MAP),
    "channels backwards": ("y=Slice(z,first,low,axis1,back)", MAP),
    "mirrored before a convolution": ("a=Slice(z,first,low,axis3,back) y0=Conv(a,w) y=Flatten(y0)", MAP),
    "turned before a pool": (
        "a=Transpose<perm=[0,1,3,2]>(z) b=AveragePool<kernel_shape=[2,1],strides=[2,1]>(a) "
        "y=Transpose<perm=[0,1,3,2]>(b)",
        MAP,
    ),
    "gathered": ("y=Gather<axis=1>(z,order)", MAP),
    "gathered by coordinates": (
        "a=Transpose<perm=[1,2,0,3]>(z) b=GatherND(a,places) c=Transpose<perm=[1,0,2]>(b) y=Flatten(c)",
        MAP,
    ),
    "one channel": ("a=Gather<axis=1>(z,last) y=Flatten(a)", MAP),
    "space to depth": ("y=SpaceToDepth<blocksize=2>(z)", MAP),
    "space to depth, written out": (
        "a=Reshape(z,six) b=Transpose<perm=[0,1,3,5,2,4]>(a) y=Reshape(b,four)",
        MAP,
    ),
    "depth to space": ("a=DepthToSpace<blocksize=2>(z) y=Flatten(a)", SQUARE),
    "depth to space, by channels": ('a=DepthToSpace<blocksize=2,mode="CRD">(z) y=Flatten(a)', SQUARE),
    "there and back": ("a=DepthToSpace<blocksize=2>(z) y=SpaceToDepth<blocksize=2>(a)", SQUARE),
    "sums up to each": ("y=CumSum(z,axis1)", VECTOR),
    "patches side by side": (
        "a=Slice(z,low0,high0,axes,steps) b=Slice(z,low1,high0,axes,steps) c=Unsqueeze(a,axis5) d=Unsqueeze(b,axis5) "
        "e=Concat<axis=-1>(c,d) y=Flatten(e)",
        MAP,
    ),
    "computed weights": ("a=ReduceL2<axes=[1,2,3]>(w) b=Div(w,a) c=Conv(z,b) y=Flatten(c)", MAP),
    "computed indices": ("a=Range(start,stop,step) y=Gather<axis=3>(z,a)", MAP),
    "chosen by a mask": ("y=Where(mask,z,nothing)", MAP),
    "chosen among signals": ("a=Conv<kernel_shape=[1,1]>(z,m) y=Where(mask,z,a)", MAP),
    "repeated channels": ("y=Tile(z,repeats)", MAP),
    "expanded to what it is": ("y=Expand(z,same)", MAP),
    "mean over channels": ("y=ReduceMean<axes=[1]>(z)", MAP),
    "sum over rows": ("y0=ReduceSum(z,axis2) y=Flatten(y0)", MAP),
    "mean in steps": ("a=ReduceMean<axes=[3]>(z) y=ReduceMean<axes=[2,3],keepdims=0>(a)", MAP),
    "mean over all of an image": ("a=ReduceMean<axes=[1,2,3]>(z) y=Flatten(a)", MAP),
    "sum over space": ("y=ReduceSum<keepdims=0>(z,space)", MAP),
    "mean of a padded map": ("a=Pad(z,around) b=ReduceMean<axes=[3]>(a) y=Flatten(b)", MAP),
    "sum of repeated channels": ("a=Gather<axis=1>(z,order) b=ReduceSum(a,axis1) y=Flatten(b)", MAP),
    "mean of tokens": ("y=ReduceMean<axes=[1],keepdims=0>(z)", TOKENS),
    "mean over nothing": ("y=ReduceSum<noop_with_empty_axes=1>(z)", MAP),
    "tokens times a matrix": ("y0=MatMul(z,f) y=Flatten(y0)", TOKENS),
    "matrix times tokens": ("y0=MatMul(t,z) y=Flatten(y0)", TOKENS),
    "a matrix for each row": ("a=Unsqueeze(z,axis2) b=MatMul(a,each) y=Flatten(b)", TOKENS),
    "einsum over features": ('y0=Einsum<equation="bnc,cd->bnd">(z,f) y=Flatten(y0)', TOKENS),
    "einsum over tokens": ('y0=Einsum<equation="mn,bnc->bmc">(t,z) y=Flatten(y0)', TOKENS),
    "einsum of channels": ('y=Einsum<equation="bchw,dc->bdhw">(z,g)', MAP),
    "einsum of both": ('y=Einsum<equation="bnc,ncd->bd">(z,each)', TOKENS),
    "normalised tokens": ("a=BatchNormalization(z,five,five,five,positive) y=Flatten(a)", TOKENS),
    "patches as tokens": (
        "a=Conv<kernel_shape=[2,2],strides=[2,2]>(z,p) b=Reshape(a,sequence) c=Transpose<perm=[0,2,1]>(b) "
        "d=MatMul(c,f) e=Add(d,bias3) y=ReduceMean<axes=[1],keepdims=0>(e)",
        MAP,
    ),
    "squeezed": ("a=Unsqueeze(z,axis2) b=Squeeze(a,axis2) y=Neg(b)", VECTOR),
    "vector backwards": ("y=Slice(z,first,low,axis1,back)", VECTOR),
}
TENSORS: dict[str, NDArray[Any]] = {
    "two_channels": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "two": np.array(2, np.float32),
    "single": np.array(1, np.float32),
    "nothing": np.array(0, np.float32),
    "m": dyadic(2, 2, 1, 1),
    "w": dyadic(3, 2, 3, 3),
    "p": dyadic(4, 2, 2, 2),
    "f": dyadic(4, 3),
    "t": dyadic(6, 5),
    "g": dyadic(3, 2),
    "each": dyadic(5, 4, 3),
    "tokens": dyadic(5, 4),
    "bias3": dyadic(3),
    "five": dyadic(5),
    "positive": np.array([4, 1, 16, 0.25, 1], np.float32),
    "mask": dyadic(4, 6) > 0,
    **{name: np.array([value]) for name, value in (("axis1", 1), ("axis2", 2), ("axis3", 3), ("back", -1))},
    "first": np.array([-1]),
    "low": np.array([-(2**62)]),
    "low0": np.array([0, 1]),
    "high0": np.array([4, 2**62]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, 3]),
    "low1": np.array([0, 0]),
    "axis5": np.array([-1]),
    "start": np.array(1),
    "stop": np.array(6),
    "step": np.array(2),
    "places": np.array([[1, 0], [0, 3], [1, 2]]),
    "around": np.array([0, 0, 1, 0, 0, 0, 0, 1]),
    "order": np.array([1, 0, 1]),
    "last": np.array(-1),
    "six": np.array([0, 2, 2, 2, 3, 2]),
    "four": np.array([0, -1, 2, 3]),
    "sequence": np.array([0, 4, -1]),
    "repeats": np.array([1, 2, 1, 1]),
    "same": np.array([1, 1, 4, 6]),
    "space": np.array([2, 3]),
}


def used(body: str) -> dict[str, NDArray[Any]]:
    """Those of `TENSORS` that `body` names,."""
    return {
        name: array
        for name, array in TENSORS.items()
        if any(f"{mark}{name}{end}" in body for mark in "(," for end in ",)")
    }


@pytest.mark.parametrize("name", BODIES)
def test_sums_moves_and_matrices(name, tmp_path):
    body, shape = BODIES[name]
    expect_same(body, shape, tmp_path, used(body))


WINDOWS = {
    "MAP": ("kernel_shape=[2,3]", "kernel_shape=[3,3],strides=[2,2]", "kernel_shape=[4,2],strides=[3,2]"),
    "LINE": ("kernel_shape=[2]", "kernel_shape=[3],strides=[2]", "kernel_shape=[4],strides=[3]"),
}
PADDED = {
    "MAP": ("pads=[1,1,1,1]", "pads=[0,1,1,0]", "pads=[1,0,0,1]", 'auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"', ""),
    "LINE": ("pads=[1,1]", "pads=[0,1]", "pads=[1,0]", 'auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"', ""),
}
CASES = [(of, window, padded) for of in WINDOWS for window in WINDOWS[of] for padded in PADDED[of]]


@pytest.mark.parametrize("options", ["", "ceil_mode=1", "count_include_pad=1", "ceil_mode=1,count_include_pad=1"])
@pytest.mark.parametrize(("of", "window", "padded"), CASES)
def test_average_pools(of, window, padded, options, tmp_path):
    attributes = ",".join(filter(None, (window, padded, options)))
    expect_same(f"y=AveragePool<{attributes}>(z)", {"MAP": MAP, "LINE": LINE}[of], tmp_path)


@pytest.mark.parametrize("options", ["", "ceil_mode=1", "pads=[1,1,0,1]", "pads=[1,0,1,1],count_include_pad=1"])
def test_dilated_pools(options, tmp_path):
    attributes = ",".join(filter(None, ("kernel_shape=[2,2],strides=[1,2],dilations=[2,3]", options)))
    expect_same(f"y=AveragePool<{attributes}>(z)", (2, 5, 8), tmp_path, opset=19)


def test_what_an_average_pool_becomes(tmp_path):
    """A factor for each position, where windows hold different numbers of values, and a pool as NIR has it."""
    graph = expect_same("y=AveragePool<kernel_shape=[2,2],pads=[1,1,1,1]>(z)", MAP, tmp_path)
    pool, scale = graph.layers[-2:]
    assert isinstance(pool, AvgPool2d)
    assert isinstance(scale, Scale)
    assert scale.per_position
    assert scale.scale[0, 0].tolist() == [4, 2, 2, 2, 2, 2, 4]
    graph = expect_same("y=AveragePool<kernel_shape=[2,2],pads=[0,1,1,0],count_include_pad=1>(z)", MAP, tmp_path)
    assert isinstance(graph.output, Conv2d)
    graph = expect_same("y=AveragePool<kernel_shape=[2],pads=[1,0],count_include_pad=1>(z)", LINE, tmp_path)
    assert isinstance(graph.output, Conv1d)


@pytest.mark.parametrize(
    "options", ["", "strides=[2,1]", "dilations=[2,1]", "group=2", "strides=[1,2],dilations=[1,2]"]
)
@pytest.mark.parametrize("kernel", [(2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize("padded", PADDED["MAP"][1:-1])
def test_convolutions_with_more_padding_on_one_side(kernel, padded, options, tmp_path):
    if "auto_pad" in padded and "dilations" in options:
        padded = "pads=[2,0,1,3]"  # the runtime has no SAME with dilations
    weight, bias = dyadic(4, 1 if "group" in options else 2, *kernel), dyadic(4)
    attributes = ",".join(filter(None, (padded, options)))
    graph = expect_same(f"y=Conv<{attributes}>(z,w,b)", MAP, tmp_path, {"w": weight, "b": bias})
    assert [type(layer) for layer in graph.layers[2:]] == [Conv2d]


@pytest.mark.parametrize(
    ("pads", "shape", "tensors"),
    [
        ((0, 0, 1, 0, 0, 0, 0, 2), MAP, {}),
        ((0, 0, 0, 1, 0, 0, 2, 0), MAP, {"v": np.array(0, np.float32)}),
        ((0, 0, -1, 1, 0, 0, 0, -2), MAP, {}),
        ((0, 1, 0, 0, 1, 0), LINE, {}),
        ((0, 1, 0, 2), VECTOR, {"v": np.array(3, np.float32)}),
        ((1, 0), LINE, {"v": np.array(0, np.float32), "a": np.array([-1])}),
    ],
)
def test_pads(pads, shape, tensors, tmp_path):
    inputs = ",".join(("z", "p", *tensors))
    expect_same(f"y=Pad({inputs})", shape, tmp_path, {"p": np.array(pads), **tensors}, opset=18)


def test_old_pads(tmp_path):
    expect_same("y=Pad<pads=[0,0,1,0,0,0,0,2]>(z)", MAP, tmp_path, opset=10)


@pytest.mark.parametrize(
    ("body", "tensors", "says"),
    [
        ("y=Mul(z,k)", {"k": dyadic(3, 1, 1, 1)}, "y (Mul): its constants differ between the images"),
        ("a=Transpose<perm=[1,0,2,3]>(z) y=Mul(a,k)", {"k": dyadic(3, 1, 1)}, "y (Mul): its constants differ between"),
        (
            "a,b=Split<axis=3>(z) c=Gather<axis=3>(b,k) d=Concat<axis=2>(a,c) y=ReduceSum(d,axis)",
            {"k": np.array([0, 0, 2]), "axis": np.array([3])},
            "y (ReduceSum): it takes some values twice",
        ),
    ],
)
def test_what_differs_between_images_or_places(body, tensors, says, tmp_path):
    path = model_of(body, MAP, tmp_path / "m.onnx", tensors, spike("x", "z"), 17)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)
    assert says in refusal(path)


HUGE = 2**40
MEMORY, OUTPUT, MEASURED = (
    "far more memory than the file has data",
    "is larger than 134217728 numbers",
    "is not measured",
)


@pytest.mark.parametrize(
    ("body", "tensors", "says"),
    [
        ("y=Pad(z,k)", {"k": [0, 0, HUGE, 0, 0, 0, 0, HUGE]}, MEASURED),
        ("y=Tile(z,k)", {"k": [1, HUGE, 1, 1]}, MEMORY),
        ("y=Expand(z,k)", {"k": [10**9, 1, 1, 1, 1]}, MEMORY),
        ("a=Range(b,c,d) y=Gather<axis=1>(z,a)", {"b": 0, "c": HUGE, "d": 1}, MEMORY),
        ("a=ConstantOfShape(k) y=Add(z,a)", {"k": [2**20, 2**20]}, MEMORY),
        ('a=Einsum<equation="ab,cd->abcd">(k,k) y=Add(z,a)', {"k": np.ones((2000, 2000), np.float32)}, MEMORY),
        ("a=MatMul(k,b) y=Add(z,a)", {"k": np.ones((10**5, 1), np.float32), "b": np.ones((1, 10**5))}, MEMORY),
        ('y=Einsum<equation="nchw,dc->ndhw">(z,k)', {"k": np.ones((10**5, 2), np.float32)}, OUTPUT),
        (f"y=AveragePool<kernel_shape=[2,2],pads=[{HUGE},0,0,0]>(z)", {}, OUTPUT),
        (f"y=AveragePool<kernel_shape=[{HUGE},2],pads=[{HUGE},0,{HUGE},0]>(z)", {}, OUTPUT),
        ("y=Conv<pads=[0,0,10000,10000]>(z,k)", {"k": np.ones((8, 2, 1, 1), np.float32)}, OUTPUT),
        ("y=CumSum(z,k)", {"k": 1}, "more than 1024 values of an image"),
    ],
)
def test_what_would_take_too_much_is_refused_before_it_is_made(body, tensors, says, tmp_path):
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    path = model_of(body, (2, 64, 64), tmp_path / "m.onnx", arrays, spike("x", "z"), 18)
    start = time.monotonic()
    assert says in refusal(path, bridge.BridgeError)
    assert time.monotonic() - start < 10
