"""Training that begins with an earlier run's weights: what spikes in it, whom it learns from, what its card says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.training import FINE, STEPS, TINY, interrupted_at, patterns, same, small_train, steps_that_spike
from torch import Tensor, nn

import bridge
from bridge.errors import InputError
from bridge.zoo import models
from bridge.zoo.models import load_weights
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.augment import standard
from bridge.zoo.training.random_numbers import derived
from bridge.zoo.training.run_files import WEIGHTS
from bridge.zoo.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The earlier run."""
    return small_train(tmp_path_factory.mktemp("first"))


def test_spiking_steps_can_be_resumed_and_leave_batch_norm_its_statistics(first, tmp_path, monkeypatch):
    whole = small_train(tmp_path / "whole", FINE, initial=first.weights)
    parts = tmp_path / "parts"
    interrupted_at(STEPS + 2, parts, monkeypatch, recipe=FINE, initial=first.weights, checkpoint_minutes=0.0)
    assert same(small_train(parts, FINE, initial=first.weights).model, whole.model)
    before, after = first.model.state_dict(), whole.model.state_dict()
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not same(before, after)


def test_which_steps_spike(first, tmp_path, monkeypatch):
    seen = steps_that_spike(monkeypatch)
    small_train(tmp_path / "out", FINE, initial=first.weights)
    assert seen == [(3, TINY.batch_size // 3)] * (STEPS // 2) * 2
    with pytest.raises(InputError, match="spiking_steps is for fine-tuning: give initial"):
        small_train(tmp_path / "none", FINE)


@pytest.mark.parametrize("levels", [TINY.levels, 2])
def test_distillation_is_from_the_network_that_the_run_began_with(levels, first, tmp_path):
    """At a rate that changes nothing, the loss is that of the first network under training against itself.

    That has the levels that it was trained with, whatever the recipe's.
    """
    batches = []

    def keep(*arguments: Any, **options: Any) -> Tensor:
        batches.append(standard(*arguments, **options))
        return batches[-1]

    still = replace(TINY, epochs=1, relu_epochs=0, learning_rate=1e-12, distillation=0.75, levels=levels)
    found = small_train(tmp_path / "second", still, initial=first.weights, augment=keep)
    labels = patterns().train.y[torch.randperm(170, generator=torch.Generator().manual_seed(derived(0, "order", 0)))]
    student = load_weights(first.weights)
    for layer in models.activations(student):
        layer.levels = levels
    expected = []
    for batch, (x, y) in enumerate(zip(batches, labels.split(TINY.batch_size)[:STEPS], strict=True)):
        with torch.no_grad():
            taught = first.model(x).double().numpy()
            torch.manual_seed(derived(0, "step", 0, batch, 0))  # dropout's
            logits = student.train()(x).double().numpy()
        losses = []
        for of_student, of_teacher, label in zip(logits, taught, y, strict=True):
            chances = np.exp(of_student) / np.exp(of_student).sum()
            soft, teacher = (np.exp(scores / 4) / np.exp(scores / 4).sum() for scores in (of_student, of_teacher))
            divergence = sum(t * np.log(t / s) for t, s in zip(teacher, soft, strict=True))
            losses.append(0.25 * -np.log(chances[label]) + 0.75 * 4**2 * divergence)
        expected.append(np.mean(losses))
    assert found.metrics[0]["loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    with pytest.raises(InputError, match="distillation is from an earlier run's network: give initial"):
        small_train(tmp_path / "none", still)


def test_the_teacher_has_qcfs_in_float32_too(tmp_path):
    seen = []

    class Watched(bridge.QCFS):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.threshold.requires_grad, x.dtype))
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(1, 8, 3), Watched(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.save(model.state_dict(), tmp_path / "first.pt")
    recipe = replace(TINY, relu_epochs=0, precision="bfloat16", distillation=0.5)
    train(model, patterns(), recipe, tmp_path / "out", initial=tmp_path / "first.pt", compile=False, device="cpu")
    assert (False, torch.float32) in seen  # the teacher's λ rests
    assert {dtype for _, dtype in seen} == {torch.float32}


def calls_of_train(card: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments and options of each call of `train` in a card's "Train it again"."""
    script = card.split("```python\n")[2].split("```")[0]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    record = {"train": lambda *arguments, **options: calls.append((arguments, options)), "folder": "folder"}
    lines = [line for line in script.splitlines() if not line.startswith(("from ", "data = "))]
    exec("\n".join(lines), {**record, "Recipe": Recipe, "data": "data"})
    return calls


def test_it_can_begin_with_given_weights(first, tmp_path):
    recipe = replace(TINY, epochs=1, relu_epochs=0, learning_rate=1e-9, weight_decay=0.0, threshold_weight_decay=0.0)
    second = small_train(tmp_path / "second", recipe, seed=5, initial=first.weights)
    for name, value in first.model.named_parameters():
        assert torch.allclose(value, second.model.state_dict()[name], atol=1e-6), name
    third = small_train(tmp_path / "third", recipe, initial=second.weights)
    card = third.card.read_text()
    assert f"beginning with the weights of a run of 1 epochs ({second.accuracy:.2%})" in card
    calls = calls_of_train(card)
    assert [arguments[:3] for arguments, _ in calls] == [("digits", "data", one) for one in (TINY, recipe, recipe)]
    assert [options["seed"] for _, options in calls] == [0, 5, 0]
    assert "initial" not in calls[0][1]
    for (arguments, _), (_, options) in itertools.pairwise(calls):
        assert options["initial"] == f"{arguments[3]}/{WEIGHTS}"


def test_the_card_defines_the_augmentation_of_ones_own_that_the_run_before_had(tmp_path):
    own = small_train(tmp_path / "first", augment=lambda x, *_, **__: patterns().normalise(x))
    second = small_train(tmp_path / "second", replace(TINY, epochs=1, relu_epochs=0), initial=own.weights)
    assert ["augment" in options for _, options in calls_of_train(second.card.read_text())] == [True, False]


def test_weights_of_another_library_can_be_begun_with(tmp_path):
    model = models.build("digits", 10, (1, 8, 8), 8, 2.0)
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    result = small_train(tmp_path / "out", initial=tmp_path / "theirs.pt")
    assert "beginning with weights of checksum" in result.card.read_text()
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="do not fit"):
        small_train(tmp_path / "out", initial=tmp_path / "other.pt", resume=False)
    with pytest.raises(InputError, match="of another run: initial is"):
        small_train(tmp_path / "out")
