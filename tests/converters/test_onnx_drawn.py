"""ONNX graphs drawn at random: each is converted to what the runtime computes, or refused by the name of a node."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from support import networks
from support.onnx_models import build, evaluated, runtime, spike

from bridge import BridgeError
from bridge.converters.onnx_files.capture import capture

SHAPES = [(4, 4, 6), (2, 6, 4), (4, 8), (6, 5), (12,)]


class Drawn:
    """A model that grows by one drawn node after another, and the shape of what comes out of it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        text = ",".join(map(str, shape))
        self.model = build(spike("x", "t0"), x=f"float[N,{text}] x", y="float[N] y", opset=18)
        self.model.graph.output[0].type.tensor_type.ClearField("shape")
        self.model.graph.output[0].name = "t0"
        self.last, self.shape, self.older = "t0", shape, [("t0", shape)]
        self.count = 0

    def constant(self, array: NDArray[Any]) -> str:
        name = f"c{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> bool:
        """Add a node, if onnx finds no fault with it and the batch is first in what it gives."""
        self.count += 1
        name = f"t{self.count}"
        graph = self.model.graph
        graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        graph.output[0].name = name
        try:
            inferred = shape_inference.infer_shapes(self.model, strict_mode=True, data_prop=True)
            dims = inferred.graph.output[0].type.tensor_type.shape.dim
            shape = tuple(dim.dim_value for dim in dims[1:])
            fits = bool(shape) and min(shape) > 0 and np.prod(shape) < 400 and dims[0].dim_param == "N"
        except Exception:
            fits = False
        if not fits:
            graph.node.pop()
            graph.output[0].name = self.last
            return False
        self.last, self.shape = name, shape
        self.older.append((name, shape))
        return True


def numbers(data: st.DataObject, *shape: int) -> NDArray[np.float32]:
    seed = data.draw(st.integers(0, 10**6))
    return (np.random.default_rng(seed).integers(-4, 5, shape) / 2).astype(np.float32)


def grow(data: st.DataObject, drawn: Drawn) -> None:
    """Draw a node."""
    last, shape = drawn.last, drawn.shape
    rank = len(shape)

    def whole(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    def some(low: int, high: int) -> list[int]:
        return [whole(low, high) for _ in range(rank - 1)]

    axis = whole(1, rank)
    kind = data.draw(st.sampled_from(KINDS))
    if kind == "constant":
        sizes = [size if data.draw(st.booleans()) else 1 for size in shape][whole(0, rank) :]
        operands = [last, drawn.constant(numbers(data, *sizes) + np.float32(0.25))]
        op = data.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        drawn.add(op, *(operands[::-1] if op != "Div" and data.draw(st.booleans()) else operands))
    elif kind == "signals":
        fitting = [name for name, other in drawn.older if len(other) == rank]
        operands = [last, *(data.draw(st.sampled_from(fitting)) for _ in range(whole(1, 2)))]
        op = data.draw(st.sampled_from(["Sum", "Mean", "Concat", "Sub"]))
        drawn.add(op, *(operands[:2] if op == "Sub" else operands), **({"axis": axis} if op == "Concat" else {}))
    elif kind == "slice":
        step = data.draw(st.sampled_from([1, 2, 3, -1, -2]))
        start, stop = (whole(-9, 9) for _ in range(2))
        drawn.add("Slice", last, *(drawn.constant(np.array([each])) for each in (start, stop, axis, step)))
    elif kind == "gather":
        chosen = data.draw(st.lists(st.integers(0, shape[axis - 1] - 1), min_size=1, max_size=6))
        drawn.add("Gather", last, drawn.constant(np.array(chosen)), axis=axis)
    elif kind == "transpose":
        drawn.add("Transpose", last, perm=[0, *data.draw(st.permutations(range(1, rank + 1)))])
    elif kind == "reshape":
        total = int(np.prod(shape))
        first = data.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        second = data.draw(st.sampled_from([n for n in range(1, total // first + 1) if (total // first) % n == 0]))
        target = data.draw(st.sampled_from([[0, -1], [0, first, -1], [0, first, second, -1]]))
        drawn.add("Reshape", last, drawn.constant(np.array(target)))
    elif kind == "pad":
        sizes = [whole(-1, 2) for _ in range(2 * rank)]
        drawn.add("Pad", last, drawn.constant(np.array([0, *sizes[:rank], 0, *sizes[rank:]])))
    elif kind == "reduce":
        axes = sorted(data.draw(st.sets(st.integers(1, rank), min_size=1)))
        op, kept = data.draw(st.sampled_from(["ReduceMean", "ReduceSum"])), whole(0, 1)
        drawn.add(op, last, drawn.constant(np.array(axes)), keepdims=kept)
    elif kind == "matrix":
        drawn.add("MatMul", last, drawn.constant(numbers(data, shape[-1], whole(1, 4))))
    elif kind == "left matrix" and rank > 1:
        drawn.add("MatMul", drawn.constant(numbers(data, whole(1, 4), shape[-2])), last)
    elif kind == "convolution" and rank > 1:
        sizes, groups = some(1, 3), data.draw(st.sampled_from([1, shape[0]]))
        weight = numbers(data, shape[0] * whole(1, 2), shape[0] // groups, *sizes)
        options = {"group": groups, "strides": some(1, 2), "dilations": some(1, 2), "pads": some(0, 2) + some(0, 2)}
        drawn.add("Conv", last, drawn.constant(weight), **options)
    elif kind == "pool" and rank > 1:
        options = {"kernel_shape": some(2, 4), "strides": some(1, 3), "pads": some(0, 1) + some(0, 1)}
        drawn.add("AveragePool", last, **options, ceil_mode=whole(0, 1), count_include_pad=whole(0, 1))
    elif kind == "qcfs":
        known = len(drawn.older)
        for op, *values in STEPS:
            drawn.add(op, drawn.last, *(drawn.constant(np.array(value, np.float32)) for value in values))
        del drawn.older[known:-1]


STEPS: list[tuple[Any, ...]] = [
    ("Mul", 4),
    ("Div", 2),
    ("Add", 0.5),
    ("Floor",),
    ("Div", 4),
    ("Clip", 0, 1),
    ("Mul", 2),
]
KINDS = [
    *("constant", "signals", "slice", "gather", "transpose", "reshape", "pad", "reduce", "matrix", "left matrix"),
    *("convolution", "pool", "qcfs"),
]


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_drawn_graphs_are_converted_or_refused_by_name(data, tmp_path_factory):
    drawn = Drawn(data.draw(st.sampled_from(SHAPES)))
    for _ in range(data.draw(st.integers(1, 5))):
        grow(data, drawn)
    path = tmp_path_factory.mktemp("drawn") / "m.onnx"
    onnx.save(drawn.model, path)
    message = ""
    try:
        graph = capture(path)
    except BridgeError as error:
        message = str(error)
    if message:
        assert "cannot be converted" in message
        assert any(f"{node.name} ({node.op_type})" in message for node in drawn.model.graph.node)
        return
    for images in (1, 5):
        x = networks.dyadic_images(images, graph.input.shape).numpy() * 4
        try:
            expected = runtime(path, x)
        except Exception:  # what the runtime does not take, such as more padding than a pool's kernel
            return
        largest = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(evaluated(graph, x), expected, rtol=0, atol=1e-5 * largest)
