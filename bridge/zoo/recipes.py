"""How a network is trained: every number that its final weights depend on, except the seed and the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from bridge.errors import InputError

Schedule = Literal["cosine", "one-cycle"]
Precision = Literal["float32", "bfloat16", "auto"]

WARM_UP = 0.3
"""Share of one cycle in which the learning rate rises."""
FIRST_RATE = 0.04
"""Where one cycle begins, as a share of its peak."""


def _check_kind(name: str, kind: Any, value: object) -> None:
    """Raise `InputError` unless `value` is of the field's type."""
    if choices := get_args(kind):
        if value not in choices:
            raise InputError(f"recipe: {name} must be one of {', '.join(choices)}; got {value!r}")
    elif kind is bool or isinstance(value, bool):
        if not (kind is bool and isinstance(value, bool)):
            raise InputError(f"recipe: {name} must be {kind.__name__}, got {value!r}")
    elif not isinstance(value, (int, float) if kind is float else kind):
        raise InputError(f"recipe: {name} must be {kind.__name__}, got {value!r}")


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent on augmented images.

    Attributes:
        epochs: how often all training images are used, ReLU epochs included.
        batch_size: images a step, of all processes together. What remains of an epoch is left out of it.
        learning_rate: the first, or the peak of one cycle.
        momentum: of SGD.
        weight_decay: of all parameters but λ.
        schedule: ``"cosine"``: half a cosine down to 0, changed once an epoch, as in the authors' code;
            ``"one-cycle"``: up in a line, down in half a cosine, changed every step.
        levels: L of every QCFS.
        threshold: λ₀, their λ at the start; without effect after ReLU epochs.
        relu_epochs: 0, QCFS from the start; else so many epochs with ReLU in its place, then λ fitted to training
            images by `bridge.fit_thresholds`, and the rest with QCFS. The schedule then runs once for each part.
        fine_tuning_rate: `learning_rate` of the part that follows ReLU epochs.
        padding: zeros round an image before it is cropped to its size again, anywhere.
        flip: mirror half of the images.
        autoaugment: AutoAugment's policy for CIFAR-10.
        cutout: side of the square that is blanked, in pixels; 0 for none.
        spiking_steps: 0, or T: every second step runs the network as spikes at T time steps, with the first 1/T of its
            images (see `bridge.zoo.training.spiking_steps`). For a few epochs of fine-tuning: batch norm and dropout
            are as at inference throughout, so begin with trained weights.
        distillation: share of the loss that is not of the labels, but of what the network that the run began with
            says of the same images (`bridge.passes.calibration.losses`): it teaches more than labels do, and
            keeps fine-tuning from forgetting.
        label_smoothing: share of a label spread over all classes.
        threshold_weight_decay: of λ. Behind batch norm (γ, β) and before another one, scaling γ, β and λ together
            changes nothing, so decaying all three alike changes nothing either, while sparing λ alone would push the
            activations towards fewer and fewer of the levels: give both decays the same value, as the authors do.
        precision: ``"bfloat16"`` computes convolutions and linear layers in it, QCFS, loss and parameters in float32;
            ``"auto"`` is that where the processor has it.

    Raises:
        InputError: a value is out of range.
    """

    epochs: int = 300
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    levels: int = 8
    threshold: float = 8.0
    relu_epochs: int = 0
    fine_tuning_rate: float = 0.05
    padding: int = 4
    flip: bool = True
    autoaugment: bool = True
    cutout: int = 16
    spiking_steps: int = 0
    distillation: float = 0.0
    label_smoothing: float = 0.0
    threshold_weight_decay: float = 5e-4
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Recipe).items():
            _check_kind(name, kind, getattr(self, name))
        for name in ("epochs", "batch_size", "levels"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "threshold", "fine_tuning_rate"):
            self._check(name, 0 < getattr(self, name) < math.inf, "positive")
        for name in ("weight_decay", "threshold_weight_decay"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("padding", "cutout", "spiking_steps"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("momentum", "label_smoothing"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._check("distillation", 0 <= self.distillation <= 1, "from 0 to 1")
        self._check("relu_epochs", 0 <= self.relu_epochs < self.epochs, "at least 0 and below epochs")
        if self.spiking_steps:
            self._check("relu_epochs", self.relu_epochs == 0, "0 where there are spiking_steps")
            self._check("batch_size", self.batch_size >= self.spiking_steps, "at least spiking_steps")

    @property
    def augmentation(self) -> dict[str, Any]:
        """What `bridge.zoo.training.augment.standard` takes of it, by name."""
        return {name: getattr(self, name) for name in ("padding", "flip", "autoaugment", "cutout")}

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise InputError(f"recipe: {name} must be {expected}, got {getattr(self, name)!r}")


PAPER = Recipe()
"""The authors' code (``putshua/ANN_SNN_QCFS``); give L = 4 or 8."""

SHORT = Recipe(
    epochs=40,
    schedule="one-cycle",
    threshold=2.0,
    relu_epochs=20,
    autoaugment=False,
    cutout=8,
    precision="auto",
)
"""What a processor can afford. Few epochs leave no time to overfit, so augmentation is light."""

RECIPES = {"paper": PAPER, "short": SHORT}


def learning_rate(recipe: Recipe, epoch: int, done: float) -> float:
    """The learning rate when the share `done` of `epoch` (counted from 0) is over."""
    first, length, peak = 0, recipe.epochs, recipe.learning_rate
    if recipe.relu_epochs:
        length = recipe.relu_epochs
        if epoch >= recipe.relu_epochs:
            first, length, peak = recipe.relu_epochs, recipe.epochs - recipe.relu_epochs, recipe.fine_tuning_rate
    if recipe.schedule == "cosine":
        return peak * _half_cosine((epoch - first) / length)
    time = (epoch - first + done) / length
    if time < WARM_UP:
        return peak * (FIRST_RATE + (1 - FIRST_RATE) * time / WARM_UP)
    return peak * _half_cosine((time - WARM_UP) / (1 - WARM_UP))


def _half_cosine(time: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * time)) / 2


def recipe_named(name: str, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of that name with `changes` such as ``"epochs=30"`` or ``"flip=false"``.

    Raises `InputError` for a name that is unknown, or a value that is none or out of range.
    """
    if name not in RECIPES:
        raise InputError(f"recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return replace(RECIPES[name], **dict(map(_change, changes)))


def _change(text: str) -> tuple[str, Any]:
    """The field and the value in ``"name=value"``."""
    name, equals, value = text.partition("=")
    kinds = get_type_hints(Recipe)
    if not equals or name not in kinds:
        raise InputError(f"recipe: {text!r}: expected name=value, where name is one of {', '.join(kinds)}")
    kind = kinds[name]
    try:
        if kind is bool:
            return name, {"true": True, "false": False}[value.lower()]
        return name, kind(value) if kind in (int, float) else value
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"recipe: {name} must be {expected}, got {value!r}") from None
