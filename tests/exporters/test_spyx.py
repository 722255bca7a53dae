"""Spyx against naive loops, spike for spike, and its networks in the hands of Spyx's own users."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, oracle, whole_networks, whole_numbers
from support.backends import assert_equal, require
from torch import nn

import bridge
from bridge import GraphError
from bridge.graph import BatchNorm, Input, IntegrateFire, LayerGraph, SumPool2d
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate

STEPS = 5


@pytest.fixture(scope="module")
def backend():
    return require("spyx")


COMPILED = ("cnn", "residual", "signal")
"""Every kind of layer that Spyx's own code is made for, in short to compile; the other networks are `long`."""


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n in COMPILED else pytest.mark.long) for n in networks.ALL]
)
def case(request, backend):
    """A model, its spiking network, that network in Spyx, and three images. What was compiled is kept."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x)
    return model, network, backend.export(network.to_nir()), x


def test_spikes_membranes_and_a_fresh_start(backend, case):
    model, network, native, x = case
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    record = backend.run(native, x.numpy(), STEPS, membranes=True)
    assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)
    assert record.backend == "spyx"
    for layer, potentials in simulate(network.graph, x, STEPS, membranes=True).membranes.items():
        np.testing.assert_array_equal(record.membranes[layer], potentials)
    again = backend.run(native, x.numpy(), 2)
    assert_equal(again, {n: s[:2] for n, s in zip(network.layers, spikes, strict=True)}, readout[:2])
    assert not again.membranes


def test_padded_sums(backend):
    fire = IntegrateFire(
        name="fire", inputs=("input",), level=np.full(2, 100, np.float32), threshold=np.full(2, 200, np.float32)
    )
    graph = LayerGraph(
        (
            Input(name="input", shape=(2, 9, 8)),
            fire,
            SumPool2d(name="pool", inputs=("fire",), kernel=(3, 2), stride=(2, 1), padding=(1, 1)),
        )
    )
    pixels = whole_networks.images(3, (2, 9, 8), 3)
    record = backend.run(backend.export(to_nir(graph)), pixels, 6)
    assert_equal(record, *whole_numbers.spikes_of(to_nir(graph), pixels, 6))


def test_by_hand(case):
    model, _, native, x = case
    import jax.numpy as jnp
    import spyx

    images = jnp.asarray(x.numpy())
    readout, _ = spyx.nn.run(native, jnp.broadcast_to(images, (STEPS, *images.shape)))
    np.testing.assert_array_equal(readout, oracle.spikes_of(model, x.numpy(), STEPS)[1])


def test_one_image_step_by_step(backend):
    model, shape = networks.mlp()
    x = networks.dyadic_images(1, shape)
    native = backend.export(bridge.convert(model, x).to_nir())
    state = native.initial_state(1)
    for expected in oracle.spikes_of(model, x.numpy(), STEPS)[1]:
        readout, state = native(x.numpy(), state)
        np.testing.assert_array_equal(readout, expected)


def test_in_a_sequence_of_spyxs_own_layers(backend):
    model, shape = networks.residual()
    x = networks.dyadic_images(3, shape)
    native = backend.export(bridge.convert(model, x).to_nir())
    import spyx
    from flax import nnx

    assert isinstance(native, spyx.nn.StatefulLayer)
    integrator = spyx.nn.LI((3,), beta=1.0, rngs=nnx.Rngs(0))
    sums, _ = spyx.nn.run(spyx.nn.Sequential(native, integrator), np.broadcast_to(x.numpy(), (STEPS, *x.shape)))
    np.testing.assert_array_equal(sums, np.cumsum(oracle.spikes_of(model, x.numpy(), STEPS)[1], axis=0))


@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.long), "residual"])
def test_gradients_reach_the_weights(backend, name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    native = backend.export(bridge.convert(model, x).to_nir())
    import jax
    import jax.numpy as jnp
    import spyx
    from flax import nnx

    images = np.broadcast_to(x.numpy(), (3, *x.shape))
    gradients = jax.tree.leaves(nnx.grad(lambda net: jnp.square(spyx.nn.run(net, images)[0]).sum())(native))
    assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_copies_are_independent(backend):
    model, shape = networks.mlp()
    x = networks.dyadic_images(3, shape)
    native = backend.export(bridge.convert(model, x).to_nir())
    import jax
    from flax import nnx

    twin = nnx.clone(native)  # copy.deepcopy stops at Spyx's activations, in Spyx's own neurons too
    nnx.update(native, jax.tree.map(lambda values: 0 * values, nnx.state(native, nnx.Param)))
    expected = oracle.spikes_of(model, x.numpy(), STEPS)[1]
    assert not np.array_equal(backend.run(native, x.numpy(), STEPS).readout, expected)
    np.testing.assert_array_equal(backend.run(twin, x.numpy(), STEPS).readout, expected)


def test_spyxs_own_neuron_is_a_step_late(backend):
    """Why it is not used: with the same level and threshold, it says at each step what ours said one before."""
    import spyx

    from exporters.spyx.neuron import SoftResetIF

    drive = np.random.default_rng(0).integers(-8, 24, (9, 4, 6)).astype(np.float32) + np.float32(0.01)
    ones = np.full(6, 16, np.float32)
    ours, _ = spyx.nn.run(SoftResetIF((6,), ones, ones), drive)
    own, _ = spyx.nn.run(spyx.nn.IF((6,), threshold=16), drive)
    assert 0 < np.mean(ours) < 1
    np.testing.assert_array_equal(own[1:], ours[:-1])
    np.testing.assert_array_equal(own[0], 0)


def test_in_double_precision(backend):
    """Where a user has switched it on, the network is the same."""
    import jax

    model, shape = networks.mlp()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x)
    with jax.enable_x64(True):
        record = backend.run(backend.export(network.to_nir()), x.numpy(), STEPS)
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)


def test_layers_without_a_module(backend):
    from exporters.spyx.network import SpyxNetwork

    ones = np.ones(3, np.float32)
    norm = BatchNorm(name="norm", inputs=("input",), scale=ones, shift=ones)
    with pytest.raises(GraphError, match=r"'norm'.*BatchNorm"):
        SpyxNetwork(LayerGraph((Input(name="input", shape=(3,)), norm)))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1)], ids=["plain", "padded"])
def test_equal_networks_are_compiled_once(backend, pool):
    """Each compilation is kept for good: with one for each export, memory grows with every validation."""
    from exporters.spyx.network import advance

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), bridge.QCFS(4), pool, nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(2, 1, 6, 6)
    model(x)
    graph = bridge.convert(model.eval(), x).to_nir()
    compiled = []
    for _ in range(3):
        backend.run(backend.export(graph), x.numpy(), 2)
        compiled.append(advance._cache_size())
    assert compiled == compiled[:1] * 3
