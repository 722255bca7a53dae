"""What every simulation returns: the spikes of each layer at each time step, bit-packed, and the readout."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge._util.files import replacing
from bridge._util.shown import Shown
from bridge.errors import InputError, UnknownLayerError, ValidationError
from bridge.graph import Shape

Spikes = NDArray[np.bool_]

FORMAT = 1
"""Of a saved record; it changes when a reader of an older one would misunderstand it."""
SUMMED_FORMAT = 2
"""Of a saved record whose output is a sum."""
LARGEST_RATIO = 1100
"""More than deflate can shrink anything (1032 times): a file that declares more holds less than it says."""


@dataclass(frozen=True, eq=False, repr=False)
class SpikeRecord(Shown):
    """The spikes of one run: T time steps, B images, by the names of the spiking layers.

    ``packed[layer]`` is uint8 ``[T, B, ceil(N / 8)]`` (`numpy.packbits` of the layer's N neurons in C order);
    ``readout`` is the last layer's output at each step, float32 ``[T, B, ...]``; ``membranes[layer]``, where recorded,
    is the potential u after integration and before reset, float ``[T, B, *shape]``. ``summed`` says that the output is
    the sum of the readout, as of a staged network, and not its mean. Example: docs/record_format.md.
    """

    backend: str
    shapes: Mapping[str, Shape]
    packed: Mapping[str, NDArray[np.uint8]]
    readout: NDArray[np.float32]
    membranes: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    summed: bool = False

    def _shown_facts(self) -> dict[str, object]:
        """Whose it is, and of how much."""
        facts = {"backend": self.backend, "steps": self.steps, "images": self.images, "layers": self.shapes}
        return {**facts, "membranes": bool(self.membranes)}

    @property
    def steps(self) -> int:
        return len(self.readout)

    @property
    def images(self) -> int:
        return int(self.readout.shape[1])

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.packed)

    def spikes(self, layer: str) -> Spikes:
        """Spikes of `layer`, bool ``[T, B, *shape]``. Raises `UnknownLayerError`, a KeyError, if there is no such."""
        shape = self._shape(layer)
        bits = np.unpackbits(self.packed[layer], axis=-1, count=int(np.prod(shape)))
        return bits.reshape(*bits.shape[:2], *shape).astype(bool)

    def rates(self, layer: str) -> NDArray[np.float32]:
        """Running firing rate ``φ(t) = Σ_{i≤t} s(i) / t`` of `layer`, float32 ``[T, B, *shape]``.

        Raises `UnknownLayerError` if there is no such layer.
        """
        return np.stack([*self.running_rates(layer)])

    def running_rates(self, layer: str) -> Iterator[NDArray[np.float32]]:
        """The same rates a step at a time, ``[B, *shape]`` each: T of them at once take much memory.

        Raises `UnknownLayerError` if there is no such layer.
        """
        shape = self._shape(layer)
        count = np.zeros((self.images, math.prod(shape)), np.float32)  # float32 holds them all
        for t, bits in enumerate(self.packed[layer], 1):
            if bits.any():  # most steps of a staged network are outside the layer's window
                count += np.unpackbits(bits, axis=-1, count=count.shape[1])
            yield (count / np.float32(t)).reshape(-1, *shape)

    def _shape(self, layer: str) -> Shape:
        if layer not in self.packed:
            raise UnknownLayerError(f"{self.backend}: no layer is called {layer!r}; there are {', '.join(self.packed)}")
        return self.shapes[layer]

    def outputs(self) -> NDArray[np.float32]:
        """The network's output after each step: the mean of the readout over steps 1..t, ``[T, B, ...]``.

        Of a staged network it is the sum, complete after its latency.
        """
        if self.summed:
            return running_sum(self.readout)
        return running_mean(self.readout)

    def window(self, start: int, stop: int, steps: int) -> SpikeRecord:
        """Images `start` to `stop` − 1 at time steps 1 to `steps`; the arrays are views of this record's.

        Raises `InputError` if this record lacks any of them.
        """
        if not 0 <= start < stop <= self.images or not 1 <= steps <= self.steps:
            raise InputError(
                f"{self.backend}: asked for images {start} to {stop - 1} at time steps 1 to {steps}, but the record "
                f"holds images 0 to {self.images - 1} at time steps 1 to {self.steps}"
            )
        part = (slice(0, steps), slice(start, stop))
        return SpikeRecord(
            backend=self.backend,
            shapes=self.shapes,
            packed={name: bits[part] for name, bits in self.packed.items()},
            readout=self.readout[part],
            membranes={name: values[part] for name, values in self.membranes.items()},
            summed=self.summed,
        )

    def save(self, path: str | Path) -> None:
        """Write the record to `path`, whole or not at all: numpy's compressed ``.npz``, spikes bit-packed.

        ``header`` is JSON: format, backend, and each layer's name and shape and whether it has membranes; ``spikes.i``
        and ``membranes.i`` are the arrays of layer i in that list, ``readout`` is the readout. Raises `InputError` if
        `path` cannot be written, or the record's arrays are not as described above.
        """
        _check(self, str(path))
        layers = [
            {"name": name, "shape": [int(size) for size in self.shapes[name]], "membranes": name in self.membranes}
            for name in self.packed
        ]
        header: dict[str, Any] = {"format": FORMAT, "backend": self.backend, "layers": layers}
        if self.summed:  # a reader of the older format would take the mean
            header |= {"format": SUMMED_FORMAT, "summed": True}
        arrays: dict[str, NDArray[Any]] = {
            "header": np.array(json.dumps(header)),
            "readout": self.readout,
        }
        for number, name in enumerate(self.packed):
            arrays[f"spikes.{number}"] = self.packed[name]
            if name in self.membranes:
                arrays[f"membranes.{number}"] = self.membranes[name]
        with replacing(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | Path) -> SpikeRecord:
        """What `save` wrote to `path`. Nothing is unpickled, and no array is made that the file is too small to hold.

        Raises `InputError` if there is no such file, or it is damaged or holds something else.
        """
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"expected the path of a saved record, got {path!r}")
        try:
            with zipfile.ZipFile(path) as archive:
                record = _read(archive, Path(path).stat().st_size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:  # zipfile, zlib, json and numpy raise whatever a damaged file leads them to
            raise InputError(
                f"{path}: damaged, or no spike record; SpikeRecord.save writes one ({type(error).__name__}: {error})"
            ) from error
        _check(record, str(path))
        return record

    @staticmethod
    def concatenate(records: Sequence[SpikeRecord]) -> SpikeRecord:
        """One record of all images of `records`. Raises `ValidationError` if their layers, backends or steps differ."""
        first = records[0]
        for record in records[1:]:
            facts = [(one.backend, one.shapes, one.steps, one.summed) for one in (first, record)]
            if facts[0] != facts[1]:
                raise ValidationError("only records of one network, backend and number of steps can be joined")
        return SpikeRecord(
            backend=first.backend,
            shapes=first.shapes,
            packed={name: np.concatenate([r.packed[name] for r in records], axis=1) for name in first.packed},
            readout=np.concatenate([r.readout for r in records], axis=1),
            membranes={name: np.concatenate([r.membranes[name] for r in records], axis=1) for name in first.membranes},
            summed=first.summed,
        )


class Recorder:
    """Collects a `SpikeRecord` step by step: one `spikes` call a layer and step, one `readout` call a step."""

    def __init__(self, backend: str, shapes: Mapping[str, Shape], summed: bool = False) -> None:
        self.backend = backend
        self.summed = summed
        self.shapes = dict(shapes)
        self._packed: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in shapes}
        self._membranes: dict[str, list[NDArray[np.floating]]] = {}
        self._readout: list[NDArray[np.float32]] = []

    def spikes(self, layer: str, spikes: NDArray[np.generic], membrane: NDArray[np.floating] | None = None) -> None:
        """Add one step of `layer`: spikes 0/1 ``[B, *shape]``, and the potential before reset if it is to be kept.

        Raises `ValidationError` for other values: what would be recorded is not what the next layer hears.
        """
        given = spikes.dtype == np.bool_
        fired = spikes.view(np.bool_) if given else spikes != 0
        if not given and not np.array_equal(spikes == 1, fired):
            worst = spikes[fired & (spikes != 1)].flat[0]
            step = len(self._packed[layer]) + 1
            raise ValidationError(f"{self.backend}: layer {layer!r} says {worst} at step {step}; a spike is 0 or 1")
        self._packed[layer].append(np.packbits(fired.reshape(len(fired), -1), axis=-1))
        if membrane is not None:
            self._membranes.setdefault(layer, []).append(membrane)

    def readout(self, values: NDArray[np.floating]) -> None:
        """Add one step of the last layer's output, ``[B, ...]``."""
        self._readout.append(np.asarray(values, dtype=np.float32))

    def finish(self) -> SpikeRecord:
        """The record. Raises `ValidationError` if a layer lacks a step."""
        short = {name: len(rows) for name, rows in self._packed.items() if len(rows) != len(self._readout)}
        if short or not self._readout:
            raise ValidationError(f"{self.backend}: {len(self._readout)} steps of readout, but spikes for {short}")
        return SpikeRecord(
            backend=self.backend,
            shapes=self.shapes,
            packed={name: np.stack(rows) for name, rows in self._packed.items()},
            readout=np.stack(self._readout),
            membranes={name: np.stack(rows) for name, rows in self._membranes.items()},
            summed=self.summed,
        )


def differing(one: SpikeRecord, other: SpikeRecord) -> dict[str, NDArray[np.int64]]:
    """By layer, spikes of two records of one network that differ at each step, over the images that both have.

    Raises `ValidationError` if their layers or numbers of steps differ.
    """
    if dict(one.shapes) != dict(other.shapes) or one.steps != other.steps:
        raise ValidationError(
            f"these records cannot be compared: {one.backend} has {one.steps} steps of {dict(one.shapes)}, "
            f"{other.backend} {other.steps} of {dict(other.shapes)}"
        )
    images = min(one.images, other.images)
    result = {}
    for name, bits in one.packed.items():
        unlike = bits[:, :images] ^ other.packed[name][:, :images]
        if not unlike.any():  # the usual case
            result[name] = np.zeros(len(unlike), np.int64)
            continue
        neurons = np.unpackbits(unlike, axis=-1, count=int(np.prod(one.shapes[name])))
        result[name] = neurons.sum(axis=(1, 2), dtype=np.int64)
    return result


def running_sum(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Sum over steps 1..t for every t, along the first axis, summed in float64."""
    return np.cumsum(values, axis=0, dtype=np.float64).astype(np.float32)


def running_mean(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Mean over steps 1..t for every t, along the first axis, summed in float64."""
    steps = np.arange(1, len(values) + 1, dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
    return (np.cumsum(values, axis=0, dtype=np.float64) / steps).astype(np.float32)


def _read(archive: zipfile.ZipFile, size: int) -> SpikeRecord:
    """The record in `archive`, a file of `size` bytes."""
    if sum(member.compress_size for member in archive.infolist()) > size:
        raise InputError(f"damaged: its parts take more than the {size} bytes there are")
    header = json.loads(str(_array(archive, "header")))
    if header["format"] not in (FORMAT, SUMMED_FORMAT):
        raise InputError(f"written as format {header['format']!r}, this version reads {FORMAT} and {SUMMED_FORMAT}")
    names = [layer["name"] for layer in header["layers"]]
    if len(set(names)) != len(names):
        raise InputError("damaged: two layers have one name")
    return SpikeRecord(
        backend=header["backend"],
        shapes={layer["name"]: tuple(layer["shape"]) for layer in header["layers"]},
        packed={name: _array(archive, f"spikes.{number}") for number, name in enumerate(names)},
        readout=_array(archive, "readout"),
        membranes={
            layer["name"]: _array(archive, f"membranes.{number}")
            for number, layer in enumerate(header["layers"])
            if layer["membranes"]
        },
        summed=bool(header.get("summed", False)),
    )


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """The array `name`, made only once the sizes that are declared for it fit each other and the file."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
            raise InputError(f"{name}: not an array as SpikeRecord.save writes them")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
        declared, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if declared != held or member.file_size > LARGEST_RATIO * member.compress_size:
            raise InputError(
                f"{name}: declares {list(shape)} of {dtype}, {declared} bytes; the file holds {held}, "
                f"compressed to {member.compress_size}"
            )
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))  # type: ignore[no-untyped-call]


def _check(record: SpikeRecord, source: str) -> None:
    """Raise `InputError`, beginning with `source`, unless all is as `SpikeRecord` describes it."""
    if not isinstance(record.backend, str) or not all(isinstance(name, str) for name in record.shapes):
        raise InputError(f"{source}: names of the backend and the layers must be text")
    readout = record.readout
    if readout.dtype != np.float32 or readout.ndim < 2 or 0 in readout.shape:
        raise InputError(f"{source}: expected a readout [T, B, ...] of float32, got {readout.dtype} {readout.shape}")
    if not record.packed or set(record.packed) != set(record.shapes) or not set(record.membranes) <= set(record.packed):
        raise InputError(
            f"{source}: the same layers, at least one, must have shapes {[*record.shapes]} and spikes "
            f"{[*record.packed]}, and those with membranes {[*record.membranes]} must be among them"
        )
    for name, bits in record.packed.items():
        shape = record.shapes[name]
        if not shape or not all(isinstance(n, int | np.integer) and n > 0 for n in shape):
            raise InputError(f"{source}: layer {name!r} has the shape {shape}; expected whole numbers above 0")
        neurons = math.prod(map(int, shape))
        expected = (*readout.shape[:2], (neurons + 7) // 8)
        if bits.dtype != np.uint8 or bits.shape != expected:
            raise InputError(
                f"{source}: layer {name!r} of {neurons} neurons: expected packed spikes [T, B, bytes] of uint8 "
                f"{expected}, got {bits.dtype} {bits.shape}"
            )
        if neurons % 8 and bool((bits[..., -1] & (0xFF >> neurons % 8)).any()):
            raise InputError(f"{source}: layer {name!r} has {neurons} neurons, and spikes of more")
        membrane = record.membranes.get(name)
        if membrane is not None and (membrane.dtype.kind != "f" or membrane.shape != (*readout.shape[:2], *shape)):
            raise InputError(
                f"{source}: layer {name!r}: expected membranes of floats {(*readout.shape[:2], *shape)}, "
                f"got {membrane.dtype} {membrane.shape}"
            )
