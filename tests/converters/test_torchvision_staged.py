"""Other people's architectures with the maximum pools that they have: every activation comes out as a spike count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision_table

import bridge
from bridge.simulate.ann import activations
from bridge.validation.equality import EqualityTally

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("torchvision_operators")]

IMAGES = {"vgg11_bn": 1}
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
    """What is computed from counts; a tie may fall otherwise there than step by step, and all that follows with it."""
    model, x, network = staged(name)
    fast = network.simulate(x, record=True)
    assert fast.record is not None
    assert network.ann is not None
    values, _, _ = activations(network.ann, x)
    equality = EqualityTally.of(network.graph, network.ann, x, fast.record, values).result()
    assert equality.equal
    assert list(equality.compared) == list(network.layers)
    if not any(equality.differing.values()):
        with torch.no_grad():
            expected = model(x)
        output = torch.from_numpy(fast.outputs[-1])
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", *(pytest.param(name, marks=pytest.mark.long) for name in (SHORT[0], "resnet18", "googlenet"))],
)
def test_equals_its_ann_step_by_step(name):
    _, x, network = staged(name)
    equality = network.validate(x, backends=[]).equals_ann
    assert equality is not None
    assert equality.equal
    assert sum(equality.differing.values()) == 0
