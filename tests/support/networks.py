"""Networks to test with. Everything in them is a small multiple of a power of two, so that all sums are exact."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from bridge import QCFS

Model = TypeVar("Model", bound=nn.Module)


class Residual(nn.Module):
    """The sum of what its branches make of the same input; no branch is an empty ``nn.Sequential``."""

    joins = "add"

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor
        total, *rest = (branch(x) for branch in self.branches)
        for other in rest:
            total = total + other
        return total


class Branches(Residual):
    """What its branches make of the same input, side by side."""

    joins = "concat"

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def dyadic(shape: tuple[int, ...], quantum: float, limit: int, generator: torch.Generator) -> Tensor:
    """Random multiples of `quantum` between ``±limit·quantum``."""
    return torch.randint(-limit, limit + 1, shape, generator=generator).float() * quantum


def make_dyadic(model: Model, seed: int = 0) -> Model:
    """Give `model` random parameters on a dyadic grid: ties are frequent, and float32 sums are exact."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.weight.copy_(dyadic(tuple(module.weight.shape), 1 / 8, 6, g))
                if module.bias is not None:
                    module.bias.copy_(dyadic(tuple(module.bias.shape), 1 / 8, 4, g))
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 0.0
                size = (module.num_features,)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(dyadic(size, 1 / 8, 4, g))
                module.running_var.copy_(4.0 ** torch.randint(-1, 2, size, generator=g).float())
                module.weight.copy_(dyadic(size, 1 / 4, 6, g))
                module.bias.copy_(dyadic(size, 1 / 8, 4, g))
            elif isinstance(module, QCFS):
                module.threshold.copy_(2.0 ** torch.randint(-1, 3, tuple(module.threshold.shape), generator=g).float())
    return model


def dyadic_images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return dyadic((count, *shape), 1 / 8, 8, torch.Generator().manual_seed(seed))


def qcfs(levels: int = 4, channels: int = 0) -> QCFS:
    return QCFS(levels, torch.ones(channels) if channels else 1.0)


def mlp() -> tuple[nn.Sequential, tuple[int, ...]]:
    model = nn.Sequential(
        nn.Linear(6, 12),
        nn.BatchNorm1d(12),
        qcfs(),
        nn.Dropout(),
        nn.Linear(12, 9, bias=False),
        qcfs(8, 9),
        nn.Linear(9, 5),
    )
    return make_dyadic(model), (6,)


def cnn() -> tuple[nn.Sequential, tuple[int, ...]]:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        qcfs(4, 6),
        nn.Conv2d(6, 8, (3, 2), stride=2, padding=(0, 1), dilation=(2, 1), groups=2),
        qcfs(8),
        nn.AvgPool2d(2, stride=(1, 2)),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 10),
        qcfs(4, 10),
        nn.Linear(10, 4),
    )
    return make_dyadic(model, 1), (2, 9, 7)


def awkward() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Where factors cannot simply be folded into the affine layer next door."""
    model = nn.Sequential(
        nn.BatchNorm2d(2),  # before any affine layer
        qcfs(4, 2),  # an activation of the input itself
        nn.AvgPool2d(2, padding=1),
        qcfs(4, 2),  # no affine layer between two activations
        nn.BatchNorm2d(2),  # after an activation, before a padded convolution
        nn.Conv2d(2, 4, 3, padding=1),
        nn.AvgPool2d(2),
        qcfs(8, 4),  # the pool stands between an activation and its affine layer
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 3, 1),  # two affine layers in a row
        qcfs(4, 3),
        nn.Conv2d(3, 2, 1),
        nn.AvgPool2d(2),  # the readout is a pooled feature map
    )
    return make_dyadic(model, 3), (2, 6, 8)


def ends_in_spikes() -> tuple[nn.Sequential, tuple[int, ...]]:
    return make_dyadic(nn.Sequential(nn.Linear(5, 7), qcfs(4, 7), nn.Linear(7, 3), qcfs(4, 3)), 3), (5,)


def residual() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Identity, projected and strided skips, with a different λ on each branch and each channel."""

    def body(a: int, b: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.BatchNorm2d(b), qcfs(4, b)),
            *(nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)),
        )

    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), qcfs(4, 4)),
        *(Residual(body(4, 4), nn.Sequential()), qcfs(4, 4)),
        *(Residual(body(4, 6, 2), nn.Sequential(nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6))), qcfs(4, 6)),
        *(Residual(body(6, 6), nn.Sequential(), nn.Sequential(qcfs(2, 6))), nn.BatchNorm2d(6), qcfs(8)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    return make_dyadic(model, 4), (2, 8, 8)


def dense() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Concatenations: of spikes with different λ, of the input itself, before a norm, before a pool, of vectors."""
    grow = nn.Sequential(nn.BatchNorm2d(4), qcfs(4, 4), nn.Conv2d(4, 3, 3, padding=1, bias=False))
    first = nn.Sequential(nn.Conv2d(7, 2, 1), qcfs(4, 2))
    last = nn.Sequential(nn.Conv2d(7, 4, (1, 3), padding=(0, 1), groups=1), qcfs(2))
    pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(7, 2, 1), qcfs(8, 2))
    inception = Branches(first, pooled, last)
    for module in inception.modules():
        if isinstance(module, nn.AvgPool2d):
            module.kernel_size, module.padding, module.stride = 2, 0, 1
    first.append(nn.AvgPool2d(2, 1))
    last.append(nn.AvgPool2d(2, 1))
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), Branches(nn.Sequential(), grow)),
        *(nn.BatchNorm2d(7), qcfs(4, 7), inception, nn.ChannelShuffle(2), nn.AvgPool2d(2), nn.Flatten()),
        Branches(nn.Sequential(nn.Linear(32, 5), qcfs(4, 5)), nn.Sequential(nn.Linear(32, 4), qcfs(4))),
        nn.Linear(9, 3),
    )
    return make_dyadic(model, 6), (2, 5, 5)


def signal() -> tuple[nn.Sequential, tuple[int, ...]]:
    """One dimension: Conv1d, its norm, a residual, an average."""
    model = nn.Sequential(
        *(nn.Conv1d(2, 4, 5, stride=2, padding=2), nn.BatchNorm1d(4), qcfs(4, 4)),
        *(Residual(nn.Sequential(nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2)), nn.Sequential()), qcfs(4)),
        *(nn.BatchNorm1d(4), qcfs(4), nn.Flatten(), nn.Linear(4 * 8, 3)),
    )
    return make_dyadic(model, 5), (2, 16)


CHAINS = {"mlp": mlp, "cnn": cnn, "awkward": awkward, "ends_in_spikes": ends_in_spikes}
ALL = {**CHAINS, "residual": residual, "dense": dense, "signal": signal}
