"""The parts of the rate error: they add up, they are what they are said to be, and one is nothing where it must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.layers import neurons, of_kind, ours
from torch import nn

import bridge
from bridge import QCFS
from bridge.agreement import PARTS
from bridge.graph import ClipFloorShift
from bridge.simulate.ann import activations
from bridge.simulate.reference import simulate
from bridge.validation.rate_error import error_parts


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
    """By the definitions, one neuron and one step at a time, from what the oracle says that every neuron heard."""
    steps = 6
    model, shape = networks.mlp()
    network, x = bridge.convert(model.eval(), torch.zeros(1, *shape)), networks.dyadic_images(5, shape, seed=3)
    record = simulate(network.graph, x, steps, membranes=True)
    assert network.ann is not None
    values, drives, _ = activations(network.ann, x)
    spikes, _ = oracle.spikes_of(model, x.numpy(), steps)
    second = network.layers[1]
    layer, ann = neurons(network.graph, second), of_kind(network.ann, second, ClipFloorShift)
    found = [*error_parts(layer, ann, record.spikes(second), record.membranes[second], drives[second])]
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
                for part, value in expected.items():
                    assert found[t - 1][part][image, neuron].item() == pytest.approx(value, abs=1e-6), (
                        part,
                        t,
                        image,
                        neuron,
                    )
                error = rate - values[second][image, neuron].item()
                assert sum(expected.values()) == pytest.approx(error, abs=1e-6)


def test_a_network_without_its_ann_has_none(tmp_path):
    network, x = roughened("mlp")
    network.save(tmp_path / "net.nir")
    assert ours(bridge.load(tmp_path / "net.nir")).validate(x, 2, []).rate_error is None
