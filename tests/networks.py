"""Networks to test with. Everything in them is a small multiple of a power of two, so that all sums are exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bridge import QCFS


def dyadic(shape: tuple[int, ...], quantum: float, limit: int, generator: torch.Generator) -> Tensor:
    """Random multiples of `quantum` between ``±limit·quantum``."""
    return torch.randint(-limit, limit + 1, shape, generator=generator).float() * quantum


def make_dyadic(model: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """Give `model` random parameters on a dyadic grid: ties are frequent, and float32 sums are exact."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(dyadic(tuple(module.weight.shape), 1 / 8, 6, g))
                if module.bias is not None:
                    module.bias.copy_(dyadic(tuple(module.bias.shape), 1 / 8, 4, g))
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 0.0
                size = (module.num_features,)
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


ALL = {"mlp": mlp, "cnn": cnn, "awkward": awkward, "ends_in_spikes": ends_in_spikes}
