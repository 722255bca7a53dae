"""Biases for each step: simulated as the equation says, nearer to the ANN, and refused where they have no meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import digits
from torch import nn

import bridge
from bridge import QCFS, ConversionError, InputError, SpikingNetwork
from bridge.graph import IntegrateFire, Linear
from bridge.passes.calibration.time_bias import TimeBiased
from bridge.zoo.digits import load_digits


def two_layers() -> tuple[SpikingNetwork, Linear, IntegrateFire, Linear]:
    """A network and its layers."""
    torch.manual_seed(3)
    network = bridge.convert(nn.Sequential(nn.Linear(4, 6), QCFS(4, 1.0), nn.Linear(6, 3)), torch.rand(1, 4))
    first, neurons, last = network.graph.layers[1:]
    assert isinstance(first, Linear)
    assert isinstance(neurons, IntegrateFire)
    assert isinstance(last, Linear)
    return network, first, neurons, last


def test_the_equation():
    """Neuron by neuron, u += W x + b + β[t]; s = [u ≥ 1/2]; u −= s; the output is the mean of the readout so far."""
    network, first, neurons, last = two_layers()
    beta = np.linspace(-0.4, 0.4, 3 * 6).reshape(3, 6).astype(np.float32)
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    found = TimeBiased(network.graph, {neurons.name: torch.from_numpy(beta)}).simulate(x)
    assert found.shape == (3, 5, 3)
    for image in range(5):
        drive = first.weight.astype(float) @ x[image].numpy() + first.bias
        u, spikes = np.zeros(6), np.zeros(6)
        for t in range(3):
            u += drive + beta[t]
            fired = u >= neurons.level
            u -= fired
            spikes += fired
            np.testing.assert_allclose(found[t, image], last.weight @ spikes / (t + 1) + last.bias, atol=1e-5)


def test_without_biases_it_is_the_network():
    x, _ = digits.test_images()
    network = digits.network()
    zeros = {name: torch.zeros(4, network.graph.shapes[name][0]) for name in network.layers}
    found = TimeBiased(network.graph, zeros).simulate(x[:70])
    np.testing.assert_allclose(found, network.simulate(x[:70], 4).outputs, atol=1e-5)


def test_the_mean_rates_follow_the_ann():
    """After fitting, the first layer's mean rate is nearer to the ANN's at every step."""
    network, first, neurons, _ = two_layers()
    x = torch.rand(400, 4, generator=torch.Generator().manual_seed(1))
    fitted = network.time_biased(x, 3)
    assert fitted.steps == 3
    drive = x.numpy() @ first.weight.T + first.bias
    wanted = np.clip(np.floor(drive * 4 + 0.5) / 4, 0, 1).mean(axis=0)
    errors = []
    for beta in (np.zeros((3, 6)), fitted.biases[neurons.name].numpy()):
        u, error = np.zeros_like(drive), []
        for t in range(3):
            u += drive + beta[t]
            fired = u >= 0.5
            u -= fired
            error.append(np.abs(fired.mean(axis=0) - wanted).max())
        errors.append(error)
    assert max(errors[1]) < 0.6 * max(errors[0]), errors


def test_bad_input(tmp_path):
    x = load_digits()[0][:8]
    with pytest.raises(InputError, match="steps"):
        digits.network().time_biased(x, 0)
    with pytest.raises(InputError, match="time_biased: this network is in whole numbers"):
        digits.quantized(8).time_biased(x, 2)
    digits.network().save(tmp_path / "net.nir")
    loaded = bridge.load(tmp_path / "net.nir")
    assert isinstance(loaded, SpikingNetwork)
    with pytest.raises(ConversionError, match=r"time_biased: .*no ANN"):
        loaded.time_biased(x, 2)
