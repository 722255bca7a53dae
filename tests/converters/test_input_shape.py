"""The shape of a model's input: told by the model, by the caller, or by an example of whatever kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bridge
from bridge import QCFS, InputError
from bridge.zoo import resnet20, vgg16
from bridge.zoo.pretrained import DATA, pretrained


def shape(network: bridge.SpikingNetwork) -> tuple[int, ...]:
    return network.graph.shapes[network.graph.input.name]


def small(*, size: int = 9, stride: int = 1) -> nn.Sequential:
    """Maps of `size`² alone fit its linear layer, if the stride is 1."""
    left = (size - 3) // stride + 1
    return nn.Sequential(nn.Conv2d(3, 2, 3, stride), QCFS(4), nn.Flatten(), nn.Linear(2 * left * left, 5))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(6, 5), QCFS(4), nn.Linear(5, 2)), (6,)),
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 5), QCFS(4)), (6,)),
        (small(), (3, 9, 9)),
        (small(size=101), (3, 101, 101)),
        (nn.Sequential(nn.Conv1d(2, 3, 5), QCFS(4), nn.Flatten(), nn.Linear(300, 2)), (2, 104)),
        (
            nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(1, 2, 3, padding=1), QCFS(4), nn.Flatten(), nn.Linear(50, 2)),
            (1, 5, 5),
        ),
        (resnet20(), (3, 32, 32)),
        (vgg16(), (3, 32, 32)),
        (vgg16(image_size=64), (3, 64, 64)),
    ],
    ids=lambda value: "" if isinstance(value, nn.Module) else str(value),
)
def test_the_model_tells_it(model, expected):
    assert shape(bridge.convert(model)) == expected


@pytest.mark.parametrize("name", DATA)
def test_the_packaged_networks_know_theirs(name):
    model = pretrained(name)
    size = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "resnet20-cifar10": (3, 32, 32)}[name]
    assert shape(bridge.convert(model)) == size
    assert bridge.convert(model).to_nir().nodes["input"].input_type["input"].tolist() == list(size)


def test_a_replaced_model_that_has_been_run_knows_its_own():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    model = bridge.replace_activations(model, levels=4)  # type: ignore[assignment]
    with pytest.raises(InputError, match="input_shape"):
        bridge.convert(model)
    model(torch.rand(4, 3, 11, 13))
    assert shape(bridge.convert(model)) == (3, 11, 13)
    bridge.fit_thresholds(model, torch.rand(8, 3, 12, 12))
    assert shape(bridge.convert(model)) == (3, 12, 12)


def test_the_caller_tells_it():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), QCFS(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    shapes: list[Any] = [(3, 8, 9), [3, 8, 9], torch.Size([3, 8, 9]), np.array([3, 8, 9])]
    for given in shapes:
        assert shape(bridge.convert(model, input_shape=given)) == (3, 8, 9)
    images = torch.rand(4, 3, 8, 9)
    batch = next(iter(DataLoader(TensorDataset(images, torch.zeros(4)), 2)))
    for example in (images, images[:1], images.numpy(), images.double().numpy(), batch, tuple(batch), images.half()):
        assert shape(bridge.convert(model, example)) == (3, 8, 9)


def test_without_anything_the_sizes_that_would_fit_are_listed():
    anything = nn.Sequential(nn.Conv2d(3, 2, 3), QCFS(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    with pytest.raises(InputError, match=r"every size from \(3, 3, 3\) on.*input_shape=\(3, 3, 3\)"):
        bridge.convert(anything)
    with pytest.raises(InputError, match=r"it takes \(3, 9, 9\), \(3, 10, 10\)\).*input_shape=\(3, 9, 9\)"):
        bridge.convert(small(size=9, stride=2))
    with pytest.raises(InputError, match=r"no size up to 1024.*input_shape"):
        bridge.convert(nn.Sequential(nn.Conv2d(3, 2, 3), QCFS(4), nn.Flatten(), nn.Linear(7, 5)))
    with pytest.raises(InputError, match=r"does not tell .*input_shape"):
        bridge.convert(nn.Sequential(QCFS(4)))


@pytest.mark.parametrize("given", [(3, 8.0, 8), (0, 8, 8), (), "3,8,8", (3, -1, 8), (True, 8, 8)])
def test_bad_shapes(given):
    with pytest.raises(InputError, match="input_shape"):
        bridge.convert(small(), input_shape=given)


def test_example_and_shape_together():
    with pytest.raises(InputError, match="not both"):
        bridge.convert(small(), torch.rand(1, 3, 9, 9), input_shape=(3, 9, 9))


SLIPS: dict[str, tuple[nn.Module, tuple[int, ...], str, Any]] = {
    "no batch": (small(), (3, 9, 9), r"x\[None\]", lambda x: x[None]),
    "no batch, one channel": (nn.Sequential(nn.Conv2d(1, 2, 3), QCFS(4)), (1, 8, 8), r"x\[None\]", lambda x: x[None]),
    "no batch, a signal": (nn.Sequential(nn.Conv1d(1, 2, 3), QCFS(4)), (1, 8), r"x\[None\]", lambda x: x[None]),
    "no batch, a pool": (
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 2, 3), QCFS(4)),
        (1, 8, 8),
        r"x\[None\]",
        lambda x: x[None],
    ),
    "channels last": (small(), (2, 9, 9, 3), r"x.permute\(0, 3, 1, 2\)", lambda x: x.permute(0, 3, 1, 2)),
    "no channels": (nn.Sequential(nn.Conv2d(1, 2, 3), QCFS(4)), (5, 8, 8), r"x\[:, None\]", lambda x: x[:, None]),
    "not flat": (nn.Sequential(nn.Linear(64, 2), QCFS(4)), (5, 1, 8, 8), r"x.flatten\(1\)", lambda x: x.flatten(1)),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_named_and_the_remedy_works(slip):
    model, given, says, remedy = SLIPS[slip]
    x = torch.rand(given)
    with pytest.raises(InputError, match=rf"example_input.*{says}"):
        bridge.convert(model, x)
    bridge.convert(model, remedy(x))


def test_the_schedule():
    model = small()
    assert shape(bridge.convert(model, schedule="plain", steps=None)) == (3, 9, 9)
    with pytest.raises(InputError, match="schedule: expected one of 'plain', 'staged', 'grouped', got 'later'"):
        bridge.convert(model, schedule="later")
    with pytest.raises(InputError, match="steps: the plain schedule has no number of steps"):
        bridge.convert(model, steps=8)


def test_exported_programs():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), QCFS(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5)).eval()
    fixed = torch.export.export(model, (torch.rand(1, 3, 9, 9),))
    assert shape(bridge.convert(fixed)) == (3, 9, 9)
    with pytest.raises(InputError, match=r"takes images \[3, 9, 9\], got \[3, 8, 9\]"):
        bridge.convert(fixed, torch.rand(2, 3, 8, 9))
    sizes = {name: torch.export.Dim(name, min=4, max=64) for name in ("batch", "height", "width")}
    dynamic = {0: sizes["batch"], 2: sizes["height"], 3: sizes["width"]}
    anything = torch.export.export(model, (torch.rand(5, 3, 9, 10),), dynamic_shapes=(dynamic,), strict=False)
    with pytest.raises(InputError, match="images of any size; pass one"):
        bridge.convert(anything)
    assert shape(bridge.convert(anything, input_shape=(3, 12, 8))) == (3, 12, 8)
