"""The plan of a training run: plain data, settled before its first step, that all who take part in the run read."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bridge.zoo.data import Dataset, Images, split
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.processes import Group

Augment = Callable[..., Tensor]
"""Called like ``bridge.zoo.training.augment.standard``: uint8 ``[B, C, H, W]``, mean, deviation, generator and the
recipe's padding, flip, autoaugment and cutout in; normalised float32 of the same shape out."""
Compile = bool | Literal["auto"]
Metrics = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first step.

    `train`, `layers_checksum` and `runs_of`, of `earlier`, say what each is.
    """

    name: str
    layers: str
    dataset: Dataset
    recipe: Recipe
    out: Path
    seed: int
    augment: Augment
    compile: bool
    evaluate_every: int
    held_out: int
    checkpoint_minutes: float
    group: Group
    earlier: list[dict[str, str]]

    @cached_property
    def images(self) -> tuple[Images, Images]:
        """The images to train on, and those to report accuracy on meanwhile."""
        if not self.held_out:
            return self.dataset.train, self.dataset.test
        return split(self.dataset.train, self.held_out, self.seed)

    @property
    def watched(self) -> str:
        """What the accuracy on the second of `images` is called."""
        return "held_out_accuracy" if self.held_out else "test_accuracy"

    @property
    def batches(self) -> int:
        """Steps an epoch."""
        return len(self.images[0].y) // self.recipe.batch_size

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the final weights depend on, but for a module's own first weights: called again, it is half trained."""
        train = self.dataset.train
        return {
            "model": self.name,
            "layers": self.layers,
            "data": self.dataset.name,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "images": zlib.crc32(train.y.numpy().tobytes(), zlib.crc32(train.x.numpy().tobytes())),
            "held_out": self.held_out,
            "seed": self.seed,
            "augment": f"{getattr(self.augment, '__module__', '')}.{getattr(self.augment, '__qualname__', '')}",
            "processes": self.group.size,
            "device": self.group.device.type,
            "compile": self.compile,
            "initial": self.earlier[-1]["crc32"] if self.earlier else None,
            **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()},
        }

    def rectified(self, epoch: int) -> bool:
        """Whether `epoch` has ReLU in the place of QCFS."""
        return epoch < self.recipe.relu_epochs
