"""Image data sets in the layouts that people have on disk, as tensors of pixels. Nothing is downloaded.

CIFAR-10 (Krizhevsky, 2009): https://www.cs.toronto.edu/~kriz/cifar.html describes both of its layouts.
MNIST (LeCun et al., 1998): IDX files, which http://yann.lecun.com/exdb/mnist describes.
Fashion-MNIST (Xiao et al., 2017): the same files, with clothes in them.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.pickles import expect_shallow
from bridge._util.shown import Shown
from bridge.errors import InputError
from bridge.zoo.digits import load_digits

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGIT_CLASSES = tuple("0123456789")

CIFAR10_SOURCE = (
    "unpack cifar-10-binary.tar.gz or cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
)
MNIST_SOURCE = "get the four files from https://storage.googleapis.com/cvdf-datasets/mnist, the mirror of LeCun's own"
FASHION_SOURCE = "get the four files from https://github.com/zalandoresearch/fashion-mnist"

CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_TEST = "test_batch"
CIFAR10_SHAPE = (3, 32, 32)
PIXELS = math.prod(CIFAR10_SHAPE)
LARGEST = 700_000_000
"""Bytes of the largest file that is decompressed: 890 000 images of 28×28."""
RECORD = 1 + PIXELS
"""Bytes of an image in the binary layout: its label, then its pixels by channel, row and column."""


@dataclass(frozen=True, eq=False, repr=False)
class Images(Shown):
    """Images and their classes: `x` uint8 ``[N, C, H, W]``, `y` int64 ``[N]``.

    Raises:
        InputError: the types or shapes are others, or there are no images.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4 or not self.x.numel():
            raise InputError(f"images: expected uint8 [N, C, H, W], not empty, got {_described(self.x)}")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise InputError(f"labels: expected int64 [{len(self.x)}], one an image, got {_described(self.y)}")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Shown):
    """A data set: training and test images, the classes' names, and what centres the pixels.

    `mean` and `std` are of pixels / 255 over the training images, one a channel.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels uint8 ``[N, C, H, W]`` as float32 ``(p / 255 − mean) / std``. Raises `InputError` as `normalise`."""
        return normalise(x, self.mean, self.std)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels uint8 ``[N, C, H, W]`` as float32 ``(p / 255 − mean) / std``; `mean` and `std` have one number a channel.

    The order of the operations is torchvision's (ToTensor, Normalize). A channel that never changes (std = 0) is only
    centred.

    Raises:
        InputError: `x` holds no such pixels, or has another number of channels.
    """
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise InputError(f"pixels: expected uint8 [N, C, H, W], got {_described(x)}")
    if not x.shape[1] == len(mean) == len(std):
        raise InputError(f"pixels: {x.shape[1]} channels, but {len(mean)} means and {len(std)} standard deviations")
    centre = torch.tensor(mean, dtype=torch.float32, device=x.device).view(-1, 1, 1)
    spread = torch.tensor([value or 1.0 for value in std], dtype=torch.float32, device=x.device).view(-1, 1, 1)
    return x.to(torch.float32).div_(255).sub_(centre).div_(spread)


def dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """The data set called `name`: "cifar10", "mnist" or "fashion-mnist" from `folder`, "digits" from scikit-learn.

    Raises:
        InputError: there is no data set of that name, `folder` is missing, or as `cifar10` and `mnist`.
        BridgeError: "digits" without scikit-learn.
    """
    if name == "digits":
        return digits()
    if name not in ("cifar10", "mnist", "fashion-mnist"):
        raise InputError(f"no data set is called {name!r}: there are cifar10, mnist, fashion-mnist and digits")
    if folder is None:
        raise InputError(f"{name}: is read from a folder: say which (folder=…, --folder on the command line)")
    return cifar10(folder) if name == "cifar10" else mnist(folder, name)


def digits() -> Dataset:
    """scikit-learn's handwritten digits, 8×8, split as `load_digits` splits them; levels k/16 become 255·k/16.

    Raises:
        BridgeError: scikit-learn is not installed.
    """
    x, y, x_test, y_test = load_digits()
    train = Images((x * 255).round().to(torch.uint8), torch.from_numpy(y))
    test = Images((x_test * 255).round().to(torch.uint8), torch.from_numpy(y_test))
    return _with_statistics("digits", train, test, DIGIT_CLASSES)


def cifar10(folder: str | Path) -> Dataset:
    """CIFAR-10, 32×32 in three channels: ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or a folder with either.

    A batch may hold any number of images, so that parts of the data set can be read. Python pickles are read without
    running anything in them.

    Raises:
        InputError: a file is missing, cannot be read, or is damaged; a label is out of range; a pickle asks for more
            than the official files do.
    """
    batches, binary = _cifar10_batches(_folder(folder))
    read = _binary_batch if binary else _pickled_batch
    ending = ".bin" if binary else ""
    train = _joined([read(_existing(batches / f"{batch}{ending}")) for batch in CIFAR10_TRAIN])
    test = read(_existing(batches / f"{CIFAR10_TEST}{ending}"))
    classes = _named_in_text(batches) if binary else _named_in_pickle(batches)
    return _with_statistics("cifar10", train, test, classes)


def mnist(folder: str | Path, name: str = "mnist") -> Dataset:
    """MNIST, or Fashion-MNIST where `name` is "fashion-mnist": 28×28 in one channel, from the four IDX files.

    They are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``, each plain or with
    ``.gz``, or with a dot before ``idx``; in `folder`, or where torchvision puts them under it.

    Raises:
        InputError: a file is missing, cannot be read, or is damaged; a label is out of range; images and labels differ
            in number.
    """
    if name not in ("mnist", "fashion-mnist"):
        raise InputError(f"no data set in MNIST's files is called {name!r}: there are mnist and fashion-mnist")
    fashion = name == "fashion-mnist"
    root = _folder(folder)
    places = (root, root / "raw", root / ("FashionMNIST" if fashion else "MNIST") / "raw")
    source = FASHION_SOURCE if fashion else MNIST_SOURCE
    train, test = (_idx_images(places, part, source) for part in ("train", "t10k"))
    if train.x.shape[1:] != test.x.shape[1:]:
        raise InputError(
            f"{root}: training images are {_size(train.x)}, test images {_size(test.x)} pixels: "
            f"they belong to different data sets; {source}"
        )
    return _with_statistics(name, train, test, FASHION_CLASSES if fashion else DIGIT_CLASSES)


def split(images: Images, held_out: int, seed: int) -> tuple[Images, Images]:
    """`images` without `held_out` of them, and those: what is chosen on the second part never sees the test images.

    Each class gives up the same share of its images, to within one. The same seed picks the same images; both parts
    keep the order of `images`.

    Raises:
        InputError: `held_out` leaves one of the two empty.
    """
    if not 0 < held_out < len(images):
        raise InputError(f"split: can hold out 1 to {len(images) - 1} of {len(images)} images, not {held_out}")
    counts = torch.bincount(images.y)
    numbers, remainders = counts * held_out // len(images), counts * held_out % len(images)
    most_short = remainders.argsort(descending=True, stable=True)
    numbers[most_short[: held_out - int(numbers.sum())]] += 1
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(images), dtype=torch.bool)
    for label, number in enumerate(numbers.tolist()):
        held[shuffled[images.y[shuffled] == label][:number]] = True
    return Images(images.x[~held], images.y[~held]), Images(images.x[held], images.y[held])


def _with_statistics(name: str, train: Images, test: Images, classes: tuple[str, ...]) -> Dataset:
    mean, std = _statistics(train.x)
    return Dataset(name, train, test, classes, mean, std)


def _statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 in each channel of `x` ``[N, C, H, W]``, from exact integer sums."""
    count = x.numel() // x.shape[1]
    total = torch.zeros(x.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in x.split(1000):  # a whole data set as int64 would take eight times its memory
        values = part.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    mean = total.double() / count
    variance = (squares.double() / count - mean.square()).clamp(min=0)
    return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())


# CIFAR-10


def _cifar10_batches(folder: Path) -> tuple[Path, bool]:
    """The folder with the batches, and whether they are in the binary layout."""
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for binary in (True, False):
            ending = ".bin" if binary else ""
            if any((place / f"{batch}{ending}").is_file() for batch in (*CIFAR10_TRAIN, CIFAR10_TEST)):
                return place, binary
    raise InputError(
        f"{folder}: holds no CIFAR-10: looked for data_batch_1.bin … data_batch_5.bin and test_batch.bin, or the same "
        "without .bin (Python's layout), there and in its folders cifar-10-batches-bin and cifar-10-batches-py; "
        f"{CIFAR10_SOURCE}"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: is missing, though other batches of CIFAR-10 are there; {CIFAR10_SOURCE}")
    return path


def _binary_batch(path: Path) -> Images:
    contents = _contents(path)
    if not contents or len(contents) % RECORD:
        raise InputError(
            f"{path}: expected whole records of {RECORD} bytes (a label, {PIXELS} pixels), {10_000 * RECORD} bytes in "
            f"an official file, got {len(contents)} bytes: it is cut short or no CIFAR-10; {CIFAR10_SOURCE}"
        )
    records = np.frombuffer(contents, np.uint8).reshape(-1, RECORD)
    return _images(path, records[:, 1:].reshape(-1, *CIFAR10_SHAPE), records[:, 0])


def _named_in_text(batches: Path) -> tuple[str, ...]:
    path = batches / "batches.meta.txt"
    if not path.is_file():
        return CIFAR10_CLASSES
    return _ten_names(path, _contents(path).decode("utf-8", "replace").split())


def _pickled_batch(path: Path) -> Images:
    batch = _unpickled(path)
    if "data" not in batch or "labels" not in batch:
        raise InputError(f"{path}: expected the entries data and labels, got {sorted(batch)}; {CIFAR10_SOURCE}")
    pixels, labels = batch["data"], batch["labels"]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"{path}: expected data to be uint8 [N, {PIXELS}], got {got}; {CIFAR10_SOURCE}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(f"{path}: expected labels to be a list of whole numbers; {CIFAR10_SOURCE}")
    if len(labels) != len(pixels):
        raise InputError(f"{path}: holds {len(pixels)} images and {len(labels)} labels; {CIFAR10_SOURCE}")
    return _images(path, pixels.reshape(-1, *CIFAR10_SHAPE), labels)


def _named_in_pickle(batches: Path) -> tuple[str, ...]:
    path = batches / "batches.meta"
    if not path.is_file():
        return CIFAR10_CLASSES
    names = _unpickled(path).get("label_names")
    if not isinstance(names, list):
        raise InputError(f"{path}: expected a list of names in label_names, got {type(names).__name__}")
    return _ten_names(path, (_text(name) for name in names))


def _ten_names(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(names)
    if len(found) != len(CIFAR10_CLASSES):
        raise InputError(f"{path}: expected the names of {len(CIFAR10_CLASSES)} classes, got {len(found)}")
    return found


# Python's pickles. Loading one runs whatever it names, so the few names in the official files stand for the harmless
# classes and functions here, nothing of NumPy is called by a file, and every other name is refused.


class _PickledType:
    """Stands for `numpy.dtype`: its code, as ``u1``."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, which single bytes do not have."""


class _PickledArray:
    """Stands for `numpy.ndarray`: what a file says of an array, which `array` makes if it is one of bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.columns_first, self.data = state

    def array(self) -> NDArray[np.uint8]:
        """The array. Raises `ValueError` if it is not one of uint8."""
        if not isinstance(self.type, _PickledType) or self.type.code != "u1" or not isinstance(self.data, bytes):
            raise ValueError("an array is not one of uint8")
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order="F" if self.columns_first else "C")


def _reconstruct(*_: object) -> _PickledArray:
    """Stands for NumPy's function that makes the empty array, which `__setstate__` then fills."""
    return _PickledArray()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded as {encoding}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _RefusedError(Exception):
    """A pickle names something that the official files do not."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _STAND_INS:
            raise _RefusedError(f"{module}.{name}")
        return _STAND_INS[module, name]


def _unpickled(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text, its arrays not made yet."""
    try:
        contents = bytes(_contents(path))
        expect_shallow(contents, path)
        found = _Unpickler(io.BytesIO(contents), encoding="bytes").load()
        if not isinstance(found, dict):
            raise InputError(f"{path}: expected a dictionary, got {type(found).__name__}; {CIFAR10_SOURCE}")
        return {
            _text(key): value.array() if isinstance(value, _PickledArray) else value for key, value in found.items()
        }
    except InputError:
        raise
    except _RefusedError as error:
        raise InputError(
            f"{path}: asks for {error}, and CIFAR-10's own files for nothing but arrays: it was not loaded, since a "
            f"pickle can run any program; {CIFAR10_SOURCE}"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: cannot be read as a Python pickle of CIFAR-10 ({type(error).__name__}: {error}): it is damaged "
            f"or cut short; {CIFAR10_SOURCE}"
        ) from error


def _text(value: object) -> str:
    """Python 2's strings come as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


# MNIST


def _idx_images(places: tuple[Path, ...], part: str, source: str) -> Images:
    """The images and labels of one part, "train" or "t10k"."""
    images_path = _idx_file(places, f"{part}-images", "idx3-ubyte", source)
    labels_path = _idx_file(places, f"{part}-labels", "idx1-ubyte", source)
    pixels, labels = _idx(images_path, 3, source), _idx(labels_path, 1, source)
    if len(pixels) != len(labels):
        raise InputError(
            f"{images_path} holds {len(pixels)} images, {labels_path.name} {len(labels)} labels: they do not belong "
            f"together; {source}"
        )
    return _images(labels_path, pixels[:, None], labels)


def _idx_file(places: tuple[Path, ...], stem: str, kind: str, source: str) -> Path:
    names = [f"{stem}{separator}{kind}{ending}" for separator in "-." for ending in ("", ".gz")]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    further = " and ".join(str(place.relative_to(places[0])) for place in places[1:])
    raise InputError(f"{places[0]}: looked for {', '.join(names)}, there and in {further}: none is there; {source}")


def _idx(path: Path, dimensions: int, source: str) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file: a magic number, the size of each dimension, then the values."""
    contents = _contents(path)
    header = 4 + 4 * dimensions
    magic = 0x0800 + dimensions  # 08 stands for unsigned bytes
    if len(contents) < header:
        raise InputError(f"{path}: expected a header of {header} bytes, got {len(contents)} bytes in all; {source}")
    found = int.from_bytes(contents[:4], "big")
    if found != magic:
        raise InputError(f"{path}: expected the magic number {magic} (bytes, {dimensions}-D), got {found}; {source}")
    shape = tuple(int.from_bytes(contents[at : at + 4], "big") for at in range(4, header, 4))
    size = math.prod(shape)
    if not size or len(contents) != header + size:
        raise InputError(
            f"{path}: its header says {' × '.join(map(str, shape))} bytes, so {header + size} with itself, got "
            f"{len(contents)}: it is empty, damaged or cut short; {source}"
        )
    return np.frombuffer(contents, np.uint8, offset=header).reshape(shape)


# What all readers need


def _folder(folder: str | Path) -> Path:
    if not isinstance(folder, str | os.PathLike) or str(folder) == "":
        raise InputError(f"expected the path of a folder with a data set, got {folder!r}")
    try:
        path = Path(folder).expanduser()
        if path.is_dir():
            return path
        found = "is a file" if path.exists() else "not found"
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that is not known
        raise InputError(f"{folder}: cannot be read: {error}") from error
    raise InputError(f"{path}: expected a folder with a data set: {found}")


def _contents(path: Path) -> bytes | bytearray:
    """The bytes of a file, decompressed if they are gzip's, whatever its name."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not contents.startswith(b"\x1f\x8b"):
        return contents
    found = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(contents)) as file:
            while part := file.read(2**20):
                found += part
                if len(found) > LARGEST:
                    raise InputError(f"{path}: holds more than {LARGEST:,} bytes, which is as many as are read")
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: the gzip file is damaged or cut short ({error}): get it again") from error
    return found


def _images(path: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8] | list[int]) -> Images:
    """Pixels ``[N, C, H, W]`` and labels 0…9 as tensors of their own; `path` is the labels' file."""
    y = np.asarray(labels)  # not yet int64: a damaged pickle's labels may not fit
    wrong = np.flatnonzero((y < 0) | (y > 9))
    if len(wrong):
        raise InputError(f"{path}: expected labels 0…9, got {y[wrong[0]]} at image {wrong[0]}: it is damaged")
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(y.astype(np.int64)))


def _joined(batches: list[Images]) -> Images:
    return Images(torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))


def _size(x: Tensor) -> str:
    return "×".join(map(str, x.shape[2:]))


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
