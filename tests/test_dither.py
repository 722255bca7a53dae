"""Dither: the shift of QCFS drawn anew in training, against the formula; nothing of it is left afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.zoo.dither import Dither


def stack(threshold: float | torch.Tensor = 1.5) -> nn.Sequential:
    """Two QCFS layers, on images and on vectors."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), bridge.QCFS(8, threshold), nn.Flatten(), nn.Linear(144, 6), bridge.QCFS(4, 0.5)
    )


def shifts_of(dither: Dither, layer: bridge.QCFS, shape: torch.Size, width: float) -> np.ndarray:
    """What was drawn for the layer, in levels."""
    drawn = dither._bytes[layer].numpy()
    if len(shape) == 4:
        batch, channels, *size = shape
        drawn = drawn.reshape(batch, *size, channels).transpose(0, 3, 1, 2)
    return (drawn.reshape(shape).astype(np.float64) - 127.5) / 128 * width


@pytest.mark.parametrize("threshold", [1.5, torch.tensor([0.5, 1.0, 1.5, 2.0])], ids=["one", "per channel"])
def test_it_shifts_as_the_formula_says(threshold):
    model = stack(threshold).train().to(memory_format=torch.channels_last)
    x = torch.rand(16, 1, 8, 8)
    dither = Dither(model, x[:2], 16, 1.5)
    dither.draw(torch.Generator().manual_seed(3))
    heard = []
    model[0].register_forward_hook(lambda module, arguments, z: heard.append(z.detach()))
    with dither.applied():
        model[:2](x.contiguous(memory_format=torch.channels_last))
        z = heard[0]
        a = model[1](z)
    u = shifts_of(dither, model[1], z.shape, 1.5)
    assert -1.5 < u.min() < -1.45
    assert 1.45 < u.max() < 1.5
    rows = np.broadcast_to(np.asarray(threshold, np.float64), 4).reshape(1, 4, 1, 1)
    level = z.numpy().astype(np.float64) * 8 / rows + 0.5 + u
    wanted = rows * np.clip(np.floor(level) / 8, 0, 1)
    clear = np.abs(level - np.round(level)) > 1e-4  # not on the edge, where float32 may round either way
    assert clear.mean() > 0.99
    np.testing.assert_allclose(a.detach().numpy()[clear], wanted[clear], atol=1e-6)


def test_half_a_level_of_it_rounds_without_bias():
    """Known of dither: with ±1/2 level, the mean of what is rounded is what went in."""
    model = nn.Sequential(nn.Flatten(), bridge.QCFS(4, 1.0)).train()
    x = torch.full((1, 100_000), 0.30)
    dither = Dither(model, x, 1, 0.5)
    dither.draw(torch.Generator().manual_seed(0))
    with dither.applied():
        a = model(x)
    assert set(a.unique().tolist()) == {0.25, 0.5}
    assert a.mean().item() == pytest.approx(0.30, abs=4 * 0.1 / 100_000**0.5)
    assert model(x).unique().tolist() == [0.25]


def test_the_threshold_learns_as_if_the_shift_were_a_constant():
    """∂a/∂λ = (a − z)/λ between the clips, of the z without shift: the shift is in levels, not in λ."""
    model = nn.Sequential(nn.Flatten(), bridge.QCFS(8, 2.0)).train()
    x = torch.full((1, 1000), 1.1)
    dither = Dither(model, x, 1, 1.0)
    dither.draw(torch.Generator().manual_seed(0))
    with dither.applied():
        a = model(x)
    a.sum().backward()
    assert model[1].threshold.grad.item() == pytest.approx(((a.detach() - 1.1) / 2).sum().item(), rel=1e-3)


def test_each_draw_and_each_layer_has_its_own():
    model = stack().train()
    x = torch.rand(4, 1, 8, 8)
    dither = Dither(model, x[:2], 4, 1.0)
    drawn = []
    for seed in (1, 1, 2):
        dither.draw(torch.Generator().manual_seed(seed))
        drawn.append([dither._bytes[layer].clone() for layer in (model[1], model[4])])
    assert [len(part) for part in drawn[0]] == [4 * 4 * 36, 4 * 6]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0][:24], drawn[0][1])


def test_it_is_for_training_alone():
    model = stack().train()
    x = torch.rand(4, 1, 8, 8)
    plain = model(x)
    dither = Dither(model, x[:2], 4, 2.0)
    assert model.training
    dither.draw(torch.Generator().manual_seed(0))
    with dither.applied():
        assert not torch.equal(model(x), plain)
        dither.active = False
        assert torch.equal(model(x), plain)
        dither.active = True
        assert torch.equal(model.eval()(x), plain)
    assert torch.equal(model.train()(x), plain)
    assert list(model.state_dict()) == list(stack().state_dict())
