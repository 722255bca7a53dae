"""Staged and grouped networks on Rockpool, Spyx and Nengo: spike for spike; and by name refused on what is Lava's."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support import networks, staged_oracle
from support.backends import assert_equal, require
from support.exact_networks import drawn
from support.networks import qcfs
from torch import Tensor, nn

import bridge
from bridge import GraphError, SpikingNetwork
from bridge.graph import AtLeast, EachLevel, GroupFire, Impulse, Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir
from bridge.simulate.reference import simulate

NAMES = ("nengo", "rockpool", "spyx")
SCHEDULES = ("staged", "grouped")
POOLED = ("maps", "sequence")
"""Networks of `exact_networks.RANDOM` with pools of all kinds."""
SOME = ("cnn", "ends_in_spikes")
"""Networks of `networks.ALL` that Spyx compiles in short."""


@pytest.fixture(params=NAMES)
def backend(request):
    return require(request.param)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", POOLED)
def test_validated(backend, kind, schedule, bits):
    network, x = drawn(kind, schedule, bits)
    for images in (x[:9], x[-1:]):
        agreement = network.validate(images, backends=[backend.name])
        (found,) = agreement.backends.values()
        assert agreement.agreed
        assert agreement.steps == network.latency
        assert agreement.equals_ann is not None
        assert agreement.equals_ann.equal
        if bits is not None:
            assert found.total_differing == found.readouts_wrong == found.readout_error == 0


def test_what_is_validated_has_all_kinds_of_pools():
    for kind in POOLED:
        staged = drawn(kind, "staged", None)[0].graph
        grouped = drawn(kind, "grouped", None)[0].graph
        pools = [layer.name for layer in staged if isinstance(layer, AtLeast)]
        inner = [layer.layer for layer in grouped if isinstance(layer, EachLevel)]
        assert pools
        assert [layer.name for layer in inner if isinstance(layer, AtLeast)] == pools
        assert any(layer.level.min() < layer.level.max() for layer in inner if isinstance(layer, AtLeast)) == (
            kind == "maps"
        )


def staged(name: str, levels: int | None = None):
    """The staged network of `networks.ALL[name]`, three images, and what is expected."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    return bridge.convert(model, x, schedule="staged", steps=levels), x, staged_oracle.of_network(name, 3, levels)


def grouped(name: str):
    """The grouped network of `networks.ALL[name]`, three images, the spikes ``[B, L, *shape]`` and the output."""
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(3, shape)
    network, expected = bridge.convert(model, x, schedule="grouped"), staged_oracle.of_network(name, 3, None)
    spikes = {}
    for layer, fired in zip(network.layers, expected.spikes, strict=True):
        count = fired.sum(axis=0)
        spikes[layer] = np.stack([count >= k + 1 for k in range(network.graph.shapes[layer][0])], axis=1)
    return network, x, spikes, expected.output


@pytest.mark.parametrize(("name", "levels"), [*((name, None) for name in SOME), ("ends_in_spikes", 1)])
def test_trains_windows_and_membranes(backend, name, levels):
    """Twice, the second time with another number of images, and longer than the network takes."""
    network, x, expected = staged(name, levels)
    native = backend.export(network.to_nir())
    for images, steps in ((3, expected.latency), (2, expected.latency + 3)):
        part = (slice(steps), slice(images))
        record = backend.run(native, x[:images].numpy(), steps, membranes=True)
        fired = {layer: spikes[part] for layer, spikes in zip(network.layers, expected.spikes, strict=True)}
        assert_equal(record, fired, expected.readout[part])
        for layer, membranes in zip(network.layers, expected.membranes, strict=True):
            np.testing.assert_array_equal(record.membranes[layer], membranes[part], err_msg=layer)
        assert record.backend == backend.name
        assert record.summed
        np.testing.assert_array_equal(record.outputs()[-1], expected.output[:images])


@pytest.mark.parametrize("name", SOME)
def test_groups_and_their_drives(backend, name):
    """Every step gives the same, for there is no state."""
    network, x, spikes, output = grouped(name)
    native = backend.export(network.to_nir())
    for images, steps in ((3, 1), (2, 2)):
        record = backend.run(native, x[:images].numpy(), steps, membranes=True)
        alike = {layer: np.stack([fired[:images]] * steps) for layer, fired in spikes.items()}
        assert_equal(record, alike, np.stack([output[:images]] * steps))
        for layer, drives in simulate(network.graph, x[:images], steps, membranes=True).membranes.items():
            np.testing.assert_array_equal(record.membranes[layer], drives)
        assert not record.summed


def test_an_impulse_before_plain_neurons(backend):
    """No window, so the output is a mean; each of the steps has its number all the same."""
    graph = LayerGraph(
        (
            Input(name="input", shape=(3,)),
            Impulse(name="once", inputs=("input",)),
            IntegrateFire(name="fire", inputs=("once",), level=np.full(3, 0.5, np.float32)),
        )
    )
    record = backend.run(backend.export(to_nir(graph)), np.array([[0.25, 0.5, 2.75]], np.float32), 4, membranes=True)
    np.testing.assert_array_equal(record.readout[:, 0], [[0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(record.membranes["fire"][:, 0, 2], [2.75, 1.75, 0.75, -0.25])
    assert not record.summed


def over_time(x: Tensor, steps: int) -> Tensor:
    """Images held constant, as Rockpool wants them: ``[B, T, N]``."""
    return x.flatten(1).unsqueeze(1).expand(-1, steps, -1)


def test_rockpool_by_hand():
    """All steps at once, then in two parts: the states go on from where they were."""
    backend = require("rockpool")
    network, x, expected = staged("cnn")
    net, steps = backend.export(network.to_nir()), expected.latency
    readout = expected.readout[:steps].swapaxes(0, 1)
    for _ in range(2):
        output, _, record = net(over_time(x, steps), record=True)
        np.testing.assert_array_equal(output.detach(), readout)
        assert tuple(record) == network.layers
        net.reset_state()
    first, _, _ = net(over_time(x[:1], 5))
    second, _, _ = net(over_time(x[:1], steps - 5))
    np.testing.assert_array_equal(torch.cat([first, second], dim=1).detach(), readout[:1])


def test_rockpool_grouped_by_hand():
    backend = require("rockpool")
    network, x, spikes, answer = grouped("cnn")
    net = backend.export(network.to_nir())
    output, _, record = net(over_time(x, 2), record=True)
    np.testing.assert_array_equal(output.detach(), np.stack([answer] * 2, axis=1))
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record[layer]["spikes"][:, 1].detach(), fired.reshape(len(x), -1))


def test_spyx_by_hand():
    """Over all steps, then in two parts with the state handed on."""
    backend = require("spyx")
    import spyx

    network, x, expected = staged("ends_in_spikes")
    net, steps = backend.export(network.to_nir()), expected.latency
    assert isinstance(net, spyx.nn.StatefulLayer)
    images = np.broadcast_to(x.numpy(), (steps, *x.shape))
    readout, _ = spyx.nn.run(net, images)
    np.testing.assert_array_equal(readout, expected.readout[:steps])
    first, between = spyx.nn.run(net, images[:3])
    for _ in range(2):  # a state is not changed by what follows it
        second, _ = spyx.nn.run(net, images[3:], between)
        np.testing.assert_array_equal(np.concatenate([first, second]), expected.readout[:steps])


def test_spyx_grouped_by_hand():
    """There is no state, and none to hand on."""
    backend = require("spyx")
    network, x, _, answer = grouped("mlp")
    net = backend.export(network.to_nir())
    readout, state = net(x.numpy(), net.initial_state(3))
    np.testing.assert_array_equal(readout, answer)
    assert state == {}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nengo_by_hand(schedule, optimize):
    """As a part of another network, some steps and then the others."""
    backend = require("nengo")
    import nengo

    model, shape = networks.cnn()
    x = networks.dyadic_images(3, shape)
    network, expected = bridge.convert(model, x, schedule=schedule), staged_oracle.of_network("cnn", 3, None)
    native = backend.export(network.to_nir())
    with nengo.Network() as whole:
        whole.add(native)
        image = nengo.Node(x[0].numpy().ravel())
        nengo.Connection(image, native.input, synapse=None)
        readout = nengo.Probe(native.output)
    empty: Any = nengo.builder.Model(dt=1.0)  # without a cache in the user's home
    with nengo.Simulator(whole, model=empty, progress_bar=False, optimize=optimize) as simulator:
        simulator.run_steps(5)
        simulator.run_steps(expected.latency)
    found = simulator.data[readout]
    if schedule == "staged":
        np.testing.assert_array_equal(found[: expected.latency], expected.readout[: expected.latency, 0])
        assert not found[expected.latency :].any()
    else:
        np.testing.assert_array_equal(found, np.broadcast_to(expected.output[0], found.shape))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_reach_rockpools_weights(schedule):
    backend = require("rockpool")
    model, shape = networks.cnn()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x, schedule=schedule)
    net = backend.export(network.to_nir())
    steps = network.latency or 0
    backend.run(net, x.numpy(), steps)  # a run must leave no state that stands in the way
    output, _, _ = net(over_time(x, steps))
    output.square().sum().backward()
    weights = [parameter.grad for parameter in net.parameters("weights").astorch()]
    assert weights
    for gradient in weights:
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_reach_spyxs_weights(schedule):
    backend = require("spyx")
    import jax
    import jax.numpy as jnp
    import spyx
    from flax import nnx

    model, shape = networks.ends_in_spikes()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x, schedule=schedule)
    net = backend.export(network.to_nir())
    images = np.broadcast_to(x.numpy(), (network.latency or 0, *x.shape))
    gradients = nnx.grad(lambda net: jnp.square(spyx.nn.run(net, images)[0].sum(axis=0)).sum())(net)
    kernels = [layer for layer in jax.tree.leaves(gradients) if layer.ndim == 2]
    assert len(kernels) == 2
    assert all(bool(jnp.isfinite(gradient).all()) for gradient in kernels)
    assert all(bool((gradient != 0).any()) for gradient in kernels)


@pytest.mark.parametrize("schedule", ["plain", *SCHEDULES])
def test_nothing_is_shared_with_a_copy_or_the_network(schedule):
    backend = require("rockpool")
    model, shape = networks.cnn()
    x = networks.dyadic_images(3, shape)
    network = bridge.convert(model, x, schedule=schedule)
    steps = network.latency or 5
    expected = network.run(x, steps).readout
    net = backend.export(network.to_nir())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (*net.parameters().astorch(), *nn.Module.buffers(net)):
            tensor.fill_(3)
    np.testing.assert_array_equal(backend.run(twin, x.numpy(), steps).readout, expected)
    np.testing.assert_array_equal(network.run(x, steps).readout, expected)


LAVAS = ("atrlif", "slayer", "netx")
REASONS = {
    "staged": r"'layer_1' \(WindowFire\) fires in a window.*count none.*schedule='plain'",
    "grouped": r"'layer_1' \(GroupFire\) is a group of thresholds.*have one threshold each.*schedule='plain'",
}


def refusing(name: str):
    """What exports to the backend, or writer, called `name`."""
    if name == "netx":
        from exporters.lava_dl.netx import NetX

        return NetX
    if name == "atrlif":
        require("lava-fixed")
        from exporters.lava import LavaFixed

        return LavaFixed(neuron="atrlif").export
    return require(name).export


@cache
def pooled(schedule: str, whole: bool) -> SpikingNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), qcfs(4), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3), qcfs(2)),
    )
    x = torch.rand(9, 2, 6, 6)
    network = bridge.convert(model, x, schedule=schedule)
    return network.quantize(8, x, scheme="per_layer") if whole else network


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "netx" else pytest.mark.lava) for name in LAVAS]
)
def test_lava_refuses(name, schedule, whole):
    """With this reason, also where the network is not in integers, which some of them would refuse next."""
    framework = "Lava with neuron='atrlif'" if name == "atrlif" else "lava-dl"
    with pytest.raises(GraphError, match=REASONS[schedule]) as refused:
        refusing(name)(pooled(schedule, whole).to_nir())
    assert f"the backend for {framework} " in str(refused.value)


@pytest.mark.parametrize("name", ["netx", pytest.param("slayer", marks=pytest.mark.lava)])
def test_lava_dl_refuses_a_threshold_alone(name):
    graph = LayerGraph(
        (
            Input(name="input", shape=(2,)),
            Linear(name="fc", inputs=("input",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32)),
            AtLeast(name="any", inputs=("fc",), level=np.full(2, 5, np.float32)),
            Linear(name="last", inputs=("any",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32)),
            IntegrateFire(
                name="fire", inputs=("last",), level=np.ones(2, np.float32), threshold=np.full(2, 2, np.float32)
            ),
        )
    )
    with pytest.raises(GraphError, match=r"'any' \(AtLeast\) is a threshold without state.*keep a potential"):
        refusing(name)(to_nir(graph))


def test_a_group_is_no_plain_neuron():
    """Every level of a group has spikes of its own in the record."""
    network, x = drawn("maps", "grouped", None)
    first = network.graph[network.layers[0]]
    assert isinstance(first, GroupFire)
    record = require("rockpool").run(require("rockpool").export(network.to_nir()), x[:2].numpy(), 1)
    assert record.spikes(first.name).shape == (1, 2, 3, 4, 6, 7)
