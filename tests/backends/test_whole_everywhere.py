"""One network in whole numbers, every backend: not one spike and not one output differs. Nothing is ever a tie here."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from support import digits, whole_numbers
from support.backends import require
from torch import nn

import bridge
from bridge import SpikingNetwork
from bridge.records import SpikeRecord
from bridge.zoo.resnet import ResNet
from exporters.lava import LavaFixed

STEPS = 16
SOME = (1, 2, 3, 5, 8, 13)
"""Numbers of steps that are tried where each takes a run of Lava; the others are `long`."""
OTHERS = [
    "spikingjelly",
    "snntorch",
    "slayer",
    "lava-twin",
    "onnxruntime",
    "norse",
    "rockpool",
    "sinabs",
    "spyx",
    pytest.param("lava-fixed", marks=pytest.mark.lava),
]
Expected = tuple[dict[str, np.ndarray], np.ndarray]


@cache
def digits_expected(scheme: str, images: int = 450) -> Expected:
    """The oracle on so many test images; there are 450."""
    network = digits.quantized(8, scheme)
    x, _ = digits.test_images()
    return whole_numbers.spikes_of(network.to_nir(), network.pixels(x[:images]).numpy(), STEPS)


@cache
def resnet(scheme: str, width: int) -> tuple[SpikingNetwork, torch.Tensor]:
    """A ResNet-20 with random weights on 8-bit images of CIFAR's size, normalised as usual, and two of their pixels.

    Its first stage has `width` channels, 16 as published.
    """
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    model = ResNet((3, 3, 3), (width, 2 * width, 4 * width), num_classes=10, levels=4, threshold=2.0)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), generator=generator).to(torch.uint8)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    x = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(
                    torch.randn(module.weight.shape, generator=generator) * module.weight[0].numel() ** -0.5
                )
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(0.3 * torch.rand(module.bias.shape, generator=generator))
        for _ in range(10):  # so that batch normalisation knows its inputs
            model.train()(x)
    network = bridge.convert(model.eval(), x[:1]).quantize(8, calibration=x, scheme=scheme, normalisation=(mean, std))
    assert torch.equal(network.pixels(x), pixels)
    return network, pixels[:2]


@cache
def resnet_expected(scheme: str, width: int) -> Expected:
    network, pixels = resnet(scheme, width)
    return whole_numbers.spikes_of(network.to_nir(), pixels.numpy(), STEPS)


def run(name: str, network: SpikingNetwork, pixels: torch.Tensor, steps: int) -> SpikeRecord:
    backend = require(name)
    return backend.run(backend.export(network.to_nir()), pixels.numpy(), steps)


def assert_equal(record: SpikeRecord, expected: Expected, steps: int) -> None:
    spikes, readout = expected
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        assert np.array_equal(record.spikes(layer), fired[:steps, : record.images]), (record.backend, layer)
    assert np.array_equal(record.readout, readout[:steps, : record.images]), record.backend


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, pytest.param("lava", marks=[pytest.mark.lava, pytest.mark.long])])
def test_digits_on_the_whole_test_split(name):
    """16 steps are also 1…15: a step knows nothing of those to come."""
    network = digits.quantized(8, "per_layer")
    x, _ = digits.test_images()
    assert_equal(run(name, network, network.pixels(x), STEPS), digits_expected("per_layer"), STEPS)


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "steps"),
    [(50, 2), (8, STEPS), *(pytest.param(*sizes, marks=pytest.mark.long) for sizes in ((200, 2), (20, STEPS)))],
)
def test_lavas_own_convolution_on_digits(images, steps):
    """It takes 16 ms a step: many images at few steps, or few at many."""
    network = digits.quantized(8, "per_layer")
    x, _ = digits.test_images()
    assert_equal(run("lava", network, network.pixels(x[:images]), steps), digits_expected("per_layer"), steps)


def test_the_reference_on_the_whole_test_split():
    for scheme in ("per_layer", "per_channel"):
        network = digits.quantized(8, scheme)
        x, _ = digits.test_images()
        assert_equal(network.run(network.pixels(x), STEPS), digits_expected(scheme), STEPS)


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [pytest.param(at, marks=[] if at in SOME else pytest.mark.long) for at in range(1, STEPS + 1)],
)
def test_lava_at_every_number_of_steps(steps):
    """In Lava the number of steps decides when the next image comes, so each is a run of its own."""
    network = digits.quantized(8, "per_channel")
    x, _ = digits.test_images()
    images = network.pixels(x[: 7 * steps])
    assert_equal(run("lava-fixed", network, images, steps), digits_expected("per_channel", 7 * STEPS), steps)


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        LavaFixed(synapses="stock"),
        LavaFixed(synapses="stock", neuron="atrlif"),
        LavaFixed(synapses="torch", neuron="atrlif"),
    ],
    ids=lambda backend: f"{backend.synapses}-{backend.neuron}",
)
@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.long)])
def test_lavas_own_processes_on_digits(backend, count):
    require("lava-fixed")
    network = digits.quantized(8, "per_layer")
    x, _ = digits.test_images()
    images = network.pixels(x[:count]).numpy()
    assert_equal(backend.run(backend.export(network.to_nir()), images, STEPS), digits_expected("per_layer"), STEPS)


@pytest.mark.lava
@pytest.mark.slow
@pytest.mark.parametrize("alone", [(0, 1, 50, 99), pytest.param(range(100), marks=pytest.mark.long)], ids=len)
def test_a_stream_of_100_digits_equals_runs_of_one(alone):
    require("lava-fixed")
    network = digits.quantized(8, "per_channel")
    images = network.pixels(digits.test_images()[0][:100]).numpy()
    backend = LavaFixed(lanes=1)
    native = backend.export(network.to_nir())
    stream = backend.run(native, images, 4)
    assert_equal(stream, digits_expected("per_channel", 7 * STEPS), 4)
    runs = SpikeRecord.concatenate([backend.run(native, images[at : at + 1], 4) for at in alone])
    for layer in network.layers:
        assert np.array_equal(stream.spikes(layer)[:, alone], runs.spikes(layer)), layer
    assert np.array_equal(stream.readout[:, alone], runs.readout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(name for name in OTHERS if name != "slayer"),
        pytest.param("slayer", marks=pytest.mark.long),
        pytest.param("lava", marks=[pytest.mark.lava, pytest.mark.long]),
    ],
)
def test_resnet20(name):
    scheme = "per_layer" if name == "slayer" else "per_channel"
    network, pixels = resnet(scheme, 16)
    steps = 5 if name == "lava" else STEPS  # its own convolution takes a second a step here
    assert_equal(run(name, network, pixels, steps), resnet_expected(scheme, 16), steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "steps"),
    [("slayer", "per_layer", STEPS), pytest.param("lava", "per_channel", 5, marks=pytest.mark.lava)],
)
def test_a_narrow_resnet20(name, scheme, steps):
    """A quarter as wide. Lava's own convolution takes the time of every pair of channels, and SLAYER's one threshold a
    layer makes another network, with an oracle's run of its own: their full width is `long`.
    """
    network, pixels = resnet(scheme, 4)
    assert_equal(run(name, network, pixels, steps), resnet_expected(scheme, 4), steps)


def test_validate_finds_nothing_to_report():
    network = digits.quantized(8, "per_layer")
    x, y = digits.test_images()
    names = ["spikingjelly", "snntorch", "slayer"]
    for name in names:
        require(name)
    agreement = network.validate(network.pixels(x[:50]), 4, names, labels=y[:50])
    assert agreement.agreed
    for backend in agreement.backends.values():
        assert backend.total_differing == backend.readouts_wrong == backend.readout_error == 0
    assert agreement.ann_accuracy is not None
    assert agreement.ann_accuracy > 0.95


@pytest.mark.parametrize("name", ["norse", "onnxruntime", "rockpool", "sinabs", "snntorch", "spikingjelly", "spyx"])
def test_potentials_beyond_float32_are_caught(name):
    """As by the reference: float32 does not hold what is beyond 2^24."""
    backend = require(name)
    first = nn.Linear(2, 3)
    with torch.no_grad():
        first.weight.fill_(-1.0)
    x = torch.rand(10, 2)
    network = bridge.convert(nn.Sequential(first, bridge.QCFS(4, 1.0), nn.Linear(3, 2)), x).quantize(16, x)
    native = backend.export(network.to_nir())
    white = np.full((1, 2), 255, np.float32)
    with pytest.raises(bridge.InputError, match=r"'layer_1': at step \d+ a potential reaches \d+; beyond 2\^24"):
        backend.run(native, white, 1_000)
    assert backend.run(native, white, 1).steps == 1  # and it goes on
