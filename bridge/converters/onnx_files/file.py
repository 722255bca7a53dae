"""What is read off the protobuf of an ONNX file: its nodes, their names, versions and edges, checked before use."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.onnx_files.values import LONGEST_NAME, Node, shown
from bridge.errors import GraphError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

STANDARD = ("", "ai.onnx")
OLDEST_OPSET = 7  # before it, Add and Mul had their own rules for broadcasting


def load(path: Path) -> ModelProto:
    """The model in the file, with external data still outside."""
    onnx = require_onnx()
    if not path.is_file():
        raise GraphError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        model: ModelProto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:
        raise GraphError(f"{path}: damaged, or not an ONNX file ({error})") from error
    if not model.graph.node or not model.ir_version:
        raise GraphError(f"{path}: no ONNX graph in it")
    return model


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators. Raises `GraphError` if there is none, or one that onnx does not know."""
    onnx = require_onnx()
    versions = {entry.version for entry in model.opset_import if entry.domain in STANDARD}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        raise GraphError(f"expected one version of the standard operators, the file names {sorted(versions)}")
    (version,) = versions
    if not OLDEST_OPSET <= version <= newest:
        raise GraphError(f"opset {version} is not supported; {OLDEST_OPSET} to {newest} are")
    return int(version)


def check_edges(model: ModelProto, source: str) -> None:
    """Raise `GraphError` unless every tensor is made once, and before it is used."""
    graph = model.graph
    if graph.sparse_initializer or any(function.domain in STANDARD for function in model.functions):
        raise GraphError("sparse initializers and redefined standard operators are not supported")
    made_later = {name for node in graph.node for name in node.output}
    known = {source, *(tensor.name for tensor in graph.initializer)}
    if len(known) != 1 + len(graph.initializer) or "" in known:
        raise GraphError("two initializers have the same name, or one has none")
    for index, proto in enumerate(graph.node):
        if any(
            isinstance(text, bytes) for text in (proto.name, proto.op_type, proto.domain, *proto.input, *proto.output)
        ):
            raise GraphError(f"node {index}: a name in it is not text")
        where = node_of(index, proto).where
        for name in filter(None, proto.input):
            if name not in known:
                why = (
                    "only a later node gives: a cycle, or nodes that are not in order"
                    if name in made_later
                    else "nothing gives"
                )
                raise GraphError(f"{where}: it reads {shown(name)}, which {why}")
        if not proto.output or not proto.output[0]:
            raise GraphError(f"{where}: it has no output")
        for name in filter(None, proto.output):
            if name in known:
                raise GraphError(f"{where}: it gives {shown(name)}, which exists already")
            known.add(name)


def live_nodes(model: ModelProto, output: str) -> set[int]:
    """The nodes that `output` depends on. Others, such as a dropout's mask, are as good as not there."""
    wanted, live = {output}, set()
    for index in reversed(range(len(model.graph.node))):
        proto = model.graph.node[index]
        if not wanted.isdisjoint(proto.output):
            live.add(index)
            wanted.update(filter(None, proto.input))
    return live


def node_of(index: int, proto: NodeProto) -> Node:
    """The node number `index`, without its attributes, which have not been checked yet."""
    label = proto.name or (proto.output[0] if proto.output else f"node {index}")
    path = _module(proto)
    return Node(
        op=proto.op_type,
        index=index,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        title=_identifier(path or label.rpartition("/")[2] if label.startswith("/") else path or label),
        where=f"{shown(label)} ({shown(proto.op_type)})",
        attributes={},
    )


def _module(proto: NodeProto) -> str:
    """The path of the torch module that the node came from, "" if the file does not tell.

    torch's exporter keeps it in the metadata, as ``['', 'features', 'features.0', 'conv2d']``; the older one in the
    name, as ``/features/features.0/Conv`` or ``/layer1/layer1.0/conv1/Conv``.
    """
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes" and isinstance(entry.value, str):
            scopes: list[str] = re.findall(r"'([^']*)'", entry.value[:4096])
            return scopes[-2] if len(scopes) > 1 else ""
    path = ""
    if proto.name.startswith("/"):
        previous = None
        for scope in proto.name.split("/")[1:-1]:
            inside = previous is not None and scope.startswith(f"{previous}.")
            path = path.removesuffix(str(previous)) + scope if inside else f"{path}.{scope}" if path else scope
            previous = scope
    return path


def _identifier(text: str) -> str:
    """`text` as a Python identifier, in the way torch.fx makes them of paths."""
    name = re.sub(r"\W", "_", text[:LONGEST_NAME], flags=re.ASCII)
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
        return f"layer_{name.strip('_')}".rstrip("_")
    return name


def attributes_of(proto: NodeProto, opset: int, ir_version: int) -> dict[str, Any]:
    """The attributes that a node gives, after onnx has held it against the operator's schema."""
    onnx = require_onnx()
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = ir_version, {"": opset}
    try:
        if proto.op_type != "Constant":  # of which it would look for external data where Python was started
            onnx.checker.check_node(proto, context)
        given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in proto.attribute}
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise GraphError(f"malformed: {reason[:300]}") from error
    return {
        name: value.decode("ascii", "replace") if isinstance(value, bytes) else value for name, value in given.items()
    }


def dims(shape: Any) -> str:
    """A declared shape, as messages show it."""
    return f"[{', '.join(str(dim.dim_value or shown(dim.dim_param) or '?') for dim in shape.dim)}]"
