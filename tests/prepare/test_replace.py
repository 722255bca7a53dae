"""QCFS where ReLU was, average pooling where maximum pooling was: as modules, as functions, in odd models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import networks
from support.backends import require
from torch import fx, nn

import bridge
from bridge import QCFS, ConversionError, replace_activations


class Functional(nn.Module):
    """Calls everything as a function, one ReLU module besides."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, ceil_mode=True)
        x = F.max_pool2d(self.conv2(x).relu_(), kernel_size=3, stride=1, padding=1)
        return self.fc(torch.flatten(self.relu(torch.relu(x)), 1))


def test_calls_become_modules():
    model = Functional().train()
    got = replace_activations(model, levels=4, max_pool="avg")
    assert isinstance(got, fx.GraphModule)
    assert got.training
    found = [module for module in got.modules() if isinstance(module, QCFS)]
    assert len(found) == 4
    pools = [module for module in got.modules() if isinstance(module, nn.AvgPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(2, 2, 0), (3, 1, 1)]
    assert got.conv1 is model.conv1  # the weights are the model's own
    x = networks.dyadic_images(4, (1, 6, 6))
    expected = x
    conv1, conv2 = map(got.get_submodule, ("conv1", "conv2"))
    for step in (conv1, QCFS(4), nn.AvgPool2d(2), conv2, QCFS(4), nn.AvgPool2d(3, 1, 1), QCFS(4), QCFS(4)):
        expected = step(expected)
    assert torch.equal(got(x), model.fc(expected.flatten(1)))
    assert len(bridge.convert(got, x).layers) == 4
    got(x).sum().backward()
    assert all(module.threshold.grad is not None for module in found)


def test_maximum_pooling_stays_unless_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    replace_activations(model, levels=4)
    assert isinstance(model[2], nn.MaxPool2d)
    with pytest.raises(ConversionError, match=r'2 \(MaxPool2d\).*max_pool="avg"'):
        bridge.convert(model, torch.zeros(1, 1, 6, 6))
    again = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(8, 2))
    replace_activations(again, levels=4, max_pool="avg")
    assert isinstance(again[2], nn.AvgPool2d)
    bridge.convert(again, torch.zeros(1, 1, 6, 6))


def test_dilated_pooling_and_unknown_choices():
    with pytest.raises(ConversionError, match="dilated"):
        replace_activations(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, dilation=2)), levels=4, max_pool="avg")
    with pytest.raises(ConversionError, match="max_pool"):
        replace_activations(nn.Sequential(nn.ReLU()), levels=4, max_pool="sum")  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match=r"expected a torch\.nn\.Module"):
        replace_activations("model.pt", levels=4)  # type: ignore[arg-type]


def test_a_second_time_there_is_nothing_left():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    replace_activations(model, levels=4)
    with pytest.raises(ConversionError, match="has QCFS already"):
        replace_activations(model, levels=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_other_dtypes(dtype, per_channel):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    replace_activations(model, levels=4, per_channel=per_channel)
    assert model(torch.rand(2, 3, dtype=dtype)).dtype == dtype
    assert model[1].threshold.dtype == dtype


def test_a_shared_module_is_two_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.relu = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.fc2(self.relu(self.fc1(x))))

    model = replace_activations(Twice(), levels=4)
    x = torch.rand(5, 3)
    network = bridge.convert(model, x)
    assert network.layers == ("relu", "relu_1")
    assert np.isfinite(network.run(x, 4).readout).all()
    for name in ("spikingjelly", "snntorch"):
        require(name)
        assert network.validate(x, 4, [name]).agreed
