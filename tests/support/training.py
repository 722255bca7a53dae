"""Training runs of half a second, for tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bridge
from bridge.zoo.data import Dataset, Images
from bridge.zoo.recipes import Recipe, learning_rate
from bridge.zoo.training import train as training
from bridge.zoo.training.run_files import METRICS
from bridge.zoo.training.spiking_steps import SpikingSteps
from bridge.zoo.training.train import train

TINY = Recipe(
    epochs=4,
    batch_size=32,
    learning_rate=0.05,
    schedule="one-cycle",
    threshold=2.0,
    relu_epochs=2,
    padding=1,
    flip=False,
    autoaugment=False,
    cutout=2,
)
FINE = replace(TINY, epochs=2, relu_epochs=0, spiking_steps=3, distillation=0.5)
"""For a run that begins with the weights of another one."""
STEPS = 5
"""An epoch's, of `patterns`."""


class Interruption(Exception):  # noqa: N818 it is no error
    """What stops a run in these tests."""


def patterns(images: int = 170, seed: int = 0) -> Dataset:
    """Ten patterns of 8×8 pixels under noise."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(10, 1, 8, 8, generator=generator)

    def some(count: int) -> Images:
        y = torch.arange(count) % 10
        x = pattern[y] + 0.2 * torch.randn(count, 1, 8, 8, generator=generator)
        return Images((x * 255).clamp(0, 255).to(torch.uint8), y)

    return Dataset("patterns", some(images), some(50), tuple("abcdefghij"), (0.5,), (0.3,))


def small_train(out: Path, recipe: Recipe = TINY, **options: Any) -> training.Result:
    return train("digits", patterns(), recipe, out, **{"compile": False, "device": "cpu", **options})


def stopping(at: int) -> Callable[[Recipe, int, float], float]:
    """A `learning_rate` that raises in the step with number `at`, counted from 0."""
    calls = iter(range(10**9))

    def rate(recipe: Recipe, epoch: int, done: float) -> float:
        if next(calls) == at:
            raise Interruption
        return learning_rate(recipe, epoch, done)

    return rate


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """The epoch, and how much of it was over, of each step from now on."""
    steps: list[tuple[int, float]] = []

    def rate(recipe: Recipe, epoch: int, done: float) -> float:
        steps.append((epoch, done))
        return learning_rate(recipe, epoch, done)

    monkeypatch.setattr(training, "learning_rate", rate)
    return steps


def same(one: nn.Module | dict[str, Any], other: nn.Module | dict[str, Any]) -> bool:
    """Whether two networks have the same weights, to the bit."""
    first, second = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupted_at(step: int, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stopping(step))
        with pytest.raises(Interruption):
            small_train(out, **options)


def steps_that_spike(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """T and the number of images of each step that spikes from now on."""
    seen: list[tuple[int, int]] = []
    own = SpikingSteps.logits

    def logits(self: SpikingSteps, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        seen.append((self.steps, len(x)))
        return own(self, forward, x)

    monkeypatch.setattr(SpikingSteps, "logits", logits)
    return seen


def observed(out: Path, recipe: Recipe) -> list[tuple[Tensor, Tensor, float]]:
    """Input, output and λ of a network's QCFS in every training step."""
    seen = []

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        assert isinstance(module, bridge.QCFS)
        if module.training:
            seen.append((arguments[0].detach(), result.detach(), module.threshold.item()))

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    model[2].register_forward_hook(hook)
    train(model, patterns(), recipe, out, compile=False, device="cpu")
    return seen


def lines(out: Path) -> list[dict[str, Any]]:
    """What is in the metrics' file, line by line."""
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
