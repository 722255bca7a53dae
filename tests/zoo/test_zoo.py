"""The paper's networks: shapes, sizes, names, and an activation of its own at each place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.backends import require
from torch import nn

from bridge import QCFS, SpikingNetwork, convert, fit_thresholds, load
from bridge.zoo import resnet18, resnet20, resnet34, vgg16
from bridge.zoo.resnet import ResNet

# Weights and activations as counted by hand. VGG-16: 13 convolutions with bias 14 714 688, batch norm 8 448, classifier
# 18 923 530. ResNets for CIFAR with 1×1 projections: the usual 11 173 962 and 21 282 122; ResNet-20 0.27 million, which
# is 269 722 (He et al., table 6: identity shortcuts) and two projections of 2 752 together.
SIZES = {
    vgg16: (33_646_666, 15),
    resnet18: (11_173_962, 17),
    resnet20: (272_474, 19),
    resnet34: (21_282_122, 33),
}


@pytest.mark.parametrize("make", SIZES, ids=lambda make: make.__name__)
def test_size(make):
    weights, activations = SIZES[make]
    model = make()
    found = [module for module in model.modules() if isinstance(module, QCFS)]
    assert len(found) == activations
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + activations
    assert not any(isinstance(module, nn.ReLU | nn.MaxPool2d) for module in model.modules())


@pytest.mark.parametrize("make", [vgg16, resnet18, resnet20], ids=lambda make: make.__name__)
def test_forward_and_backward_and_one_activation_a_place(make):
    model = make(num_classes=7, levels=4, threshold=1.0)
    calls = []
    for module in model.modules():
        if isinstance(module, QCFS):
            assert module.levels == 4
            assert module.threshold.item() == 1.0
            module.register_forward_hook(lambda module, *_: calls.append(module))
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 7)
    assert len(calls) == len(set(calls)) == SIZES[make][1]
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_image_sizes():
    assert resnet20()(torch.randn(2, 3, 48, 40)).shape == (2, 10)
    model = vgg16(image_size=64)
    assert model.classifier[1].in_features == 512 * 2 * 2  # 512 · 7 · 7 for 224
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    for size in (0, 16, 33):
        with pytest.raises(ValueError, match="multiple of 32"):
            vgg16(image_size=size)


def test_dropout():
    assert {module.p for module in vgg16(dropout=0.1).modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_names_are_those_of_the_authors_checkpoints():
    names = set(resnet20().state_dict())
    for name in (
        "conv1.0.weight",
        "conv1.1.running_mean",
        "conv1.2.threshold",
        "conv2_x.0.residual_function.0.weight",
        "conv2_x.0.residual_function.2.threshold",
        "conv2_x.0.residual_function.4.weight",
        "conv3_x.0.shortcut.1.weight",
        "conv4_x.2.act.threshold",
        "fc.bias",
    ):
        assert name in names
    assert not any(name.startswith(("conv5_x", "conv2_x.0.shortcut", "avg_pool")) for name in names)
    names = set(vgg16().state_dict())
    for name in (
        "layer1.0.bias",
        "layer1.2.threshold",
        "layer3.10.threshold",
        "layer5.9.weight",
        "classifier.7.weight",
    ):
        assert name in names
    assert {"classifier.2.threshold", "classifier.5.threshold"} <= names


def test_residual_networks_convert():
    model, x = resnet20(levels=4).eval(), torch.rand(2, 3, 16, 16)
    network = convert(model, x)
    assert len(network.layers) == 19
    with torch.no_grad():
        wrong = float((torch.from_numpy(network.run(x, 32).outputs()[-1]) - model(x)).abs().max())
        assert wrong < float(model(x).std())


def converted(make: Callable[..., nn.Module]) -> tuple[SpikingNetwork, torch.Tensor]:
    """With random weights; and two images."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    return convert(fit_thresholds(make(levels=4).eval(), x, method="max"), x), x


@pytest.mark.parametrize("make", [resnet34, vgg16])
def test_large_ones_convert(make):
    network, x = converted(make)
    assert len(network.layers) == SIZES[make][1]
    record = network.run(x, 4)
    assert all(record.spikes(layer).any() for layer in network.layers)


@pytest.mark.parametrize(
    "make", [resnet18, resnet20, *(pytest.param(large, marks=pytest.mark.long) for large in (resnet34, vgg16))]
)
def test_every_backend_spikes_alike(make, tmp_path):
    """Random weights in float32: the torch backends do the same sums in the same order, so nothing may differ."""
    for name in ("spikingjelly", "snntorch"):
        require(name)
    network, x = converted(make)
    network.save(tmp_path / "net.nir")
    again = load(tmp_path / "net.nir")
    record = network.run(x, 4)
    assert all(record.spikes(layer).any() for layer in network.layers)
    read = again.run(x, 4)
    assert all(np.array_equal(read.packed[layer], record.packed[layer]) for layer in network.layers)
    agreement = network.validate(x, 4, ["spikingjelly", "snntorch"])
    assert agreement.agreed
    assert all(backend.total_differing == 0 for backend in agreement.backends.values())


@pytest.mark.lava
@pytest.mark.parametrize("blocks", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_residual_network_streams_through_lava(blocks):
    """ResNet-8, or ResNet-20: its joins delayed so that both branches arrive together; two images in one stream."""
    require("lava")
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    model = ResNet((blocks,) * 3, (16, 32, 64), num_classes=10, levels=4, threshold=2.0)
    network = convert(fit_thresholds(model.eval(), x, method="max"), x)
    assert all(network.run(x, 3).spikes(layer).any() for layer in network.layers)
    agreement = network.validate(x, 3, ["lava"])
    assert agreement.agreed
    got = agreement.backends["lava"]
    assert got.images == 2
    assert got.total_differing == 0 or got.ties > 0
