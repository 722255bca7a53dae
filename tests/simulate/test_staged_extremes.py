"""Staged networks with very many steps a layer, and with one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, staged_oracle
from torch import nn

import bridge
from bridge.graph import Linear, SpikeCount
from bridge.nir_graph import from_nir
from bridge.zoo.pretrained import pretrained

STEPS = 600


def with_levels(model: nn.Module, levels: int) -> nn.Module:
    for module in model.modules():
        if isinstance(module, bridge.QCFS):
            module.levels = levels
    return model


def test_six_hundred_steps_a_layer(monkeypatch):
    """Counts that no byte holds: all trains, what the file says, and what is computed from counts, but for ties."""
    monkeypatch.setattr(staged_oracle, "STEPS", 2 * STEPS)
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), networks.qcfs(4, 3), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), networks.qcfs(4)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    )
    networks.make_dyadic(model).eval()
    x = torch.rand(4, 1, 8, 8)
    network = bridge.convert(model, x, schedule="staged", steps=STEPS)
    assert network.latency == 2 * STEPS - 1
    record = network.run(x)
    expected = staged_oracle.of(model, x.numpy(), STEPS)
    again = bridge.SpikingNetwork(from_nir(network.to_nir())).run(x, record.steps)
    fast = network.simulate(x, record=True).record
    assert fast is not None
    for layer, spikes in zip(network.layers, expected.spikes, strict=True):
        trains, counted = record.spikes(layer), fast.spikes(layer)
        assert trains.sum(0).max() > 255
        np.testing.assert_array_equal(again.packed[layer], record.packed[layer])
        for each in (trains, counted):  # float32 sums of 600 spikes: a tie now and then
            wrong = each != spikes[: record.steps]
            assert wrong.sum(0).max() <= 1
            assert wrong.any(0).mean() < 0.03
    np.testing.assert_allclose(record.outputs()[-1], expected.output, rtol=1e-2, atol=1e-2)
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal
    assert list(equality.windows.values()) == [[1, STEPS], [STEPS, 2 * STEPS - 1]]


@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_six_hundred_levels_beside_a_few_in_integers(schedule):
    """8-bit weights read counts that a byte holds, and counts that none does; n = (2d + θ) // 2θ within 0…T."""
    model = nn.Sequential(
        *(nn.Linear(4, 6), networks.qcfs(STEPS, 6), nn.Linear(6, 5), networks.qcfs(17, 5)),
        *(nn.Linear(5, 5), networks.qcfs(256), nn.Linear(5, 3)),
    )
    x = networks.dyadic_images(20, (4,))
    network = bridge.convert(networks.make_dyadic(model, 4), x, schedule=schedule).quantize(8, x)
    assert network.ann is not None
    pixels = network.pixels(x)
    record = network.run(pixels)
    value = pixels.numpy().astype(np.int64)
    for layer in network.ann.layers[1:]:
        if isinstance(layer, Linear):
            value = value @ layer.weight.astype(np.int64).T + layer.bias.astype(np.int64)
            continue
        assert isinstance(layer, SpikeCount)
        theta = layer.threshold.astype(np.int64)
        value = np.clip((2 * value + theta) // (2 * theta), 0, layer.steps)
        spikes = record.spikes(layer.name)
        np.testing.assert_array_equal(spikes.sum(0) if schedule == "staged" else spikes[0].sum(1), value)
        assert value.max() > (255 if layer.steps > 256 else 9)
    np.testing.assert_array_equal(record.outputs()[-1], value)
    again = bridge.SpikingNetwork(from_nir(network.to_nir())).run(pixels, record.steps)
    fast = network.simulate(pixels, record=True)
    assert fast.record is not None
    for name in network.layers:
        np.testing.assert_array_equal(again.packed[name], record.packed[name])
        np.testing.assert_array_equal(fast.record.packed[name], record.packed[name])
    np.testing.assert_array_equal(fast.outputs, record.outputs())


def test_six_hundred_thresholds_a_neuron():
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), networks.qcfs(4, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4), networks.qcfs(4)),
    )
    x = networks.dyadic_images(4, (1, 8, 8))
    networks.make_dyadic(model, 2).eval()
    network = bridge.convert(model, x, schedule="grouped", steps=STEPS)
    record = network.run(x)
    with torch.no_grad():
        output = with_levels(model, STEPS)(x)
    np.testing.assert_allclose(record.outputs()[-1], output, atol=0.02)  # a tie now and then is one level of 600
    again = bridge.SpikingNetwork(from_nir(network.to_nir())).run(x, 1)
    fast = network.simulate(x, record=True).record
    assert fast is not None
    for layer in network.layers:
        assert record.shapes[layer][0] == STEPS
        np.testing.assert_array_equal(again.packed[layer], record.packed[layer])
        assert (fast.spikes(layer).sum(2) - record.spikes(layer).sum(2)).max() <= 1
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal


def test_one_step_a_layer_is_one_step_in_all():
    """As deep as it may be: all layers of a ResNet-20 fire in the step in which its image comes."""
    model = pretrained("resnet20-cifar10")
    x = torch.randn(3, 3, 32, 32)
    network = bridge.convert(model, x, schedule="staged", steps=1)
    assert network.latency == 1
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal
    assert set(map(tuple, equality.windows.values())) == {(1, 1)}
    assert sum(equality.differing.values()) == 0
    with torch.no_grad():
        output = with_levels(model, 1)(x)
    np.testing.assert_allclose(network.run(x).outputs()[-1], output, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network.simulate(x).outputs[-1], output, rtol=1e-4, atol=1e-4)
    assert 0.01 < network.run(x).spikes(network.layers[-1]).mean() < 0.99
