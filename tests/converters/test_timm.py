"""One of timm's models of each family with plain ReLU: three here, all of them in benchmarks/timm_table.py."""

from __future__ import annotations

import pytest
import timm_table
import torchvision_table
from support.backends import require

QUICK = ("test_resnet", "dla46x_c", "hgnetv2_b0")
LONG = [name for name in timm_table.CONVERTED if name not in QUICK]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("torchvision_operators")]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_converts_and_spikes_alike(name):
    for backend in torchvision_table.BACKENDS:
        require(backend)
    row = timm_table.measure(name, steps=2 if name in QUICK else 4)
    assert row["round_trip"]
    assert row["agreed"]
    assert row["rate"] > 0.01


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnetblur18", "BlurPool2d"),
        ("resnetv2_50x1_bit", "GroupNormAct"),
        ("legacy_seresnet18", "SEModule"),
        ("hrnet_w18_small", "HighResolutionModule"),
    ],
)
def test_is_refused(name, kind):
    row = timm_table.refusal(name)
    assert row["refused"]
    assert kind in row["kinds"]
