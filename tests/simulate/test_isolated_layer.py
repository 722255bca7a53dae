"""The theorem behind it all: with T = L and constant input, a layer spikes exactly L·a/λ times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, oracle
from torch import nn

import bridge
from bridge import QCFS

WIDTH = 64


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 6, 8, 10, 16, 32])
def test_counts_are_exact_on_the_grid_with_ties(levels):
    """9 × 64 000 draws on a dyadic grid, where nothing rounds and ties are real: every one must be equal."""
    linear, activation = nn.Linear(WIDTH, WIDTH), networks.qcfs(levels, WIDTH)
    model = networks.make_dyadic(nn.Sequential(linear, activation), seed=levels)
    x = networks.dyadic_images(1000, (WIDTH,), seed=levels) / 8
    z = oracle.transform(linear, x.double().numpy())
    threshold = oracle.numpy(activation.threshold)
    expected = levels * oracle.activation(z, levels, threshold) / threshold
    ties = (z * levels / threshold + 0.5) % 1 == 0
    assert ties.sum() > 50
    assert 0.01 < (expected / levels).mean() < 0.99
    record = bridge.convert(model, x[:1]).run(x, levels)
    counts = record.spikes(record.layers[0]).sum(axis=0)
    np.testing.assert_array_equal(counts, expected)
    # The torch activation itself, which the ANN was trained with, says the same.
    with torch.no_grad():
        np.testing.assert_array_equal((model(x) * levels / activation.threshold).double().numpy(), expected)


@pytest.mark.parametrize("levels", [4, 8])
def test_counts_of_arbitrary_floats_differ_at_rounded_ties_only(levels):
    """128 000 draws with arbitrary weights, inputs and λ: float32 may only err where z·L/λ + 1/2 is almost whole."""
    torch.manual_seed(levels)
    linear, activation = nn.Linear(WIDTH, WIDTH), QCFS(levels, torch.rand(WIDTH) + 0.5)
    model = nn.Sequential(linear, activation)
    x = torch.randn(2000, WIDTH)
    z = oracle.transform(linear, x.double().numpy())
    threshold = oracle.numpy(activation.threshold)
    expected = levels * oracle.activation(z, levels, threshold) / threshold
    record = bridge.convert(model, x[:1]).run(x, levels)
    counts = record.spikes(record.layers[0]).sum(axis=0)
    shifted = z * levels / threshold + 0.5
    clear_of_ties = np.abs(shifted - np.round(shifted)) > 1e-4
    assert clear_of_ties.mean() > 0.999
    np.testing.assert_array_equal(counts[clear_of_ties], np.round(expected)[clear_of_ties])


def test_more_steps_than_levels_still_close_in():
    """T ≠ L: the rate is a quantisation of the clipped input with T levels instead of L, never further than 1/2T."""
    x = torch.linspace(-0.5, 1.5, 4001)[:, None]
    linear = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(linear, QCFS(4, 1.0))
    with torch.no_grad():
        linear.weight.fill_(1.0)
    for steps in (1, 3, 8, 64):
        record = bridge.convert(model, x[:1]).run(x, steps)
        rate = record.rates(record.layers[0])[-1]
        assert np.abs(rate - x.clamp(0, 1).numpy()).max() <= 0.5 / steps + 1e-6
