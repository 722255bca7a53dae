"""The activation: values, gradients, λ, and putting it where ReLU was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support import networks, oracle
from torch import nn

import bridge
from bridge import QCFS, ConversionError, replace_activations


def gradient(of: torch.Tensor) -> torch.Tensor:
    assert of.grad is not None
    return of.grad


@pytest.mark.parametrize("levels", [1, 3, 4, 8, 16])
def test_values(levels):
    z = torch.arange(-64, 129) / 16  # ties of every L among them
    for threshold in (0.5, 1.0, 2.0):
        expected = oracle.activation(z.double().numpy(), levels, np.array(threshold))
        got = QCFS(levels, threshold)(z)
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-6)


def test_values_per_channel():
    thresholds = torch.tensor([0.5, 1.0, 4.0])
    z = networks.dyadic_images(2, (3, 5, 4))
    expected = oracle.activation(z.double().numpy(), 4, thresholds.double().numpy().reshape(1, 3, 1, 1))
    np.testing.assert_array_equal(QCFS(4, thresholds)(z).detach().numpy(), expected)


def test_gradients_are_those_of_the_expression():
    threshold, levels = 2.0, 4
    activation = QCFS(levels, threshold)
    z = torch.tensor([-1.0, -0.2, 0.1, 0.7, 1.9, 2.1, 3.0], requires_grad=True)
    for i in range(len(z)):
        activation.zero_grad()
        z.grad = None
        a = activation(z)
        a[i].backward()
        value = float(z[i].detach())
        raw = np.floor(value * levels / threshold + 0.5) / levels  # before clipping
        inside = 0 <= raw <= 1
        expected_z = 1.0 if inside else 0.0
        expected_threshold = (float(a[i].detach()) - value) / threshold if inside else float(raw > 1)
        grad_z, grad_threshold = map(gradient, (z, activation.threshold))
        assert float(grad_z[i]) == pytest.approx(expected_z)
        assert float(grad_threshold) == pytest.approx(expected_threshold)


def test_threshold_stays_positive_and_recovers():
    activation = QCFS(4, 0.1)
    optimiser = torch.optim.SGD(activation.parameters(), lr=1.0)
    z = torch.full((8,), 5.0)
    activation(z).sum().backward()  # ∂/∂λ = 8: one step sends λ to -7.9
    optimiser.step()
    assert float(activation.threshold.detach()) < 0
    assert bool((activation(z) > 0).all())
    optimiser.zero_grad()
    (-activation(z).sum()).backward()
    optimiser.step()
    assert float(activation.threshold.detach()) > 0


def test_per_channel_takes_its_channels_from_the_first_input():
    activation = QCFS(4, 2.0, per_channel=True)
    assert "per channel" in repr(activation)
    activation(torch.zeros(1, 5, 2, 2))
    assert activation.threshold.shape == (5,)
    assert torch.equal(activation.threshold, torch.full((5,), 2.0))
    fresh = QCFS(4, 1.0, per_channel=True)
    fresh.load_state_dict(activation.state_dict())
    assert torch.equal(fresh.threshold, activation.threshold)
    assert torch.equal(copy.deepcopy(activation).threshold, activation.threshold)


@pytest.mark.parametrize(
    "arguments",
    [
        (0,),
        (-1,),
        (2.5,),
        (True,),
        (4, 0.0),
        (4, -1.0),
        (4, float("nan")),
        (4, torch.tensor([1.0, -1.0])),
        (4, torch.ones(2, 2)),
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"QCFS: (levels|threshold)"):
        QCFS(*arguments)


def test_half_precision_and_autocast():
    assert QCFS(4).bfloat16()(torch.rand(3, 2).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        model = nn.Sequential(nn.Linear(4, 4), QCFS(4))
        model(torch.rand(2, 4)).sum().backward()
    assert model[1].threshold.grad is not None


def test_replace_activations():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.ReLU()
            self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU6(inplace=True), nn.Sequential(nn.ReLU()))

        def forward(self, x):
            return self.shared(self.block(self.shared(x)))

    model = Net().double().eval()
    assert replace_activations(model, levels=4, threshold=3.0) is model
    found = [module for module in model.modules() if isinstance(module, QCFS)]
    assert len(found) == 3
    assert all(module.levels == 4 and not module.training for module in found)
    assert not any(isinstance(module, nn.ReLU | nn.ReLU6) for module in model.modules())
    assert isinstance(replace_activations(nn.ReLU(), levels=2), QCFS)


def test_replace_activations_shared_under_two_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model.append(model[1])
    replace_activations(model, levels=4)
    assert model[1] is model[3]
    assert isinstance(model[3], QCFS)


def test_replace_activations_without_any():
    with pytest.raises(ConversionError, match="no ReLU"):
        replace_activations(nn.Sequential(nn.Linear(2, 2)), levels=4)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_of_qcfs():
    x = 4 * torch.rand(5, 3)
    for threshold in (2.0, torch.tensor([0.5, 1.0, 2.0])):
        activation = QCFS(4, threshold)
        model = nn.Sequential(nn.Linear(3, 3), activation, nn.Linear(3, 2))
        script = torch.jit.script(model)
        assert torch.equal(script(x), model(x))
        script(x).sum().backward()
        gradient = activation.threshold.grad
        assert gradient is not None
        expected = gradient.clone()
        model.zero_grad()
        model(x).sum().backward()
        assert activation.threshold.grad is not None
        assert torch.equal(activation.threshold.grad, expected)
        assert torch.equal(torch.jit.trace(model, x)(x), model(x))
    lazy = nn.Sequential(nn.Linear(3, 3), QCFS(4, per_channel=True))
    with pytest.raises(ConversionError, match="run the model once, then script it"):
        torch.jit.script(lazy)
    expected = lazy(x)
    assert torch.equal(torch.jit.script(lazy)(x), expected)


def test_public_names():
    assert all(hasattr(bridge, name) for name in bridge.__all__)
