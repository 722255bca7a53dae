"""Training steps in which the network fires: against a loop over steps, and against the converted network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, oracle
from torch import Tensor, nn

import bridge
from bridge.zoo.training.spiking_steps import SpikingSteps, spike_train


@pytest.mark.parametrize("threshold", [1.5, torch.tensor([0.5, 1.0, 1.5, 2.0])], ids=["one", "per channel"])
def test_spikes_step_by_step(threshold):
    drive = torch.randint(-24, 40, (7, 3, 4, 5, 5), generator=torch.Generator().manual_seed(0)) / 16
    layer = bridge.QCFS(8, threshold)
    levels = np.broadcast_to(np.asarray(threshold, np.float32), 4).reshape(4, 1, 1)
    potential = np.zeros((3, 4, 5, 5), np.float32) + levels / 2
    for now, found in zip(drive.numpy(), spike_train(layer, drive).numpy(), strict=True):
        potential = potential + now
        spikes = np.where(potential >= levels, levels, 0)
        potential = potential - spikes
        np.testing.assert_array_equal(found, spikes)


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_forwards_it_is_the_converted_network(name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(6, shape)
    _, readout = oracle.spikes_of(model, x.numpy(), 4)
    spiking = SpikingSteps(model.eval(), 4)
    before = model(x)
    np.testing.assert_allclose(spiking.logits(model, x).detach().numpy(), readout.mean(axis=0), atol=1e-5)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def gradients(module: nn.Module) -> list[Tensor]:
    """Of all parameters, each of which has one."""
    found = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    assert len(found) == len(list(module.parameters()))
    return found


def test_backwards_it_is_qcfs_of_the_mean_drive():
    torch.manual_seed(0)
    first, layer, last = nn.Linear(5, 6), bridge.QCFS(4, 0.7), nn.Linear(6, 2)
    model, x = nn.Sequential(first, layer, last), torch.randn(9, 5)
    spiking = SpikingSteps(model, 3)
    spiking.logits(model, x).square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    with torch.no_grad():
        rate = spike_train(layer, first(x).expand(3, -1, -1)).mean(dim=0)
    mean = layer(first(x))  # one layer: its drive is the same at every step
    last(mean + (rate - mean).detach()).square().sum().backward()
    torch.testing.assert_close(found, gradients(model))
    assert gradients(layer)[0].abs() > 0


def test_the_gradient_of_several_layers_is_that_of_all_steps():
    """One pass of means, against a pass of every step through layers that hand the mean's gradient to each."""
    torch.manual_seed(1)
    model, x = (
        nn.Sequential(nn.Linear(5, 6), bridge.QCFS(4, 0.7), nn.Linear(6, 6), bridge.QCFS(4, 0.5)),
        torch.randn(9, 5),
    )
    SpikingSteps(model, 3).logits(model, x).square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    values = x.expand(3, -1, -1)
    for layer in model:
        if isinstance(layer, bridge.QCFS):
            mean = layer(values.mean(dim=0))
            values = mean + (spike_train(layer, values) - mean).detach()
        else:
            values = layer(values)
    values.mean(dim=0).square().sum().backward()
    torch.testing.assert_close(found, gradients(model))
