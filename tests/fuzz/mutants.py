"""Damages files at random and reads them: each is read, or refused with this package's error, in time and in memory.

    python tests/fuzz/mutants.py --count 2000                # of every kind of file
    python tests/fuzz/mutants.py --minutes 10 --seed 7       # as the nightly workflow does
    python tests/fuzz/mutants.py --only nir --keep found     # and keeps what broke something

No reader may start a program or open a connection. What breaks one goes into `tests/fuzz/corpus`, which the tests read.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import pickle
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

import bridge
from bridge import QCFS, BridgeError, SpikeRecord
from bridge.agreement import Agreement
from bridge.cli import sources
from bridge.report import html
from bridge.zoo import data

SECONDS, MEMORY = 20.0, 2**30
"""What a reader may take, and hold beside what the process held."""
FORBIDDEN = ("os.exec", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen", "pty.spawn")


class BrokenError(AssertionError):
    """A reader that did what none may do with a damaged file."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: ``write`` makes a good one in a folder and returns its path, ``read`` reads it."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]


@cache
def network() -> bridge.SpikingNetwork:
    """A small one, with a join and a pool."""
    return bridge.convert(model(), torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)))


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), QCFS(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)]
    return nn.Sequential(*layers, QCFS(2), nn.Linear(4, 3)).eval()


def images() -> torch.Tensor:
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def nir_file(folder: Path) -> Path:
    network().save(folder / "n.nir")
    return folder / "n.nir"


def staged_file(folder: Path) -> Path:
    bridge.convert(model(), images(), schedule="staged").save(folder / "s.nir")
    return folder / "s.nir"


def run_nir(path: Path) -> object:
    found = bridge.load(path)
    if not isinstance(found, bridge.SpikingNetwork):
        return found
    shape = found.graph.input.shape
    return found.run(torch.zeros(1, *shape), found.latency or 2) if np.prod(shape) < 10_000 else found


def onnx_file(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model(), (images(),), folder / "m.onnx", dynamo=False)
    return folder / "m.onnx"


def record_file(folder: Path) -> Path:
    network().run(images(), 3).save(folder / "r.npz")
    return folder / "r.npz"


def images_file(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", x=images().numpy())
    return folder / "x.npz"


def array_file(folder: Path) -> Path:
    np.save(folder / "x.npy", images().numpy())
    return folder / "x.npy"


def picture_file(folder: Path) -> Path:
    from PIL import Image

    Image.fromarray((images()[0, 0].numpy() * 255).astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def checkpoint_file(folder: Path) -> Path:
    torch.save(model().state_dict(), folder / "c.pt")
    return folder / "c.pt"


def agreement_file(folder: Path) -> Path:
    network().validate(images(), 3, [Same()]).save(folder / "a.json")
    return folder / "a.json"


class Same:
    """A backend that is the reference."""

    name = "same"

    def available(self) -> Any:
        return bridge.registry.get("lava-twin").available()

    def export(self, graph: Any) -> Any:
        return network()

    def run(self, native: Any, x: Any, steps: int, *, membranes: bool = False) -> Any:
        return native.run(x, steps)


def read_agreement(path: Path) -> object:
    agreement = Agreement.load(path)
    html.write(agreement, path.with_name("report.html"))
    return agreement


def cifar_pickle(folder: Path) -> Path:
    """The six batches of Python's layout, the first of which is damaged."""
    pixels = np.arange(2 * data.PIXELS, dtype=np.uint8).reshape(2, -1)
    for batch in (*data.CIFAR10_TRAIN, data.CIFAR10_TEST):
        (folder / batch).write_bytes(pickle.dumps({"data": pixels, "labels": [1, 2]}, protocol=2))
    return folder / data.CIFAR10_TRAIN[0]


def cifar_binary(folder: Path) -> Path:
    for batch in (*data.CIFAR10_TRAIN, data.CIFAR10_TEST):
        (folder / f"{batch}.bin").write_bytes(bytes([3]) + bytes(range(256)) * 12)
    return folder / f"{data.CIFAR10_TRAIN[0]}.bin"


def mnist_files(folder: Path) -> Path:
    """The four IDX files, the first of which is damaged."""
    for part in ("train", "t10k"):
        header = b"".join(size.to_bytes(4, "big") for size in (0x0803, 2, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(2 * 28 * 28)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 3, 4]))
    return folder / "train-images-idx3-ubyte.gz"


KINDS = {
    "nir": Kind(nir_file, run_nir),
    "staged": Kind(staged_file, run_nir),
    "onnx": Kind(onnx_file, bridge.convert),
    "record": Kind(record_file, SpikeRecord.load),
    "npz": Kind(images_file, sources.images),
    "npy": Kind(array_file, sources.images),
    "picture": Kind(picture_file, lambda path: sources.images(path.parent)),
    "checkpoint": Kind(checkpoint_file, lambda path: bridge.load_checkpoint(copy.deepcopy(model()), path)),
    "agreement": Kind(agreement_file, read_agreement),
    "cifar-pickle": Kind(cifar_pickle, lambda path: data.cifar10(path.parent)),
    "cifar-binary": Kind(cifar_binary, lambda path: data.cifar10(path.parent)),
    "mnist": Kind(mnist_files, lambda path: data.mnist(path.parent)),
}


# ---- damage ----------------------------------------------------------------------------------------------------------


def damage_bytes(path: Path, rng: np.random.Generator) -> None:
    """Change, insert, remove or repeat some bytes, or cut the file short."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                content[at : at + length] = rng.bytes(len(content[at : at + length]))
            case 1:
                content[at:at] = rng.bytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                content[at : at + length] = b"\xff" * len(content[at : at + length])
            case 4:
                other = int(rng.integers(len(content) + 1))
                content[at : at + length] = content[other : other + length]
            case _ if rng.integers(4) == 0:
                del content[at:]
    path.write_bytes(content)


def damage_json(path: Path, rng: np.random.Generator) -> None:
    """Put something else in some place of the JSON."""
    content = json.loads(path.read_text())
    places = list(_places(content))
    holder, key = places[rng.integers(len(places))]
    odd: tuple[Any, ...] = (None, "x", -1, 1.5, 10**30, [], {}, [[[]]], True, float("nan"), "\ud800", {"a": [1]})
    holder[key] = odd[rng.integers(len(odd))]
    path.write_text(json.dumps(content))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def damage_hdf5(path: Path, rng: np.random.Generator) -> None:
    """Remove, replace or link some members of an HDF5 file."""
    with h5py.File(path, "a") as file:
        for _ in range(rng.integers(1, 4)):
            names: list[str] = []
            file["node"].visit(names.append)
            name = f"node/{names[rng.integers(len(names))]}"
            group, _, last = name.rpartition("/")
            match rng.integers(7):
                case 0:
                    del file[name]
                case 1:
                    file[group][f"{last}_"] = file[name]
                case 2:
                    del file[name]
                    file[name] = h5py.SoftLink("/node")
                case 3:
                    del file[name]
                    file[name] = h5py.ExternalLink("/etc/hostname", "/")
                case 4:
                    other = f"node/{names[rng.integers(len(names))]}"
                    if other in file and not other.startswith(name) and name in file:
                        del file[name]
                        if other in file:
                            file.copy(other, name)
                case _:
                    del file[name]
                    file[name] = odd_value(rng)


def odd_value(rng: np.random.Generator) -> Any:
    """Some value for a dataset, of a wrong shape, type or size."""
    shape = tuple(rng.integers(0, 5, rng.integers(0, 5)))
    values = (
        lambda: rng.integers(-3, 4, shape),
        lambda: rng.normal(size=shape).astype(np.float32) * 10.0 ** rng.integers(-40, 39),
        lambda: np.full(shape, np.nan),
        lambda: np.inf,
        lambda: rng.integers(-(2**62), 2**62),
        lambda: np.zeros(shape, complex),
        lambda: ["NIRGraph", "Conv2d", "Threshold", "Input", "", "x" * 300, "é\n"][rng.integers(7)],
        lambda: [("input", "output"), ("a", "a")],
        lambda: np.zeros(3, [("a", "f4")]),
        lambda: True,
        lambda: h5py.Empty("f4"),
    )
    return values[rng.integers(len(values))]()


def damaged(kind: str, folder: Path, seed: int) -> Path:
    """A file of this `kind` in `folder`, damaged as the `seed` says."""
    path = Path(shutil.copytree(_good(kind).parent, folder, dirs_exist_ok=True)) / _good(kind).name
    rng = np.random.default_rng([seed, *kind.encode()])
    if kind in ("nir", "staged") and seed % 2:
        with suppress(KeyError, OSError, RuntimeError, TypeError, ValueError):  # what is removed already, removed again
            damage_hdf5(path, rng)
    elif kind == "agreement" and seed % 4:
        damage_json(path, rng)
    else:
        damage_bytes(path, rng)
    return path


@cache
def _good(kind: str) -> Path:
    return KINDS[kind].write(Path(tempfile.mkdtemp()))


# ---- judgement -------------------------------------------------------------------------------------------------------


def judged(kind: str, path: Path) -> str:
    """Whether the file was read or refused, in that word. Raises `BrokenError` if the reader does what none may do."""
    _watch()
    reset_peak()
    before, start = held(), time.perf_counter()
    _watching.append(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind].read(path)
        outcome = "read"
    except BridgeError:
        outcome = "refused"
    except Exception as error:
        raise BrokenError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from error
    finally:
        _watching.clear()
    took, more = time.perf_counter() - start, peak() - before
    if took > SECONDS:
        raise BrokenError(f"took {took:.0f} s")
    if more > MEMORY:
        raise BrokenError(f"took {more / 2**20:.0f} MB")
    return outcome


@cache
def _watch() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and _watching:
            raise BrokenError(f"{event}: {arguments}")

    sys.addaudithook(hook)


_watching: list[Path] = []
"""The file that is read now: a hook stays for as long as the program runs."""


def reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def held() -> int:
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Damage and read until there have been enough, and say what broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind")
    parser.add_argument("--minutes", type=float, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--only", choices=list(KINDS), action="append", help="these kinds of files alone")
    parser.add_argument("--keep", type=Path, default=Path("found"), help="where to put files that broke a reader")
    chosen = parser.parse_args()
    end = None if chosen.minutes is None else time.monotonic() + 60 * chosen.minutes
    outcomes: Counter[tuple[str, str]] = Counter()
    seed = chosen.seed
    while time.monotonic() < end if end is not None else seed < chosen.seed + chosen.count:
        for kind in chosen.only or KINDS:
            folder = Path(tempfile.mkdtemp())
            path = damaged(kind, folder, seed)
            try:
                outcome = judged(kind, path)
            except BrokenError as error:
                outcome = "BROKEN"
                place = chosen.keep / kind / str(seed)
                shutil.copytree(folder, place, dirs_exist_ok=True)
                print(f"{kind} {seed}: {str(error).splitlines()[0]} -> {place}", flush=True)
            outcomes[kind, outcome] += 1
            shutil.rmtree(folder)
        seed += 1
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:14s} {outcome:8s} {number}")
    sys.exit(any(outcome == "BROKEN" for _, outcome in outcomes))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
