"""What a run is given, checked and made ready: its network, its batches, and whether it is compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bridge._util.memory_format import while_learning
from bridge.errors import InputError
from bridge.prepare.inference import at_inference
from bridge.prepare.qcfs import QCFS
from bridge.zoo.data import Dataset
from bridge.zoo.models import activations, build
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.plan import Compile
from bridge.zoo.training.processes import Group
from bridge.zoo.training.random_numbers import derived

COMPILE_FROM = 1500
"""Steps that do not spike from which compiling, a minute, pays: it saves 0.2 s a step of ResNet-20 on two cores."""


def network_to_train(
    model: str | nn.Module, dataset: Dataset, recipe: Recipe, seed: int, device: torch.device
) -> tuple[nn.Module, str]:
    """The network to train, on the `device`, and what to call it."""
    shape: Any = tuple(dataset.train.x.shape[1:])
    torch.manual_seed(derived(seed, "weights"))
    if isinstance(model, str):
        network, name = build(model, len(dataset.classes), shape, recipe.levels, recipe.threshold), model
    else:
        network, name = model, type(model).__name__
    found = {module.levels for module in activations(network)}
    if not found:
        raise InputError(f"train: {name} has no QCFS: call bridge.replace_activations(model, levels=...) first")
    if found != {recipe.levels}:
        raise InputError(f"train: {name} has L = {sorted(found)}, the recipe L = {recipe.levels}: make them equal")
    network.to(device)
    try:
        with at_inference(network), torch.no_grad():
            out = network(dataset.normalise(dataset.train.x[:2]).to(device))
    except Exception as error:
        raise InputError(f"train: {name} does not take images {list(shape)}: {error}") from error
    if out.shape[1:] != (len(dataset.classes),):
        raise InputError(
            f"train: {name} gives {list(out.shape[1:])} values an image; {dataset.name} has "
            f"{len(dataset.classes)} classes"
        )
    network.to(memory_format=memory_format(network))  # type: ignore[call-overload]  # now that λ of channels is there
    return network, name


def layers_checksum(network: nn.Module) -> str:
    """A checksum of what `network` is made of, whatever the values of its parameters."""
    described = [
        (name, type(module).__name__, "" if isinstance(module, QCFS) else module.extra_repr())
        for name, module in network.named_modules()
    ]
    return f"{zlib.crc32(repr(described).encode()):08x}"


def memory_format(network: nn.Module) -> torch.memory_format:
    """What its images and weights have while it learns."""
    return while_learning(
        (module.kernel_size, module.stride, module.in_channels)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    )


def check_batch(recipe: Recipe, images: int, group: Group) -> None:
    """Raise `InputError` unless there are `images` enough for a batch, which has equal shares for all of `group`."""
    if recipe.batch_size > images:
        raise InputError(f"train: batch_size = {recipe.batch_size}, but there are only {images} training images")
    if recipe.batch_size % group.size:
        raise InputError(f"train: batch_size = {recipe.batch_size} cannot be shared out to {group.size} processes")


def compiles(wanted: Compile, recipe: Recipe, images: int, device: torch.device) -> bool:
    """Whether the steps of a run are compiled: as `wanted`, or where it pays and a compiler is there."""
    if wanted != "auto":
        return wanted
    steps = recipe.epochs * (images // recipe.batch_size)
    if (steps // 2 if recipe.spiking_steps else steps) < COMPILE_FROM:
        return False
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    return device.type == "cpu" and compiler and Path(sysconfig.get_paths()["include"], "Python.h").exists()
