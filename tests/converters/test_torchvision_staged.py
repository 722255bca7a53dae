"""Other people's architectures with the maximum pools that they have: every activation comes out as a spike count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision_table

import bridge

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("torchvision_operators")]

IMAGES = {"resnet101": 1, "resnet152": 1, "densenet121": 1, "vgg11_bn": 1}
"""How many; 4 of the others."""
SIZES = {"vgg11_bn": 224}
"""Of images; 96 of the others. VGG's last pool wants what divides 7."""
SHORT = ("shufflenet_v2_x1_0", "squeezenet1_1")
LONG = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "googlenet", "densenet121", "vgg11_bn")


def staged(name: str) -> tuple[torch.nn.Module, torch.Tensor, bridge.SpikingNetwork]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(torchvision_table.torchvision_models(), name)(weights=None, **options).eval()
    size = SIZES.get(name, 96)
    x = torch.rand(IMAGES.get(name, 4), 3, size, size)
    model = bridge.fit_thresholds(bridge.replace_activations(model, levels=4), x).eval()
    return model, x, bridge.convert(model, x, schedule="staged")


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_equals_its_ann(name):
    model, x, network = staged(name)
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal
    assert len(equality.compared) == len(network.layers)
    with torch.no_grad():
        expected = model(x)
    output = torch.from_numpy(network.simulate(x).outputs[-1])
    if not any(equality.differing.values()):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-6)
