"""Spyx against naive loops, spike for spike, and its networks in the hands of Spyx's own users."""

from __future__ import annotations

import networks
import numpy as np
import oracle
import pytest
import torch
import whole_networks
import whole_numbers
from conftest import require
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.graph import BatchNorm, Conv2d, Flatten, Input, IntegrateFire, LayerGraph, SumPool2d
from bridge.nir_graph import to_nir
from bridge.records import SpikeRecord
from bridge.simulate import simulate

STEPS = 5


@pytest.fixture(scope="module")
def backend():
    return require("spyx")


@pytest.fixture(scope="module", params=networks.ALL)
def case(request, backend):
    """A model, its spiking network, that network in Spyx, and three images. What was compiled is kept."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x)
    return model, network, backend.export(network.to_nir()), x


def assert_equal(record: SpikeRecord, spikes: dict[str, np.ndarray], readout: np.ndarray) -> None:
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)


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


@pytest.mark.parametrize("name", whole_networks.NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_numbers(backend, name, seed):
    graph = whole_networks.NETWORKS[name](seed)
    pixels = whole_networks.images(3, graph.input.shape, seed)
    expected = whole_numbers.spikes_of(to_nir(graph), pixels, 9)
    assert any(0 < fired.mean() < 1 for fired in expected[0].values())
    record = backend.run(backend.export(to_nir(graph)), pixels, 9)
    assert_equal(record, *expected)


def test_a_level_and_a_threshold_for_each_channel(backend):
    """By hand, in float64, where these sums are exact."""
    level = np.array([20, 50, 7], np.float32)
    threshold = np.array([64, 100, 3], np.float32)
    eye = np.eye(3, dtype=np.float32)[:, :, None, None]
    graph = LayerGraph(
        (
            Input(name="input", shape=(3, 2, 2)),
            Conv2d(name="conv", inputs=("input",), weight=eye, bias=np.array([-3, 5, -100], np.float32)),
            IntegrateFire(name="fire", inputs=("conv",), level=level, threshold=threshold),
            Flatten(name="flatten", inputs=("fire",)),
        )
    )
    x = whole_networks.images(4, (3, 2, 2), 0)
    u = np.zeros((4, 3, 2, 2))
    spikes, membranes = [], []
    for _ in range(7):
        u = u + x + np.array([-3, 5, -100])[:, None, None]
        membranes.append(u)
        spikes.append(u >= level[:, None, None])
        u = u - spikes[-1] * threshold[:, None, None]
    record = backend.run(backend.export(to_nir(graph)), x, 7, membranes=True)
    assert_equal(record, {"fire": np.stack(spikes)}, np.stack(spikes).reshape(7, 4, -1))
    np.testing.assert_array_equal(record.membranes["fire"], np.stack(membranes))


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


@pytest.mark.parametrize("name", ["mlp", "residual"])
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


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 5), np.float32), 4, "expected images"),
        (np.zeros((0, 6), np.float32), 4, "expected images"),
        (np.full((2, 6), np.nan, np.float32), 4, "12 values that are NaN"),
        (np.zeros((2, 6), np.float32), 0, "at least one time step"),
    ],
)
def test_bad_input(backend, x, steps, says):
    model, shape = networks.mlp()
    native = backend.export(bridge.convert(model, torch.zeros(1, *shape)).to_nir())
    with pytest.raises(InputError, match=says):
        backend.run(native, x, steps)


def test_weights_off_the_grid(backend):
    """There the validator accepts nothing but ties."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), bridge.QCFS(4), nn.Conv2d(8, 8, 3, 2, 1), bridge.QCFS(4)),
        *(nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8 * 2 * 2, 10)),
    )
    x = torch.rand(8, 3, 8, 8)
    assert bridge.convert(model, x).validate(x, 8, [backend]).agreed
