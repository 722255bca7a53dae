"""ONNX files for tests: as torch's exporters write them or written by hand, run by onnxruntime, refused or read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bridge import ConversionError
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
    LayerGraph,
    Linear,
    Scale,
)
from bridge.simulate.ann import activations
from support.backends import require

EXPORTER_WARNINGS = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]
"""What torch's two exporters warn of in their own code: the `pytestmark` of tests that call them."""

EXPORTERS = ("dynamo", "legacy")


def export(
    model: nn.Module, shape: Sequence[int], path: Path, exporter: str, batch: int | None = None, **options: Any
) -> Path:
    """`model` as torch writes it: with a symbolic batch size unless `batch` is given."""
    x = torch.zeros(batch or 2, *shape)
    if exporter == "dynamo":
        dynamic: dict[str, Any] = {} if batch else {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        torch.onnx.export(model.eval(), (x,), path, dynamo=True, verbose=False, **dynamic, **options)
    else:
        dynamic = {} if batch else {"dynamic_axes": {"x": {0: "batch"}}}
        torch.onnx.export(model.eval(), (x,), path, dynamo=False, input_names=["x"], **dynamic, **options)
    return path


def runtime(path: Path | str, x: Any) -> NDArray[Any]:
    """The output of onnxruntime for `x`."""
    require("onnxruntime")
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: NDArray[Any]
    (result,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x, dtype=np.float32)})
    return result


def evaluated(graph: LayerGraph, x: Any) -> NDArray[Any]:
    values: NDArray[Any] = activations(graph, torch.as_tensor(x, dtype=torch.float32))[2].numpy()
    return values


def kinds(graph: LayerGraph) -> list[type[Layer]]:
    return [type(layer) for layer in graph]


def assert_same(got: LayerGraph, expected: LayerGraph, rtol: float = 0.0, names: bool = False) -> None:
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


def build(
    body: str,
    x: str = "float[N,4] x",
    y: str = "float[N,4] y",
    opset: int = 17,
    path: Path | None = None,
    extra: str = "",
) -> onnx.ModelProto:
    """A model written by hand: always the same frame, around a `body` of nodes."""
    if "sm = Mul" in body:
        body = constants(LEVELS) + body
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "com.custom" : 1]> net ({x}) => ({y}) {extra} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    if path is not None:
        onnx.save(model, path)
    return model


LEVELS = "l=4 th=2 h=0.5 zero=0 one=1"


def spike(before: str, after: str = "y") -> str:
    """QCFS with L = 4 and λ = 2 from one tensor to another."""
    return f"""
        sm = Mul ({before}, l) sd = Div (sm, th) sa = Add (sd, h) sf = Floor (sa)
        sq = Div (sf, l) sc = Clip (sq, zero, one) {after} = Mul (sc, th)
    """


def constants(values: str) -> str:
    """Constant nodes for ``a=1 b=2``."""
    pairs = (pair.split("=") for pair in values.split())
    return "\n".join(f"{name} = Constant <value = float {{{value}}}> ()" for name, value in pairs)


EXTRA = """<
    float[4,3] w={1,2,3,4,5,6,7,8,9,1,2,3}, float[3,4] v={1,2,3,4,5,6,7,8,9,1,2,3}, float[3] b={1,-2,3}, float c={2},
    float[2,2,1,1] m={1,2,3,4}, float[2,1,3,3] d={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[4,2] f={1,2,3,4,5,6,7,8},
    float[3] s={1,2,3}, float[3] t={1,2,0.5}, float[3] u={1,4,0.25}, float[2] p={1,2}, float[2] q={-1,-2}
>"""


def initializer(model: onnx.ModelProto, name: str = "w") -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def refusal(path: Path | str, error: type[Exception] = ConversionError) -> str:
    with pytest.raises(error) as caught:
        capture(path)
    return str(caught.value)


def every_kind() -> LayerGraph:
    """A graph with every kind of layer that an ANN can have, on a dyadic grid."""
    rng = np.random.default_rng(0)

    def grid(*shape: int) -> NDArray[np.float64]:
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


def every_kind_1d() -> LayerGraph:
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
