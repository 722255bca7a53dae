"""Quantization channel by channel: those without weights, and what their pixels stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bridge
from bridge import QCFS, InputError


@pytest.mark.parametrize("scheme", ["per_channel", "per_layer"])
def test_a_channel_without_weights_keeps_its_bias(scheme):
    """A pruned channel's bias drives its neuron all the same; with 16 bits it fires as in floating point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), QCFS(8, 1.0), nn.Linear(8, 3)).eval()
    linear = model[0]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight[0] = 0
        linear.bias[0] = 0.109
    x = torch.rand(50, 6)
    network = bridge.convert(model, x)
    whole = network.quantize(16, x, scheme)
    one, other = network.run(x, 32).spikes("layer_1"), whole.run(whole.pixels(x), 32).spikes("layer_1")
    assert one[:, :, 0].any()
    assert (one[:, :, 0] == other[:, :, 0]).all()
    with torch.no_grad():
        linear.weight.zero_()
    bare = bridge.convert(model, x)
    whole = bare.quantize(8, x, scheme)
    wrong = bare.run(x, 32).spikes("layer_1") != whole.run(whole.pixels(x), 32).spikes("layer_1")
    assert wrong.mean() < 0.02


def test_a_mean_and_a_std_for_each_channel():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), QCFS(4, 1.0), nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(8, 2, 6, 6)
    network = bridge.convert(model, x)
    for mean, std in (([0.0], [1.0]), ([0.0, 0.0], [1.0]), ([0.0] * 3, [1.0] * 3)):
        with pytest.raises(InputError, match="normalisation: expected means and stds for 2 channels, one each"):
            network.quantize(8, x, normalisation=(mean, std))
    vectors = bridge.convert(nn.Sequential(nn.Linear(4, 3), QCFS(4, 1.0), nn.Linear(3, 2)))
    vectors.quantize(8, torch.rand(20, 4), normalisation=([0.1], [0.3]))  # its features come from one channel
