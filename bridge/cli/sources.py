"""What the command line takes: networks from files or Python, images from arrays or folders."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge.errors import BridgeError, InputError
from bridge.graph.pixel_grid import normalised
from bridge.network import SpikingNetwork, convert, load
from bridge.simulate.images import checked_pixels

ARRAYS = (".npy", ".npz")
MEMORY, EXPANSION = 512 * 2**20, 16
"""What an array may take in memory: so many bytes, and so many times its file's size beside it."""
LARGEST_PICTURE = 2**25
"""Pixels of the largest picture that is read."""
PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def network(
    source: str, images: Tensor | None = None, schedule: str = "plain", steps: int | None = None
) -> SpikingNetwork:
    """The network of a ``.nir`` file, of an ``.onnx`` file, or of ``module:function``, which returns a torch model.

    A function may also return a `SpikingNetwork`. A torch model that does not tell its input's shape needs `images`.
    `schedule` and `steps` are those of `bridge.convert`; what is a spiking network already keeps its own.

    Raises:
        InputError: `source` is none of these, or the function failed, or it is a spiking network of another schedule.
        GraphError, ConversionError: as `bridge.load` and `bridge.convert`.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".nir":
        found = load(source)
        if not isinstance(found, SpikingNetwork):
            raise InputError(
                f"{source}: another tool's network, which is run as it is: bridge.load(path).run(x, steps) "
                "(docs/foreign_graphs.md)"
            )
        return _of_schedule(found, source, schedule)
    if suffix == ".onnx":
        return convert(source, schedule=schedule, steps=steps)
    module, colon, name = source.partition(":")
    if not colon or not module or not name:
        raise InputError(f"{source}: expected a .nir file, an .onnx file, or module:function, which returns a model")
    model = _made_by(module, name)
    if isinstance(model, SpikingNetwork):
        return _of_schedule(model, source, schedule)
    if not isinstance(model, nn.Module):
        raise InputError(f"{source}: expected a torch.nn.Module or a SpikingNetwork back, got {type(model).__name__}")
    if images is not None:
        return convert(model, input_shape=images.shape[1:], schedule=schedule, steps=steps)
    try:
        return convert(model, schedule=schedule, steps=steps)
    except InputError as error:
        hint = "; here, give them with --images" if "input_shape" in str(error) else ""
        raise InputError(f"{source}: {error}{hint}") from error


def _of_schedule(network: SpikingNetwork, source: str, schedule: str) -> SpikingNetwork:
    """`network`, unless another `schedule` than its own is asked for."""
    if schedule == "staged" and network.latency is None:
        raise InputError(f"{source}: a spiking network already, of the plain schedule; give the model it was made from")
    return network


def _made_by(module: str, name: str) -> object:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does
    try:
        function = getattr(importlib.import_module(module), name)
        return function() if callable(function) and not isinstance(function, nn.Module) else function
    except BridgeError:
        raise
    except Exception as error:
        raise InputError(f"{module}:{name}: cannot be called: {type(error).__name__}: {error}") from error


def images(source: Path, key: str | None = None) -> Tensor:
    """The images in a ``.npy`` file ``[B, ...]``, an ``.npz`` file, or a folder of pictures, as they are stored.

    Integers are pixels, floats the ANN's input. Of an ``.npz``, the array called `key`, or the only one. Pictures are
    pixels, read in the order of their names, as ``[B, C, H, W]`` (C = 1 or 3); all must have one size. Python objects
    are never read.

    Raises:
        InputError: there is no such file, it holds no such array, pictures differ in size, or Pillow is not installed.
    """
    array = _pictures(source) if _is_folder(source) else _array(source, key)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{source}: expected numbers, got {array.dtype}")
    kind = np.float32 if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int64
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{source}: holds {array.max()}, which is no pixel")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))


def ann_input(x: Tensor, normalisation: tuple[list[float], list[float]] | None) -> Tensor:
    """`x`, or if it is pixels, the ANN's input ``(p / 255 − mean) / std``.

    Raises `InputError` if it is pixels and mean and std are not known, or do not fit.
    """
    if x.is_floating_point():
        return x
    if normalisation is None:
        raise InputError(
            "--images: these are pixels, and the ANN was trained on something made of them: give --mean and --std of "
            "(p / 255 - mean) / std (--mean 0 --std 1 for p / 255), or what the ANN takes, a .npy file of floats"
        )
    shape = tuple(x.shape[1:])
    return normalised(*normalisation, shape[0]).decode(checked_pixels(x.numpy(), shape, "--images", None))


def labels(source: Path, key: str | None = None) -> NDArray[np.integer]:
    """The true classes ``[B]`` in a ``.npy`` or ``.npz`` file. Raises `InputError` as `images`."""
    array = _array(source, key)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{source}: expected whole numbers [B], one class an image, got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _is_folder(source: Path) -> bool:
    try:
        return source.is_dir()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error


def _array(source: Path, key: str | None) -> NDArray[np.generic]:
    if source.suffix.lower() not in ARRAYS:
        raise InputError(f"{source}: expected a .npy or .npz file, or a folder of pictures")
    try:
        with source.open("rb") as file:  # which numpy would leave open where it is damaged
            return _array_in(file, source, key)
    except InputError:
        raise
    except Exception as error:  # numpy raises whatever a damaged file leads to
        raise InputError(f"{source}: no array can be read from it ({type(error).__name__}: {error})") from error


def _array_in(file: BinaryIO, source: Path, key: str | None) -> NDArray[np.generic]:
    found = np.load(file, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        names = list(found)
        if key is None and len(names) != 1:
            raise InputError(f"{source}: holds the arrays {names}; say which, as {source}:name")
        if key is not None and key not in names:
            raise InputError(f"{source}: holds the arrays {names}, none called {key!r}")
        name = key or names[0]
        size, bound = found.zip.getinfo(f"{name}.npy").file_size, MEMORY + EXPANSION * source.stat().st_size
        if size > bound:
            raise InputError(f"{source}: {name!r} takes {size} bytes, more than the {bound} of a file of its size")
        array: NDArray[np.generic] = found[name]
        return array


def _values(picture: Any, path: Path) -> tuple[NDArray[np.uint8], bool]:
    """The picture's pixels, ``[H, W]`` of a grey one or ``[H, W, 3]``, and whether it is grey."""
    if picture.mode.startswith("I") or picture.mode == "F":
        bits = 16 if picture.mode.startswith("I;16") else 32
        raise InputError(
            f"{path}: holds values of {bits} bits ({picture.mode}), and pixels have 8; save it with 8 bits a value, or "
            "what the ANN takes as a .npy file of floats"
        )
    grey = picture.mode in ("1", "L")
    return np.asarray(picture.convert("L" if grey else "RGB")), grey


def _pictures(folder: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f'{folder}: reading pictures needs Pillow: pip install "pillow>=10"') from error
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    arrays: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                if math.prod(picture.size) > LARGEST_PICTURE:
                    raise InputError(f"{path}: has {picture.size} pixels; at most {LARGEST_PICTURE:,} are read")
                pixels, grey = _values(picture, path)
        except InputError:
            raise
        except Exception as error:  # Pillow raises whatever a damaged file leads to
            raise InputError(f"{path}: no picture can be read from it: {error}") from error
        arrays.append(pixels[None] if grey else pixels.transpose(2, 0, 1))
        if arrays[-1].shape != arrays[0].shape:
            raise InputError(f"{path}: is {arrays[-1].shape} [C, H, W], {paths[0].name} is {arrays[0].shape}")
    return np.stack(arrays)
