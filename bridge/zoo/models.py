"""The zoo's networks by name, and as files: weights in safetensors, with all that is needed to make the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridge._util.files import replacing
from bridge.errors import BridgeError, InputError
from bridge.prepare.checkpoints import load_checkpoint
from bridge.prepare.qcfs import QCFS
from bridge.zoo.digits import digits_model
from bridge.zoo.recipes import Recipe
from bridge.zoo.resnet import resnet18, resnet20, resnet34
from bridge.zoo.small import small_cnn
from bridge.zoo.vgg import vgg16

Shape = tuple[int, int, int]


def _digits(levels: int, threshold: float) -> nn.Module:
    model = digits_model()
    for module in activations(model):
        module.levels = levels
        nn.init.constant_(module.threshold, threshold)
    return model


MODELS: dict[str, Callable[[int, Shape, int, float], nn.Module]] = {
    "resnet18": lambda classes, shape, levels, threshold: resnet18(classes, levels, threshold),
    "resnet20": lambda classes, shape, levels, threshold: resnet20(classes, levels, threshold),
    "resnet34": lambda classes, shape, levels, threshold: resnet34(classes, levels, threshold),
    "vgg16": lambda classes, shape, levels, threshold: vgg16(classes, levels, threshold, image_size=shape[1]),
    "mnist": lambda classes, shape, levels, threshold: small_cnn(classes, levels, threshold, shape[0], shape[1]),
    "digits": lambda classes, shape, levels, threshold: _digits(levels, threshold),
}
"""The networks by name: number of classes, ``(C, H, W)``, L and λ₀ in, the network out."""


def build(name: str, classes: int, shape: Shape, levels: int, threshold: float) -> nn.Module:
    """The untrained network of that name, for images of `shape` ``(C, H, W)``.

    Raises `InputError` for a name that is unknown, or a shape that does not fit.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r}: expected one of {', '.join(MODELS)}")
    try:
        model = MODELS[name](classes, shape, levels, threshold)
    except ValueError as error:
        raise InputError(f"model {name}: it does not take images {list(shape)}: {error}") from error
    model.input_shape = shape  # type: ignore[assignment]
    return model


def activations(model: nn.Module) -> list[QCFS]:
    """The QCFS layers of `model`."""
    return [module for module in model.modules() if isinstance(module, QCFS)]


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the state of `model` as safetensors, whole or not at all; `metadata` is for `load_weights`."""
    # Copies, for the format has neither strides nor two names for one tensor.
    tensors = {
        name: value.detach().cpu().contiguous(memory_format=torch.contiguous_format).clone()
        for name, value in model.state_dict().items()
    }
    with replacing(path) as file:
        file.write(require_safetensors().torch.save(tensors, {"format": "pt", **metadata}))


def load_weights(path: str | Path) -> nn.Module:
    """The trained network in a safetensors file that `train` wrote, in eval mode.

    Raises:
        InputError: there is no such file; it is damaged; or it is of a module that has no name in `MODELS`: make that
            module and use `bridge.load_checkpoint`.
        BridgeError: safetensors is not installed.
    """
    safetensors = require_safetensors()
    path = Path(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = file.metadata() or {}
        name, classes, shape = found["model"], len(json.loads(found["classes"])), tuple(json.loads(found["shape"]))
        recipe = Recipe(**json.loads(found["recipe"]))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise InputError(f"{path}: not weights that bridge.zoo.training.train wrote, or damaged: {error}") from error
    if name not in MODELS:
        raise InputError(
            f"{path}: holds weights of {name}; make that module and use bridge.load_checkpoint(model, path)"
        )
    return load_checkpoint(build(name, classes, shape, recipe.levels, recipe.threshold), path).eval()


def require_safetensors() -> Any:
    """The module that reads and writes weights. Raises `BridgeError` if it is not installed."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise BridgeError('trained weights are written as safetensors: pip install "safetensors>=0.4"') from error
    return safetensors
