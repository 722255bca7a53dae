"""Recipes: the paper's, one cycle, changes by name, and what is no recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bridge.errors import InputError
from bridge.zoo.recipes import PAPER, SHORT, learning_rate, recipe_named


def test_the_papers_recipe():
    assert (PAPER.epochs, PAPER.learning_rate, PAPER.momentum, PAPER.weight_decay) == (300, 0.1, 0.9, 5e-4)
    assert (PAPER.schedule, PAPER.threshold, PAPER.cutout, PAPER.autoaugment) == ("cosine", 8.0, 16, True)
    rates = [learning_rate(PAPER, epoch, 0.5) for epoch in range(300)]
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=300)
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_one_cycle_runs_once_for_each_part():
    rates = [learning_rate(SHORT, epoch, done / 10) for epoch in range(SHORT.epochs) for done in range(10)]
    parts = rates[: SHORT.relu_epochs * 10], rates[SHORT.relu_epochs * 10 :]
    for part, peak in zip(parts, (SHORT.learning_rate, SHORT.fine_tuning_rate), strict=True):
        assert max(part) == pytest.approx(peak)
        assert part[0] < peak / 10
        assert part[-1] < peak / 1000


def test_changes_to_a_recipe():
    assert recipe_named("short", ["epochs=9", "relu_epochs=0", "flip=false", "schedule=cosine", "momentum=0.8"]) == (
        replace(SHORT, epochs=9, relu_epochs=0, flip=False, schedule="cosine", momentum=0.8)
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shorter", "epochs=3", "recipe 'shorter': expected one of paper, short"),
        ("short", "epoch=3", "where name is one of epochs"),
        ("short", "epochs", "expected name=value"),
        ("short", "epochs=many", "epochs must be a whole number, got 'many'"),
        ("short", "flip=perhaps", "flip must be true or false"),
        ("short", "schedule=linear", "schedule must be one of cosine, one-cycle"),
        ("short", "momentum=1", "momentum must be at least 0 and below 1, got 1.0"),
        ("short", "relu_epochs=40", "relu_epochs must be at least 0 and below epochs, got 40"),
        ("short", "learning_rate=nan", "learning_rate must be positive, got nan"),
        ("short", "cutout=-1", "cutout must be at least 0"),
        ("short", "distillation=1.5", "distillation must be from 0 to 1, got 1.5"),
    ],
)
def test_a_bad_recipe(name, change, message):
    with pytest.raises(InputError, match=message):
        recipe_named(name, [change])


def test_a_recipe_of_the_wrong_kind():
    with pytest.raises(InputError, match=r"epochs must be int, got 2\.5"):
        replace(SHORT, epochs=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="flip must be bool, got 1"):
        replace(SHORT, flip=1)  # type: ignore[arg-type]
