"""Networks in whole numbers: what `quantize` makes, held against an int64 oracle that reads NIR, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import nir
import numpy as np
import pytest
import torch
from support import digits, networks, whole_numbers
from support.backends import assert_equal, require
from torch import nn

import bridge
from bridge import QCFS, ConversionError, GraphError, InputError, SpikingNetwork
from bridge.graph import Affine, Conv2d, Flatten, Input, IntegrateFire, LayerGraph, Linear, Scale, SumPool2d
from bridge.graph.loihi_registers import LARGEST_BIAS_MANTISSA, LARGEST_INPUT, LARGEST_STATE, LARGEST_THRESHOLD, UNIT
from bridge.graph.pixel_grid import fitted, normalised
from bridge.graph.ranges import ranges
from bridge.nir_graph import from_nir, to_nir
from bridge.passes.quantization.quantize import quantize
from bridge.simulate.ann import activations

SCHEMES = ("per_channel", "per_layer")


@cache
def example(
    name: str, bits: int = 8, scheme: str = "per_channel"
) -> tuple[SpikingNetwork, SpikingNetwork, torch.Tensor]:
    """A network, the same in whole numbers, and images as the ANN takes them."""
    model, shape = networks.ALL[name]()
    images = networks.dyadic_images(8, shape)
    network = bridge.convert(model.eval(), images)
    return network, network.quantize(bits, calibration=images, scheme=scheme), images


@cache
def of_the_oracle(name: str, bits: int, scheme: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Spikes and readout of 16 steps."""
    _, network, images = example(name, bits, scheme)
    return whole_numbers.spikes_of(network.to_nir(), network.pixels(images).numpy(), 16)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [6, 8, 12])
@pytest.mark.parametrize("name", networks.ALL)
def test_the_reference_is_the_oracle(name, bits, scheme):
    _, network, images = example(name, bits, scheme)
    spikes, readout = of_the_oracle(name, bits, scheme)
    assert_equal(network.run(network.pixels(images), 16), spikes, readout)
    assert 0 < sum(s.sum() for s in spikes.values()) < sum(s.size for s in spikes.values())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [6, 8, 12])
@pytest.mark.parametrize("name", networks.ALL)
def test_torch_backends_are_the_oracle(name, bits, scheme, torch_backend):
    _, network, images = example(name, bits, scheme)
    native = torch_backend.export(network.to_nir())
    record = torch_backend.run(native, network.pixels(images).numpy(), 16, membranes=True)
    assert_equal(record, *of_the_oracle(name, bits, scheme))


@pytest.mark.lava
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_lava_in_floating_point_is_the_oracle(name):
    lava = require("lava")
    _, network, images = example(name)
    pixels = network.pixels(images)
    spikes, readout = whole_numbers.spikes_of(network.to_nir(), pixels.numpy(), 7)
    assert_equal(lava.run(lava.export(network.to_nir()), pixels.numpy(), 7), spikes, readout)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", networks.ALL)
def test_the_file_holds_whole_numbers_within_the_registers(name, scheme, tmp_path):
    _, network, images = example(name, 8, scheme)
    network.save(tmp_path / "whole.nir")
    graph = nir.read(tmp_path / "whole.nir", type_check=False)
    for node_name, node in graph.nodes.items():
        assert not isinstance(node, nir.AvgPool2d)
        for value in vars(node).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                assert np.array_equal(value, np.rint(value)), node_name
        if isinstance(node, nir.Affine | nir.Conv1d | nir.Conv2d):
            assert np.abs(node.weight).max() <= 127, node_name
    again = bridge.load(tmp_path / "whole.nir")
    assert isinstance(again, SpikingNetwork)
    assert again.graph.integer
    pixels = network.pixels(images)
    one, other = network.run(pixels, 5), again.run(pixels, 5)
    assert all(np.array_equal(one.spikes(layer), other.spikes(layer)) for layer in network.layers)
    for layer in again.graph:
        if isinstance(layer, IntegrateFire):
            assert (layer.threshold % 2 == 0).all()
            assert np.array_equal(2 * layer.level, layer.threshold)
            if scheme == "per_layer":
                assert len(set(layer.threshold)) == 1


def test_every_bound_holds_whatever_the_image():
    """The bounds of `ranges`, on which the registers' limits are checked, against all images of a tiny network."""
    weight = np.array([[3.0, -2.0], [-1.0, 0.0]], np.float32)
    graph = LayerGraph(
        (
            Input(name="in", shape=(2,)),
            Linear(name="first", inputs=("in",), weight=weight, bias=np.array([5.0, -7.0], np.float32)),
            IntegrateFire(name="fire", inputs=("first",), level=np.full(2, 4.0), threshold=np.full(2, 8.0)),
            Linear(name="out", inputs=("fire",), weight=weight, bias=np.array([-4.0, 4.0], np.float32)),
        )
    )
    corners = np.array([[a, b] for a in (0, 255) for b in (0, 255)])
    first = corners @ weight.T + [5, -7]
    found = ranges(graph)
    assert np.array_equal(found["first"].low, first.min(axis=0))
    assert np.array_equal(found["first"].high, first.max(axis=0))
    assert np.array_equal(found["first"].partial, [3 * 255 + 2 * 255 + 5, 255 + 7])
    spikes = np.array([[a, b] for a in (0, 1) for b in (0, 1)]) @ weight.T + [-4, 4]
    assert np.array_equal(found["out"].low, spikes.min(axis=0))
    assert np.array_equal(found["out"].high, spikes.max(axis=0))


def test_ranges_of_convolutions_pools_and_sums():
    """Interval arithmetic against the extremes of random images and spikes, which must lie within and come close."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, (4, 1, 1, 2)).astype(np.float32)
    graph = LayerGraph(
        (
            Input(name="in", shape=(2, 3, 4)),
            Conv2d(name="conv", inputs=("in",), weight=weight, bias=np.arange(4.0), groups=2, padding=(0, 1)),
            SumPool2d(name="pool", inputs=("conv",), kernel=(3, 2), stride=(1, 1)),
            Scale(name="scale", inputs=("pool",), scale=np.array([1.0, -2.0, 0.0, 3.0])),
            Flatten(name="flat", inputs=("scale",)),
        )
    )
    found = ranges(graph)
    corners = rng.choice([0, 255], (4000, 2, 3, 4))
    wide = np.pad(corners, ((0, 0), (0, 0), (0, 0), (1, 1)))
    conv = np.stack(
        [
            wide[:, o // 2, :, :-1] * weight[o, 0, 0, 0] + wide[:, o // 2, :, 1:] * weight[o, 0, 0, 1] + o
            for o in range(4)
        ],
        1,
    )
    assert np.array_equal(found["conv"].low, conv.min(axis=(0, 2, 3)))
    assert np.array_equal(found["conv"].high, conv.max(axis=(0, 2, 3)))
    pooled = 6 * np.stack([found["conv"].low, found["conv"].high])
    scaled = np.sort(pooled * [1, -2, 0, 3], axis=0)
    assert np.array_equal(found["scale"].low, scaled[0])
    assert np.array_equal(found["flat"].high, np.repeat(scaled[1], 4))


@pytest.mark.parametrize("name", [*networks.CHAINS, "residual", "signal"])
def test_more_bits_come_close_to_the_float_network(name):
    """With 16 bits, next to no spike of the first layer falls differently."""
    model, shape = networks.ALL[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.weight.add_(0.05 * torch.randn(module.weight.shape, generator=generator))
    images = networks.dyadic_images(32, shape)
    network = bridge.convert(model.eval(), images)
    expected = network.run(images, 8)
    wrong = {}
    for bits in (8, 16):
        whole = network.quantize(bits, calibration=images)
        record = whole.run(whole.pixels(images), 8)
        first = network.layers[0]
        wrong[bits] = float((record.spikes(first) != expected.spikes(first)).mean())
    assert wrong[16] < 0.002
    assert wrong[8] < 0.05


def test_images_of_eight_bits_are_found_again():
    """However they were normalised, and although zeros are padded that are no pixel of value 0."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 8, 8), generator=generator).to(torch.uint8)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.247, 0.243, 0.261])
    x = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), QCFS(4, 1.0), nn.Flatten(), nn.Linear(4 * 64, 5))
    network = bridge.convert(model, x)
    for normalisation in (None, (mean.tolist(), std.tolist())):
        whole = network.quantize(16, calibration=x, normalisation=normalisation)
        assert torch.equal(whole.pixels(x), pixels)
        assert whole.grid is not None
        assert whole.grid.exact
        # 16 bits of weight: the padded border must be right too, so hardly a spike differs there
        one, other = network.run(x, 8).spikes("layer_1"), whole.run(pixels, 8).spikes("layer_1")
        assert (one != other)[:, :, :, 0].mean() < 0.003
        assert (one != other).mean() < 0.003
        # and the ANN on pixels is the ANN
        assert whole.ann is not None
        assert whole.validate(pixels, 4, []).reference.top1_ann is not None
        expected = model(x).argmax(1).numpy()
        got = activations(whole.ann, pixels.float())[2].argmax(1).numpy()
        assert np.array_equal(got, expected)


def test_other_images_get_255_steps():
    x = torch.rand(50, 2, 3, 3) * 4 - 1
    grid = fitted(x)
    pixels = grid.encode(x)
    assert not grid.exact
    assert pixels.min() == 0
    assert pixels.max() == 255
    values = grid.low[:, None, None] + grid.step[:, None, None] * pixels.numpy()
    assert np.abs(values - x.numpy()).max() <= 0.51 * grid.step.max()
    assert torch.equal(grid.encode(torch.full((1, 2, 1, 1), 9.0)), torch.full((1, 2, 1, 1), 255.0))


def test_constant_channels_and_vectors_have_a_grid():
    x = torch.stack([torch.full((4, 5), 0.3), torch.linspace(0, 1, 20).reshape(4, 5)], 1)
    assert torch.equal(fitted(x).encode(x)[:, 0], torch.zeros(4, 5))
    vector = torch.tensor([[0.0, 0.5], [0.25, 1.0]])
    assert torch.equal(fitted(vector).encode(vector), torch.tensor([[0.0, 2.0], [1.0, 4.0]]))
    assert torch.allclose(
        torch.from_numpy(normalised([0.5], [0.25], 2, vectors=True).low), torch.full((2,), -2.0, dtype=torch.float64)
    )


def test_the_scale_is_the_one_of_least_error():
    """Among many scales tried by hand, none rounds the weights of a layer better, by the same measure."""
    rng = np.random.default_rng(3)
    weight = rng.standard_t(2, (3, 40)).astype(np.float32)  # a few large weights, most of them small
    graph = LayerGraph(
        (
            Input(name="in", shape=(40,)),
            Linear(name="fc", inputs=("in",), weight=weight / 255, bias=np.zeros(3)),
            IntegrateFire(name="act", inputs=("fc",), level=np.full(3, 0.5)),
        )
    )
    pixels = torch.from_numpy(rng.integers(0, 26, (30, 40)).astype(np.float32))  # dark: no potential nears its bound
    neurons = quantize(graph, [pixels], 4, per_channel=True, steps=16)["act"]
    assert isinstance(neurons, IntegrateFire)
    scale = neurons.threshold.astype(np.float64)
    use = (pixels.numpy() ** 2).mean(axis=0)
    for channel, chosen in enumerate(scale):
        row = weight[channel].astype(np.float64) / 255

        def error(scale: float, row: np.ndarray = row) -> float:
            return float((np.square(np.clip(np.rint(row * scale), -7, 7) / scale - row) * use).sum())

        just_fitting = 7 * 255 / np.abs(weight[channel]).max()
        assert error(chosen) <= error(2 * round(just_fitting / 2))
        tried = [error(2 * round(just_fitting * factor / 2)) for factor in np.linspace(0.5, 2, 200)]
        assert error(chosen) <= 1.05 * min(tried)
    assert any(chosen > 1.05 * 7 * 255 / np.abs(row).max() for chosen, row in zip(scale, weight, strict=True))


def test_biases_take_back_what_rounding_shifts():
    """On the calibration images, each channel's drive is on average closer to the float network's."""
    network, whole = digits.network(), digits.quantized(4)
    x, _ = digits.test_images()
    rates = torch.from_numpy(network.run(x, 16).rates("act2")[-1])
    hidden, rounded, act3 = network.graph["hidden"], whole.graph["hidden"], whole.graph["act3"]
    assert isinstance(hidden, Affine)
    assert isinstance(rounded, Affine)
    assert isinstance(act3, IntegrateFire)

    def drive(layer: Affine, pooled: torch.Tensor) -> np.ndarray:
        return (pooled.flatten(1).numpy() @ layer.weight.T + layer.bias).mean(axis=0)

    mean = nn.functional.avg_pool2d(rates, 2)
    expected = drive(hidden, mean)
    plain = replace(rounded, bias=np.rint(hidden.bias * act3.threshold))
    corrected, uncorrected = (
        np.abs(drive(layer, 4 * mean) / act3.threshold - expected).mean() for layer in (rounded, plain)
    )
    assert corrected < 0.5 * uncorrected


def test_digits_lose_hardly_any_accuracy():
    x, y = digits.test_images()
    expected = digits.network().run(x, 16).outputs().argmax(axis=-1) == y
    for scheme in SCHEMES:
        network = digits.quantized(8, scheme)
        right = network.run(network.pixels(x), 16).outputs().argmax(axis=-1) == y
        for steps in (1, 2, 4, 8, 16):
            lost = 100 * float(expected[steps - 1].mean() - right[steps - 1].mean())
            assert lost <= (1.5 if steps < 4 else 0.5), (scheme, steps, lost)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_registers_of_the_digits_network(scheme):
    """Every bound, computed here by hand from the network's own numbers."""
    graph = digits.quantized(8, scheme).graph
    conv2, act2 = graph["conv2"], graph["act2"]
    assert isinstance(conv2, Affine)
    assert isinstance(act2, IntegrateFire)
    weights = conv2.weight.reshape(len(conv2.weight), -1)
    most = np.maximum(weights, 0).sum(axis=1) + conv2.bias
    least = np.minimum(weights, 0).sum(axis=1) + conv2.bias
    assert (np.maximum(most, -least) + act2.threshold <= LARGEST_INPUT).all()
    assert (act2.threshold <= LARGEST_THRESHOLD).all()
    assert np.abs(conv2.bias).max() <= 2 * LARGEST_BIAS_MANTISSA
    assert np.abs(conv2.bias).max() <= LARGEST_BIAS_MANTISSA or (conv2.bias % 2 == 0).all()
    conv1, act1 = graph["conv1"], graph["act1"]
    assert isinstance(conv1, Affine)
    assert isinstance(act1, IntegrateFire)
    assert (act1.threshold % (2 * UNIT) == 0).all()
    assert (
        255 * np.abs(conv1.weight).reshape(len(conv1.weight), -1).sum(axis=1) + act1.threshold <= LARGEST_STATE
    ).all()


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval()


def test_large_biases_lower_the_scale_and_stay_even():
    hidden = nn.Linear(6, 5)
    model = chain(nn.Linear(4, 6), QCFS(4, 1.0), hidden, QCFS(4, 1.0), nn.Linear(5, 2))
    with torch.no_grad():
        hidden.weight.uniform_(-0.05, 0.05)
        hidden.bias.copy_(torch.tensor([-3.0, 0.1, 30.0, 0.2, -0.3]))
    x = torch.rand(20, 4)
    network = bridge.convert(model, x).quantize(8, calibration=x)
    layer = network.graph["layer_2"]
    assert isinstance(layer, Affine)
    assert np.abs(layer.bias).max() <= 2 * LARGEST_BIAS_MANTISSA
    assert np.abs(layer.bias).max() > 4000
    assert np.abs(layer.bias).max() <= LARGEST_BIAS_MANTISSA or (layer.bias % 2 == 0).all()


def test_what_cannot_meet_a_bound_is_named_with_the_numbers():
    x = torch.rand(20, 4)
    hidden = nn.Linear(6, 5)
    model = chain(nn.Linear(4, 6), QCFS(4, 1.0), hidden, QCFS(4, 1.0), nn.Linear(5, 2))
    with torch.no_grad():
        hidden.weight.fill_(1e4)
    with pytest.raises(ConversionError, match=r"'layer_2': for a weight of 1e\+04 thresholds .* 127.*below 2"):
        bridge.convert(model, x).quantize(8, calibration=x)
    with torch.no_grad():
        hidden.weight.fill_(0.1)
        hidden.bias.fill_(1e5)
    with pytest.raises(ConversionError, match=r"'layer_3': .* reaches \d+, the limit is \d+"):
        bridge.convert(model, x).quantize(8, calibration=x)


def test_affine_layers_in_a_row_use_up_the_range():
    model = chain(*(nn.Linear(8, 8) for _ in range(6)), QCFS(4, 1.0), nn.Linear(8, 2))
    x = torch.rand(20, 8)
    with pytest.raises(ConversionError, match=r"'layer_\d'.*put a QCFS between"):
        bridge.convert(model, x).quantize(8, calibration=x)


@pytest.mark.parametrize("steps", [1, 16])
def test_drives_are_right_on_average_at_the_steps_that_it_is_for(steps):
    """What 4 bits shift a layer's mean drive by is taken back, at the rates at T, up to the rounding of its bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1000), QCFS(8, 1.0), nn.Linear(1000, 20), QCFS(8, 1.0), nn.Linear(20, 4))
    images = networks.dyadic_images(64, (6,))
    network = bridge.convert(model.eval(), images)
    whole = network.quantize(4, calibration=images, steps=steps).graph
    hearing = [layer for layer in network.graph if isinstance(layer, Linear)][1]
    (neurons,) = whole.consumers(hearing.name)
    rounded = whole[hearing.name]
    assert isinstance(neurons, IntegrateFire)
    assert isinstance(rounded, Linear)
    scale, off = neurons.threshold, {}
    for t in (1, 16):
        rates = network.run(images, t).spikes(hearing.inputs[0]).mean(axis=(0, 1))
        whole_drive = rates @ rounded.weight.T + rounded.bias
        off[t] = np.abs(whole_drive - scale * (rates @ hearing.weight.T + hearing.bias)).max()
    assert off[steps] < 0.51
    assert off[17 - steps] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 3}, "weight_bits: expected a whole number from 4 to 16, got 3"),
        ({"weight_bits": 8.0}, "weight_bits"),
        ({"weight_bits": True}, "weight_bits"),
        ({"scheme": "per-channel"}, 'scheme: expected "per_channel" or "per_layer"'),
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"calibration": None}, "needs calibration images"),
        ({"calibration": torch.zeros(0, 6)}, "calibration: expected at least one image"),
        ({"calibration": torch.full((2, 6), torch.nan)}, "calibration: holds 12 values"),
        ({"normalisation": ([0.5, 0.5], [0.2])}, "normalisation: expected means and stds for 6 channels"),
        ({"normalisation": ([0.5], [0.0])}, "normalisation: expected finite means and stds > 0"),
    ],
)
def test_bad_arguments(arguments, message):
    model, _ = networks.mlp()
    network = bridge.convert(model.eval(), torch.zeros(1, 6))
    with pytest.raises(InputError, match=message):
        network.quantize(**{"calibration": torch.rand(4, 6), **arguments})


def test_it_is_quantized_once_and_takes_pixels_or_what_the_ann_takes():
    """Integers are pixels. Floats become pixels by the grid, and are refused by name where it is not known."""
    _, network, images = example("mlp")
    with pytest.raises(InputError, match="in whole numbers already"):
        network.quantize(8, calibration=images)
    pixels = network.pixels(images)
    assert pixels.dtype == torch.uint8
    of_pixels = network.run(pixels, 2)
    assert of_pixels.images == len(images)
    expected = {layer: of_pixels.spikes(layer) for layer in network.layers}
    for same in (images, images.double().numpy(), pixels.long(), pixels.numpy().astype(np.int16)):
        assert_equal(network.run(same, 2), expected, of_pixels.readout)
    for wrong in (pixels.int() + 300, pixels.int() - 300):
        with pytest.raises(InputError, match=r"x: integers are pixels from 0 to 255, got int32 from -?\d+ to -?\d+"):
            network.run(wrong, 2)
    unknown = SpikingNetwork(from_nir(network.to_nir()))
    assert unknown.grid is None
    with pytest.raises(InputError, match=r"takes pixels, integers from 0 to 255; got float32.*network\.pixels\(x\)"):
        unknown.run(images, 2)
    assert_equal(unknown.run(pixels, 2), expected, of_pixels.readout)
    floats, _, _ = example("cnn")
    with pytest.raises(InputError, match="pixels: this network takes the ANN's input itself; quantize gives one"):
        floats.pixels(networks.dyadic_images(2, (2, 9, 7)))
    assert "8-bit integers" in repr(network)


def test_potentials_beyond_float32_are_caught():
    first = nn.Linear(2, 3)
    model = chain(first, QCFS(4, 1.0), nn.Linear(3, 2))
    with torch.no_grad():
        first.weight.fill_(-1.0)
    x = torch.rand(10, 2)
    network = bridge.convert(model, x).quantize(16, calibration=x)
    with pytest.raises(InputError, match=r"'layer_1': at step \d+ a potential reaches \d+; beyond 2\^24"):
        network.run(torch.full((1, 2), 255), 10_000)


def test_a_file_with_sums_beyond_float32_is_refused():
    _, network, _ = example("mlp")
    graph = network.to_nir()
    graph.nodes["layer_0"].weight = graph.nodes["layer_0"].weight * 1000
    with pytest.raises(GraphError, match=r"'layer_0' \(Linear\): expected whole numbers with sums up to 2\^24"):
        from_nir(graph)


def test_one_unit_off_is_a_mismatch():
    """In whole numbers nothing is a tie: a single bias off by 1, and a readout off by 1, fail."""
    backend = require("snntorch")
    _, network, images = example("cnn")
    pixels = network.pixels(images)
    assert network.validate(pixels, 6, ["snntorch"]).agreed

    class OffByOne:
        name = "off by one"

        def __init__(self, layer: str) -> None:
            self.layer = layer

        def available(self):
            return backend.available()

        def export(self, graph):
            native = backend.export(graph)
            with torch.no_grad():
                native.get_parameter(f"{self.layer}.bias")[0] += 1
            return native

        def run(self, native, x, steps, *, membranes=False):
            return backend.run(native, x, steps, membranes=membranes)

    spikes = network.validate(pixels, 16, [OffByOne("layer_7")]).backends["off by one"]
    assert spikes.unexplained > 0
    assert spikes.ties == 0
    assert {d.layer for d in spikes.divergences} == {"layer_8"}
    readout = network.validate(pixels, 6, [OffByOne("layer_9")]).backends["off by one"]
    assert readout.total_differing == 0
    assert readout.readout_error == 1
    assert readout.readouts_wrong == 6 * len(images)


def test_levels_of_other_whole_networks_are_read_exactly():
    """A threshold in NIR fires above it; among whole numbers that is from the next one on."""
    graph = LayerGraph(
        (
            Input(name="in", shape=(1,)),
            Linear(name="fc", inputs=("in",), weight=np.ones((1, 1), np.float32), bias=np.zeros(1, np.float32)),
            IntegrateFire(name="act", inputs=("fc",), level=np.full(1, 3.0), threshold=np.full(1, 7.0)),
        )
    )
    again = from_nir(to_nir(graph))
    assert again.integer
    neuron = again["act"]
    assert isinstance(neuron, IntegrateFire)
    assert (neuron.level, neuron.threshold) == (3, 7)
    spikes = SpikingNetwork(again).run(torch.tensor([[2], [3]]), 4).spikes("act")[..., 0].T.astype(int)
    # u: 2; 4 fires, −3; −1; 1          3 fires, −4; −1; 2; 5 fires
    assert spikes.tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]
