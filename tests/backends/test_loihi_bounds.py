"""What `quantize` gives with up to 8 bits fits Loihi's registers: random networks of the kinds that are hard to fit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.backends import require
from support.networks import Residual
from torch import Tensor, nn

import bridge
from bridge import QCFS, BridgeError, SpikingNetwork

STEPS = 4
SIDE = 18


def overlapping(c: int, rng: random.Random) -> list[nn.Module]:
    return [nn.AvgPool2d(3, 2, rng.choice([0, 1])), *rng.choice([[], [nn.Conv2d(c, c, 3), QCFS(4, 1.0)]])]


def stacked(c: int, rng: random.Random) -> list[nn.Module]:
    return [nn.AvgPool2d(2), nn.AvgPool2d(3, 1), *rng.choice([[], [nn.AvgPool2d(2, 1)]])]


def normed(c: int, rng: random.Random) -> list[nn.Module]:
    return [nn.AvgPool2d(2), nn.BatchNorm2d(c), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), QCFS(rng.choice([4, 8]), 1.0)]


def separable(c: int, rng: random.Random) -> list[nn.Module]:
    return [nn.Conv2d(c, c, 3, groups=c, padding=rng.choice([0, 1])), nn.Conv2d(c, c, 1), QCFS(4, 1.0)]


def bottleneck(c: int, rng: random.Random) -> list[nn.Module]:
    first = [nn.Conv2d(c, 2, 1, bias=False), nn.BatchNorm2d(2)]
    return [*first, nn.Conv2d(2, c, 1, bias=False), nn.BatchNorm2d(c), QCFS(8, 1.0)]


def join(c: int, rng: random.Random) -> list[nn.Module]:
    body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), QCFS(4, 1.0), nn.Conv2d(c, c, 1))
    return [Residual(body, nn.Sequential()), QCFS(4, 1.0)]


BLOCKS: list[Callable[[int, random.Random], list[nn.Module]]] = [
    overlapping, stacked, normed, separable, bottleneck, join,
]  # fmt: skip


def drawn(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network of one or two blocks between a convolution and affine layers, some in a row; images for it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    c = rng.choice([3, 4, 6])
    layers: list[nn.Module] = [nn.Conv2d(1, c, 3, padding=1), QCFS(8, 1.0)]
    for block in rng.sample(BLOCKS, rng.choice([1, 2])):
        layers += block(c, rng)
    layers += [nn.Flatten(), nn.LazyLinear(4)]
    layers += rng.choice([[], [nn.Linear(4, 6)], [nn.Linear(4, 6), QCFS(8, 1.0), nn.Linear(6, 3)]])
    model = nn.Sequential(*layers)
    x = torch.rand(16, 1, SIDE, SIDE)
    model(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.2
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, QCFS):
            with torch.no_grad():
                module.threshold.uniform_(0.5, 1.5)
    return model.eval(), x


def given(seed: int, bits: int, scheme: str) -> tuple[SpikingNetwork, Tensor] | None:
    """The network in integers, and its pixels; None if it is refused."""
    model, x = drawn(seed)
    try:
        network = bridge.convert(model, x).quantize(bits, x, scheme)
    except BridgeError as error:
        if "works" not in str(error):  # another number of bits, or none
            raise
        return None
    return network, network.pixels(x[:2])


def agrees(seed: int, bits: int, scheme: str, backends: list[Any]) -> bool:
    """Whether such a network is given; all that are run on `backends` without a differing spike."""
    found = given(seed, bits, scheme)
    if found is None:
        return False
    network, pixels = found
    agreement = network.validate(pixels, STEPS, backends)
    for name, backend in agreement.backends.items():
        assert backend.total_differing == 0, name
        assert backend.agreed, name
    return True


CASES = [(bits, scheme) for bits in (4, 6, 7, 8) for scheme in ("per_layer", "per_channel")]


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 56), marks=pytest.mark.long)], ids=len)
def test_what_is_given_runs_on_the_emulator(seeds):
    """At least five in six are given."""
    runs = [agrees(seed, bits, scheme, ["lava-twin"]) for seed in seeds for bits, scheme in CASES]
    assert sum(runs) >= 5 / 6 * len(runs), f"{sum(runs)} of {len(runs)} are given"


@pytest.mark.parametrize(("seed", "bits"), [(0, 8), (1, 7), (2, 8), (3, 6)])
def test_sequential_networks_on_slayer(seed, bits):
    """With per-layer thresholds; a network that is not sequential is refused by name there, not run wrongly."""
    require("slayer")
    found = given(seed, bits, "per_layer")
    assert found is not None
    network, pixels = found
    try:
        agreement = network.validate(pixels, STEPS, ["slayer"])
    except bridge.GraphError as refused:
        assert any(layer.name in str(refused) for layer in network.graph)  # noqa: PT017
        return
    assert agreement.backends["slayer"].total_differing == 0


@pytest.mark.lava
@pytest.mark.parametrize(
    ("seed", "bits", "scheme"), [(0, 8, "per_channel"), (2, 8, "per_layer"), (4, 4, "per_channel")]
)
def test_what_is_given_runs_on_lava(seed, bits, scheme):
    require("lava-fixed")
    assert agrees(seed, bits, scheme, ["lava-fixed"])


@pytest.mark.parametrize("seeds", [(1, 9), pytest.param(range(2, 40), marks=pytest.mark.long)], ids=len)
@pytest.mark.parametrize("schedule", ["staged", "grouped"])
def test_what_is_given_of_other_schedules_runs_on_the_emulator(schedule, seeds):
    """Their sums come at once, or over a window; the readout's as well keep within 24 bits."""
    given = 0
    for seed, (bits, scheme) in itertools.product(seeds, CASES):
        model, x = drawn(seed)
        try:
            network = bridge.convert(model, x, schedule=schedule).quantize(bits, x, scheme)
        except BridgeError as error:
            assert "works" in str(error)  # noqa: PT017
            continue
        given += 1
        agreement = network.validate(network.pixels(x[:2]), backends=["lava-twin"])
        assert agreement.agreed
        assert agreement.equals_ann is not None
        assert agreement.equals_ann.equal
        assert agreement.backends["lava-twin"].total_differing == 0
    assert given >= 5 / 6 * len(seeds) * len(CASES)
