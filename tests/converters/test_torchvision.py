"""Other people's architectures: a few of torchvision's here, all of them in benchmarks/torchvision_table.py."""

from __future__ import annotations

import pytest
import torch
import torchvision_table
from support.backends import require

import bridge
from bridge import ConversionError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("torchvision_operators")]


@pytest.mark.parametrize(
    "name",
    [
        *("shufflenet_v2_x0_5", "squeezenet1_1"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("resnet18", "googlenet")),
    ],
)
def test_converts_and_spikes_alike(name):
    for backend in torchvision_table.BACKENDS:
        require(backend)
    row = torchvision_table.measure(name)
    assert row["round_trip"]
    assert row["agreed"]
    assert row["rate"] > 0.01


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "regnet_y_400mf"])
def test_is_refused(name):
    row = torchvision_table.refusal(name)
    assert row["refused"]
    assert row["listed"] > 10
    assert {"SiLU", "LayerNorm", "SqueezeExcitation"} & set(row["kinds"])


def test_the_page_is_of_the_results():
    """If this fails: python benchmarks/torchvision_table.py."""
    assert torchvision_table.PAGE.read_text(encoding="utf-8") == torchvision_table.page()


def test_training_only_parts_are_refused_as_several_outputs():
    models = torchvision_table.torchvision_models()
    model = models.googlenet(weights=None, init_weights=False, aux_logits=True).eval()
    model = bridge.replace_activations(model, levels=4, max_pool="avg")
    bridge.convert(model, torch.rand(2, 3, 64, 64))  # in eval mode it returns one output, aux classifiers aside
    with pytest.raises(ConversionError):
        bridge.convert(models.VisionTransformer(32, 16, 1, 2, 8, 8).eval(), torch.rand(1, 3, 32, 32))
