"""NIR files, whoever wrote them: read, or refused with the node that is at fault.

A file is not trusted. What it may take is bounded before it is taken: levels of groups, objects, and bytes in memory.
Nothing outside of it is read: links to other files, and arrays whose values lie in others, are refused.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import h5py
import nir
import numpy as np

from bridge.errors import GraphError

LARGEST_RATIO = 2000  # of a dataset's size to what it takes in the file; gzip reaches about 1000
MEMORY, EXPANSION = 384 * 2**20, 8
"""The arrays of a file may take so many bytes in memory, and so many times the file's size beside it.

Full-shape constants, as in staged networks, shrink a thousandfold in a file: three layers of 64 maps of 224 × 224 take
385 MB, and half of one in the file.
"""
OBJECTS, LEVELS = 100_000, 60
"""Groups and arrays that a file may hold, and groups within each other; a graph in a graph is two of them."""
OF_TEXT = 100
"""Bytes in memory of a piece of text, about, beside its letters."""


def read(path: str | Path) -> nir.NIRGraph:
    """The NIR graph in the file at `path`, whoever wrote it.

    Raises:
        GraphError: the file is missing, is no NIR file, or damaged; it refers to other files, or takes more memory than
            a file of its size may.
    """
    if not isinstance(path, str | os.PathLike):
        raise GraphError(f"expected the path of a NIR file, got {path!r}")
    path = Path(path)
    try:
        if not path.is_file():
            raise GraphError(f"{path}: no such file")
        if not h5py.is_hdf5(path):
            raise GraphError(f"{path}: not a NIR file (NIR files are HDF5); write one with SpikingNetwork.save(path)")
        content = _content(path)
    except GraphError:
        raise
    except OSError as error:  # a name that is too long, a file that may not be read, or a damaged one
        raise GraphError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # h5py raises whatever a damaged file leads to
        raise GraphError(f"{path}: damaged, or not a NIR graph ({type(error).__name__}: {error})") from error
    try:
        return nir.dict2NIRNode(_unchecked(content))
    except Exception as error:  # nir raises whatever its parts raise
        reason = _unreadable_node(content) or f"{type(error).__name__}: {error}"
        raise GraphError(f"{path}: damaged, or not a NIR graph ({reason})") from error


def _unchecked(content: dict[str, Any]) -> dict[str, Any]:
    """The `content` of a file, of which nir is not to infer the types, in the graphs inside neither.

    ``nir.read(path, type_check=False)`` infers them in the graphs inside, and takes kernels for square.
    """
    nodes = content["nodes"].items()
    inside = {name: _unchecked(node) if node.get("type") == "NIRGraph" else {**node} for name, node in nodes}
    return {**content, "nodes": inside, "type_check": False}


def _content(path: Path) -> dict[str, Any]:
    """The graph in the file as nested dictionaries of text and arrays: what ``nir.serialization.hdf2dict`` gives."""
    with h5py.File(path, "r") as file:
        reader = _Reader(path, MEMORY + EXPANSION * path.stat().st_size)
        found = reader.member(file, "node", "", 0)
    if not isinstance(found, dict):
        raise GraphError(f"{path}: damaged, or not a NIR graph: expected a group called 'node'")
    return found


class _Reader:
    """Reads groups and arrays, with `left` bytes of memory to spend."""

    def __init__(self, path: Path, left: int) -> None:
        self.path, self.left = path, left
        self.seen: set[Any] = set()

    def member(self, group: h5py.Group, name: str, where: str, level: int) -> Any:
        """What is called `name` in `group`, which is `level` groups deep and called `where`."""
        place = f"{where}/{name}"
        link = group.get(name, getlink=True)
        if link is None:
            raise GraphError(f"{self.path}: damaged, or not a NIR graph: {place} is missing")
        if not isinstance(link, h5py.HardLink):
            self._refuse(place, "is a link to somewhere else, which is not followed")
        item = group[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in self.seen:
            self._refuse(place, "is a second name of something that is read already (a hard link)")
        self.seen.add(address)
        if len(self.seen) > OBJECTS:
            self._refuse(place, f"comes behind {OBJECTS:,} other objects, which is as many as are read")
        if isinstance(item, h5py.Group):
            if level >= LEVELS:
                self._refuse(place, f"lies in {LEVELS} groups within each other, which is as many as are read")
            return {str(key): self.member(item, key, place, level + 1) for key in item}
        if not isinstance(item, h5py.Dataset):
            self._refuse(place, "is neither a group nor an array")
        return self._array(item, place)

    def _array(self, item: h5py.Dataset, place: str) -> Any:
        if item.is_virtual or item.external:
            self._refuse(place, "has its values in another file, which is not read")
        text = h5py.check_string_dtype(item.dtype)
        if item.shape is None or (text is None and item.dtype.kind not in "biufcS"):
            self._refuse(place, f"holds {'nothing' if item.shape is None else item.dtype}; expected numbers or text")
        count, stored = int(item.size), item.id.get_storage_size()
        if item.nbytes > LARGEST_RATIO * stored + 1_000_000:
            self._refuse(place, f"declares {item.nbytes} bytes, but the file holds {stored} of it")
        self._spend(count * max(item.dtype.itemsize, OF_TEXT if text or item.dtype.kind == "S" else 0), place)
        if text is not None and text.length is None:
            self._spend(self._letters(item, count, place), place)
        value = item[()]
        return value.decode() if isinstance(value, bytes) else value

    def _letters(self, item: h5py.Dataset, count: int, place: str) -> int:
        """How many letters the `count` texts of `item` have together, as the file says: before HDF5 takes its word.

        Each text is a length, of four bytes, and where its letters are. One text may be there many times.
        """
        start, stored = item.id.get_offset(), item.id.get_storage_size()
        if count == 0:
            return 0
        if start is None or stored % count:
            self._refuse(place, "holds text in parts, and not in one piece as nir.write does")
        with self.path.open("rb") as file:
            file.seek(start)
            entries = np.frombuffer(file.read(stored), np.uint8).reshape(count, -1)
        return int(np.ascontiguousarray(entries[:, :4]).view("<u4").sum(dtype=np.uint64))

    def _spend(self, size: int, place: str) -> None:
        if size > self.left:
            self._refuse(place, f"takes {size} bytes, and {self.left} are left of what a file of this size may take")
        self.left -= size

    def _refuse(self, place: str, why: str) -> NoReturn:
        raise GraphError(f"{self.path}: {place} {why}; write the file anew with nir.write")


def _unreadable_node(content: dict[str, Any]) -> str:
    """Which node of `content` nir cannot make, why, and what it was given; nothing if that is not the reason.

    nir's own errors do not name the node.
    """
    with suppress(Exception):
        nodes = [("", content)]
        while nodes:
            name, node = nodes.pop()
            inside = node.get("nodes")
            if isinstance(inside, dict):
                nodes += [(f"{name}.{child}" if name else child, inside[child]) for child in reversed(inside)]
                continue
            try:
                nir.dict2NIRNode({**node})
            except Exception as error:
                held = ", ".join(f"{key} {np.shape(value)}" for key, value in node.items() if np.ndim(value))
                reason = f"{type(error).__name__}: {error}"
                return f"node {name!r} ({node.get('type')}): {reason}" + (f"; it holds {held}" if held else "")
    return ""
