"""NIR files, whoever wrote them: read, or refused with the node that is at fault."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from bridge.errors import GraphError

LARGEST_RATIO = 2000  # of a dataset's size to what it takes in the file; gzip reaches about 1000


def read(path: str | Path) -> nir.NIRGraph:
    """The NIR graph in the file at `path`, whoever wrote it.

    Raises:
        GraphError: the file is missing, is no NIR file, or damaged.
    """
    if not isinstance(path, str | os.PathLike):
        raise GraphError(f"expected the path of a NIR file, got {path!r}")
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise GraphError(f"{path}: not a NIR file (NIR files are HDF5); write one with SpikingNetwork.save(path)")
    try:
        _check_sizes(path)
        with h5py.File(path, "r") as file:
            content = nir.serialization.hdf2dict(file["node"])
        return nir.dict2NIRNode(_unchecked(content))
    except Exception as error:  # nir raises whatever its parts raise on a damaged file
        reason = _unreadable_node(path) or f"{type(error).__name__}: {error}"
        raise GraphError(f"{path}: damaged, or not a NIR graph ({reason})") from error


def _unchecked(content: dict[str, Any]) -> dict[str, Any]:
    """The `content` of a file, of which nir is not to infer the types, in the graphs inside neither.

    ``nir.read(path, type_check=False)`` infers them in the graphs inside, and takes kernels for square.
    """
    nodes = {
        name: _unchecked(node) if node.get("type") == "NIRGraph" else node for name, node in content["nodes"].items()
    }
    return {**content, "nodes": nodes, "type_check": False}


def _check_sizes(path: Path) -> None:
    """Refuse a file that declares arrays far larger than compression allows, before anything that large is made."""

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf":
            stored = item.id.get_storage_size()
            if item.nbytes > LARGEST_RATIO * stored + 1_000_000:
                raise GraphError(f"{name} declares {item.nbytes} bytes, but the file holds {stored} of it")

    with h5py.File(path, "r") as file:
        file.visititems(visit)


def _unreadable_node(path: Path) -> str:
    """Which node in the file at `path` nir cannot make, why, and what it was given; nothing if that is not the reason.

    nir's own errors do not name the node.
    """
    with suppress(Exception), h5py.File(path, "r") as file:
        nodes = [("", nir.serialization.hdf2dict(file["node"]))]
        while nodes:
            name, node = nodes.pop()
            inside = node.get("nodes")
            if isinstance(inside, dict):
                nodes += [(f"{name}.{child}" if name else child, inside[child]) for child in reversed(inside)]
                continue
            try:
                nir.dict2NIRNode(node)
            except Exception as error:
                held = ", ".join(f"{key} {np.shape(value)}" for key, value in node.items() if np.ndim(value))
                reason = f"{type(error).__name__}: {error}"
                return f"node {name!r} ({node.get('type')}): {reason}" + (f"; it holds {held}" if held else "")
    return ""
