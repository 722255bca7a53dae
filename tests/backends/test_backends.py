"""What holds for every backend with neurons of its own alike: whole numbers, levels and thresholds, no errors but ties.

`test_agreement_with_oracle` and `test_native_objects` have more of it; each backend's own file has what is its own.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from support import networks, oracle, whole_networks, whole_numbers
from support.backends import assert_equal, require
from torch import nn

import bridge
from bridge.graph import Conv2d, Flatten, Input, IntegrateFire, LayerGraph
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture(scope="module", params=["nengo", "norse", "rockpool", "sinabs", "spyx"])
def backend(request):
    """Each of them in turn."""
    return require(request.param)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("mlp", "residual") else pytest.mark.long) for n in networks.ALL]
)
def test_exact_and_the_same_again(backend, name):
    """All other networks run in `test_agreement_with_oracle`; here they are `long`."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x)
    native = backend.export(network.to_nir())
    spikes, readout = oracle.spikes_of_network(name, 3, STEPS)
    for images in (3, 3, 1):
        record = backend.run(native, x[:images].numpy(), STEPS)
        fired = {layer: found[:, :images] for layer, found in zip(network.layers, spikes, strict=True)}
        assert_equal(record, fired, readout[:, :images])
        assert record.backend == backend.name
        assert not record.membranes


@pytest.mark.parametrize("name", whole_networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_whole_numbers(backend, name, seed):
    graph = whole_networks.NETWORKS[name](seed)
    pixels = whole_networks.images(4, graph.input.shape, seed)
    expected = whole_numbers.spikes_of(to_nir(graph), pixels, 9)
    assert any(0 < fired.mean() < 1 for fired in expected[0].values())
    assert_equal(backend.run(backend.export(to_nir(graph)), pixels, 9), *expected)


@pytest.mark.parametrize(
    ("level", "threshold", "weight", "bias"),
    [
        ([0.25, 0.5, 0.875], [0.75, 1, 2], [1, 2, -3], [0.125, 0, 0.5]),
        ([0.25, 0.5, 0.875], [0.75, 1, 2], [1, 8, -3], [0.125, 0, 0.5]),  # drives of several thresholds
        ([20, 50, 7], [64, 100, 3], [1, 1, 1], [-3, 5, -100]),
    ],
)
def test_a_level_and_a_threshold_for_each_channel(backend, level, threshold, weight, bias):
    """By hand, in float64, where these sums are exact. One spike a step, however large the drive."""
    level, threshold, bias = (np.array(values, np.float32) for values in (level, threshold, bias))
    graph = LayerGraph(
        (
            Input(name="input", shape=(3, 2, 4)),
            Conv2d(
                name="conv", inputs=("input",), weight=np.diag(weight).astype(np.float32)[:, :, None, None], bias=bias
            ),
            IntegrateFire(name="fire", inputs=("conv",), level=level, threshold=threshold),
            Flatten(name="flatten", inputs=("fire",)),
        )
    )
    whole = float(level[0]).is_integer()
    x = whole_networks.images(4, (3, 2, 4), 0) if whole else networks.dyadic_images(4, (3, 2, 4)).numpy()
    u = np.zeros(x.shape)
    spikes, membranes = [], []
    for _ in range(7):
        u = u + x * np.array(weight)[:, None, None] + bias[:, None, None]
        membranes.append(u)
        spikes.append(u >= level[:, None, None])
        u = u - threshold[:, None, None] * spikes[-1]
    record = backend.run(backend.export(to_nir(graph)), x, 7, membranes=True)
    assert_equal(record, {"fire": np.stack(spikes)}, np.stack(spikes).reshape(7, 4, -1))
    np.testing.assert_array_equal(record.membranes["fire"], np.stack(membranes))
    assert max(weight) < 8 or u.max() > 4 * threshold.max()


def test_fires_at_the_level_and_not_just_below(backend):
    level = np.array([0.5, 0.75, 0.9, 1e-3, 37], np.float32)
    layers = (Input(name="input", shape=(5,)), IntegrateFire(name="fire", inputs=("input",), level=level))
    native = backend.export(to_nir(LayerGraph(layers)))
    x = np.stack([np.nextafter(level, np.float32(-1)), level, np.nextafter(level, np.float32(99))])
    expected = np.repeat([[0], [1], [1]], 5, axis=1)
    np.testing.assert_array_equal(backend.run(native, x, 1).spikes("fire")[0], expected)


@pytest.fixture(scope="module")
def float_networks():
    """One as it was converted and one calibrated, and images for them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), bridge.QCFS(8)),
        *(nn.Flatten(), nn.Linear(8 * 9, 10)),
    )
    x = torch.randn(40, 3, 10, 10)
    network = bridge.convert(model, x)
    return (network, network.calibrate(x, 4)), x


def test_float_networks_agree_but_for_ties(backend, float_networks):
    both, x = float_networks
    for one in both:
        agreement = one.validate(x, 4, [backend])
        assert agreement.agreed
        assert agreement.backends[backend.name].total_differing < 10  # of 170 000


def test_float_networks_with_strides_and_paddings(backend):
    """There the validator accepts nothing but ties."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.Conv2d(8, 8, 3, 2, 1), bridge.QCFS(4)),
        *(nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8 * 2 * 2, 10)),
    )
    x = torch.rand(8, 3, 8, 8)
    assert bridge.convert(model, x).validate(x, 8, [backend]).agreed


def test_snntorch_keeps_no_network_that_is_gone():
    """SnnTorch lists every neuron that it makes, with its last potentials."""
    backend = require("snntorch")
    import snntorch

    model, shape = networks.mlp()
    graph = bridge.convert(model, torch.rand(1, *shape)).to_nir()
    gc.collect()
    before = len(snntorch.SpikingNeuron.instances)
    native = backend.export(graph)
    assert len(snntorch.SpikingNeuron.instances) > before
    backend.run(native, np.random.default_rng(0).random((3, *shape), np.float32), 2)
    del native
    gc.collect()
    assert len(snntorch.SpikingNeuron.instances) == before
