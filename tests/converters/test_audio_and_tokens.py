"""A network for sound and one that mixes tokens: written as their authors write them, converted, alike everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision_table
from support import own_forward
from support.backends import require
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import bridge
from bridge import QCFS

STEPS = 4


class Audio(nn.Module):
    """Blocks of causal, dilated convolutions as WaveNet has them, behind a wide kernel with a stride as M5 has it."""

    def __init__(self, channels=8):
        super().__init__()
        self.first = weight_norm(nn.Conv1d(1, channels, 16, stride=4))
        self.norm = nn.BatchNorm1d(channels)
        self.dilated = nn.ModuleList(weight_norm(nn.Conv1d(channels, channels, 3, dilation=2**at)) for at in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in self.dilated)
        self.pool = nn.AvgPool1d(3, stride=2, ceil_mode=True)
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.first(x))))
        for at, (conv, norm) in enumerate(zip(self.dilated, self.norms, strict=True)):
            x = x + F.relu(norm(conv(F.pad(x, (2 * 2**at, 0)))))
        return self.classifier(self.pool(x).mean(-1))


class Block(nn.Module):
    """A block of MLP-Mixer with batch norm for layer norm, and QCFS for GELU."""

    def __init__(self, tokens, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm1d(width), nn.BatchNorm1d(width)])
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), QCFS(4, 1.5), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 24), QCFS(4, 1.5), nn.Linear(24, width))

    def forward(self, x):  # [B, tokens, width]
        y = self.norms[0](x.transpose(1, 2))
        x = x + self.tokens(y).transpose(1, 2)
        y = self.norms[1](x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(y)


class Mixer(nn.Module):
    """Patches to tokens, two blocks, the mean over the tokens."""

    def __init__(self, width=10):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.act = QCFS(4, 1.0)
        self.blocks = nn.Sequential(Block(9, width), Block(9, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.act(self.patches(x)).flatten(2).transpose(1, 2)
        return self.head(self.blocks(x).mean(dim=1))


def audio():
    x = torch.randn(8, 1, 203)  # the last window of either pool is cut
    model = Audio()
    with torch.no_grad():
        model.train()(x)  # for batch norm's statistics
    replaced = bridge.replace_activations(model.eval(), levels=4)
    return bridge.fit_thresholds(replaced, x, method="max"), x


def mixer():
    x = torch.rand(8, 3, 12, 12)
    model = Mixer()
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


@pytest.mark.filterwarnings("ignore")  # of the frameworks
@pytest.mark.parametrize(("make", "spiking"), [(audio, 4), (mixer, 5)])
def test_converts_and_spikes_alike(make, spiking, torchvision_operators):
    for backend in torchvision_table.BACKENDS:
        require(backend)
    model, x = make()
    row = torchvision_table.compared(model, x[:2], STEPS)
    assert row["layers"] == spiking
    assert row["round_trip"]
    assert row["agreed"]
    assert row["rate"] > 0.05


@pytest.mark.parametrize("make", [audio, mixer])
def test_it_is_the_models_own_forward(make):
    """In float64, where no potential comes near its threshold by rounding."""
    model, x = make()
    expected, nearest = own_forward.outputs(model, x.double(), STEPS)
    assert nearest > 1e-6
    got = bridge.convert(model, x).run(x, STEPS).outputs()
    torch.testing.assert_close(torch.from_numpy(got), expected.float(), atol=1e-5, rtol=1e-4)
