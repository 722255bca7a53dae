"""Channels last where torch can go backwards, and only there: elsewhere it would write where it must not."""

from __future__ import annotations

import pytest
import torch
from support.training import TINY, patterns
from torch import nn

import bridge
from bridge import QCFS
from bridge.passes.calibration import gradient
from bridge.zoo.training.preparation import memory_format
from bridge.zoo.training.train import train

LAST, FIRST = torch.channels_last, torch.contiguous_format


def stepping(channels: int) -> nn.Sequential:
    """A network with a convolution of one pixel and these channels that leaves out every second pixel."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        QCFS(TINY.levels, 2.0),
        nn.Conv2d(channels, 8, 1, stride=2),
        QCFS(TINY.levels, 2.0),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.mark.parametrize(
    ("convolutions", "order"),
    [
        ([], LAST),
        ([((1, 1), (2, 2), 4)], FIRST),
        ([((3, 3), (1, 1), 3), ((1, 1), (1, 2), 15)], FIRST),
        ([((3, 3), (2, 2), 3), ((1, 1), (1, 1), 3), ((1, 1), (2, 2), 16)], LAST),
    ],
)
def test_which(convolutions, order):
    layers = (nn.Conv2d(channels, 1, kernel, stride) for kernel, stride, channels in convolutions)
    assert memory_format(nn.Sequential(*layers)) == order


@pytest.mark.parametrize(("channels", "order"), [(4, FIRST), (16, LAST)])
def test_training(channels, order, tmp_path):
    model, seen = stepping(channels), []

    def look(module, arguments):
        if torch.is_grad_enabled():
            seen.append((arguments[0].is_contiguous(memory_format=order), module.weight.is_contiguous()))

    model[2].register_forward_pre_hook(look)
    train(model, patterns(), TINY, tmp_path, compile=False, device="cpu")
    assert seen
    assert all(found for found, _ in seen)
    assert all(contiguous for _, contiguous in seen) or order == LAST


@pytest.mark.parametrize("channels", [4, 16])
def test_calibration_twice_the_same(channels, monkeypatch):
    monkeypatch.setattr(gradient, "FEWEST_STEPS", 60)  # each of which would write where it must not
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network = bridge.convert(stepping(channels), x[:1])
    one, two = (network.calibrate(x, 2).simulate(x, 2).outputs for _ in range(2))
    assert (one == two).all()
