"""Random networks with all that a staged or grouped network can have: joins, pools, readouts of several windows."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import bridge
from bridge import QCFS, SpikingNetwork
from support.networks import Residual


def _activation(channels: int, levels: int) -> QCFS:
    """QCFS with thresholds of its own for each channel."""
    return QCFS(levels, torch.rand(channels) + 0.3)


def maps() -> tuple[nn.Module, tuple[int, ...]]:
    """A residual join, a maximum that is a minimum in some channels, and a pool behind another that goes on."""
    body = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), _activation(3, 4), nn.Conv2d(3, 4, 1))
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), _activation(4, 3), Residual(body, nn.Sequential()), _activation(4, 2)),
        *(norm, nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 3, 1), _activation(3, 5)),
        *(nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(12, 4), QCFS(2, 0.7), nn.Linear(4, 3)),
    )
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.9, -0.7, 0.8, -0.6]))
    return model, (2, 6, 7)


def sequence() -> tuple[nn.Module, tuple[int, ...]]:
    """In one dimension, with a dilated pool; the answer is of spikes."""
    model = nn.Sequential(
        *(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2, 2, dilation=2), _activation(3, 3)),
        *(nn.Conv1d(3, 3, 3, groups=3), QCFS(4, 0.6), nn.Flatten(), nn.Linear(9, 4), QCFS(3, 0.8)),
    )
    return model, (2, 14)


class Ends(nn.Module):
    """A readout of the image and of windows that end at different steps, each alone and both added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.early, self.late = QCFS(4, 0.8), QCFS(3, 0.9)
        self.of_early, self.of_late, self.of_both, self.of_image = (nn.Linear(n, 3) for n in (8, 8, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(self.first(x))
        late = self.late(self.second(early))
        own: Tensor = self.of_early(early) + self.of_late(late) + self.of_image(x)
        both: Tensor = self.of_both(early + late)
        return own + both


def ends() -> tuple[nn.Module, tuple[int, ...]]:
    return Ends(), (6,)


RANDOM = {"maps": maps, "sequence": sequence, "ends": ends}


@cache
def drawn(kind: str, schedule: str, bits: int | None) -> tuple[SpikingNetwork, Tensor]:
    """A network with random weights, in floats or in integers, and its images."""
    torch.manual_seed(len(kind))
    model, shape = RANDOM[kind]()
    x = torch.rand(24, *shape)
    network = bridge.convert(model.eval(), x, schedule=schedule)
    if bits is None:
        return network, x
    whole = network.quantize(bits, x)
    return whole, whole.pixels(x)
