"""The parts of the rate error: they add up, they are what they are said to be, and one is nothing where it must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import networks, oracle, rate_error
from support.layers import ours
from torch import nn

import bridge
from bridge import QCFS
from bridge.report.outcome import PARTS
from bridge.simulate.ann import activations
from bridge.validation import rate_loop


def roughened(name: str):
    """A network of arbitrary floats, and images."""
    model, shape = networks.ALL[name]()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return bridge.convert(model.eval(), torch.zeros(1, *shape)), torch.randn(6, *shape, generator=generator)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("name", networks.ALL)
def test_they_add_up_to_the_error(name, steps):
    network, x = roughened(name)
    agreement = network.validate(x, steps, [])
    assert agreement.rate_error is not None
    assert agreement.reference.rate_error is not None
    for layer in network.layers:
        total = np.sum([agreement.rate_error.parts[part][layer] for part in PARTS], axis=0)
        assert np.abs(total - agreement.reference.rate_error[layer]).max() < 1e-6
    if steps == 7:
        for part in PARTS if len(network.layers) > 2 else ("inherited", "quantisation"):
            assert any(any(agreement.rate_error.parts[part][layer]) for layer in network.layers), part


@pytest.mark.parametrize("levels", [1, 4, 6, 8, 12])
def test_one_layer_at_t_equal_to_l_has_no_error_at_all(levels):
    """The oracle that tells a bug from the theory's limit, on arbitrary floats: exactly zero, not nearly."""
    torch.manual_seed(levels)
    model = nn.Sequential(nn.Linear(20, 200), QCFS(levels, torch.rand(200) + 0.5))
    network, x = bridge.convert(model, torch.zeros(1, 20)), torch.randn(500, 20)
    agreement = network.validate(x, 2 * levels, [])
    assert agreement.rate_error is not None
    parts = agreement.rate_error.parts
    (layer,) = network.layers
    assert parts["unevenness"][layer] == [0.0] * 2 * levels
    assert parts["quantisation"][layer][levels - 1] == 0
    assert agreement.rate_error.isolated[layer][levels - 1] == 0
    assert parts["quantisation"][layer][-1] > 0
    others = [parts[part][layer] for part in ("inherited", "clipping")]
    assert np.abs(others).max() < 1e-5


def test_each_part_neuron_by_neuron():
    """By the definitions, one neuron and one step at a time, from what the oracle says that every neuron received."""
    steps = 6
    model, shape = networks.mlp()
    network, x = bridge.convert(model.eval(), torch.zeros(1, *shape)), networks.dyadic_images(5, shape, seed=3)
    assert network.ann is not None
    values, _, _ = activations(network.ann, x)
    spikes, _ = oracle.spikes_of(model, x.numpy(), steps)
    second = network.layers[1]
    first, last = model[2], model[5]
    assert isinstance(first, bridge.QCFS)
    assert isinstance(last, bridge.QCFS)
    first_height, height = oracle.numpy(first.threshold), oracle.numpy(last.threshold)
    hidden = oracle.transform(model[1], oracle.transform(model[0], x.double().numpy()))
    z = oracle.transform(model[4], oracle.activation(hidden, first.levels, first_height)) / height
    levels = last.levels

    def evenly(drive: float, t: int) -> float:
        return min(max(math.floor(drive * t + 0.5), 0), t) / t

    def clip(drive: float) -> float:
        return min(max(drive, 0.0), 1.0)

    sums = {part: [0.0] * steps for part in PARTS}
    for image in range(len(x)):
        for neuron in range(z.shape[1]):
            heard = 0.0
            for t in range(1, steps + 1):
                current = oracle.transform(model[4], first_height * spikes[0][t - 1, image : image + 1])
                heard += current[0, neuron] / height[neuron]
                got, given = heard / t, z[image, neuron]
                rate = spikes[1][:t, image, neuron].sum() / t
                activation = evenly(given, levels)
                clipping = (clip(got) - got) - (clip(given) - given)
                expected = {
                    "inherited": evenly(got, t) - evenly(given, t) - clipping,
                    "clipping": clipping,
                    "quantisation": evenly(given, t) - activation,
                    "unevenness": rate - evenly(got, t),
                }
                error = rate - values[second][image, neuron].item()
                assert sum(expected.values()) == pytest.approx(error, abs=1e-6)
                for part, value in expected.items():
                    sums[part][t - 1] += value * (0 if abs(error) < 1e-6 else math.copysign(1, error))
    found = network.validate(x, steps, []).rate_error
    assert found is not None
    for part in PARTS:
        assert found.parts[part][second] == pytest.approx([total / z.size for total in sums[part]], abs=1e-6)


INTEGER = pytest.mark.parametrize("integer", [False, True], ids=["float", "integer"])
LOOP = pytest.mark.parametrize("loop", [True, False], ids=["compiled", "numpy"])


@LOOP
@INTEGER
@pytest.mark.parametrize(("name", "steps"), [("cnn", 3), ("residual", 19), ("dense", 8), ("mlp", 9)])
def test_every_network_by_the_definitions(name, steps, integer, loop, monkeypatch):
    """The reference's sums in floats and the engine's in integers, over more than one block of steps too."""
    if loop:
        assert rate_loop.compiled() is not None, "numba is missing: pip install numba"
    else:
        monkeypatch.setattr(rate_loop, "compiled", lambda: None)
    network, x = roughened(name)
    if integer:
        network = network.quantize(6, x)
        x = network.pixels(x)
    agreement = network.validate(x, steps, [])
    assert agreement.simulator == ("engine" if integer else "reference")
    assert agreement.rate_error is not None
    for layer, parts in rate_error.expected(network, x, steps).items():
        for part, rows in parts.items():
            found = agreement.rate_error.isolated if part == "isolated" else agreement.rate_error.parts[part]
            assert found[layer] == pytest.approx(rows, abs=2e-6), (layer, part)


def test_counts_too_large_for_float32_are_summed_in_float64(monkeypatch):
    """And so are those of many steps; the numbers are the same on either side of the border."""
    network, x = roughened("mlp")
    inside = network.validate(x, 12, [])
    monkeypatch.setattr(rate_loop, "COUNTS", 100)
    outside = network.validate(x, 12, [])
    for one, other in ((inside.reference.rate_error, outside.reference.rate_error), *both_parts(inside, outside)):
        assert one is not None
        assert other is not None
        for layer in network.layers:
            assert one[layer] == pytest.approx(other[layer], abs=1e-6)


def both_parts(one: bridge.Agreement, other: bridge.Agreement):
    """The parts of both, side by side."""
    assert one.rate_error is not None
    assert other.rate_error is not None
    return [(one.rate_error.parts[part], other.rate_error.parts[part]) for part in PARTS]


@INTEGER
def test_they_can_be_left_out(integer):
    """All else stays as it is."""
    network, x = roughened("cnn")
    if integer:
        network = network.quantize(8, x)
        x = network.pixels(x)
    whole, without = network.validate(x, 5, []), network.validate(x, 5, [], error_parts=False)
    assert whole.rate_error is not None
    assert without.rate_error is None
    assert without.reference.rate_error == whole.reference.rate_error
    assert without.samples == whole.samples


def test_a_network_without_its_ann_has_none(tmp_path):
    network, x = roughened("mlp")
    network.save(tmp_path / "net.nir")
    assert ours(bridge.load(tmp_path / "net.nir")).validate(x, 2, []).rate_error is None
