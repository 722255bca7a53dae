"""Nengo against naive loops, spike for spike, and its networks in the hands of Nengo's own users."""

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
from bridge.graph import BatchNorm, Conv2d, Flatten, Input, IntegrateFire, LayerGraph
from bridge.nir_graph import to_nir
from bridge.records import SpikeRecord
from bridge.simulate import simulate

STEPS = 5


@pytest.fixture(scope="module")
def nengo():
    """Nengo, which keeps no cache of its own in the user's home."""
    require("nengo")
    import nengo

    enabled = nengo.rc["decoder_cache"]["enabled"]
    nengo.rc["decoder_cache"]["enabled"] = "False"
    yield nengo
    nengo.rc["decoder_cache"]["enabled"] = enabled


@pytest.fixture
def backend(nengo):
    return require("nengo")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def assert_equal(record: SpikeRecord, spikes: dict[str, np.ndarray], readout: np.ndarray) -> None:
    assert set(record.layers) == set(spikes)
    for layer, fired in spikes.items():
        np.testing.assert_array_equal(record.spikes(layer), fired, err_msg=layer)
    np.testing.assert_array_equal(record.readout, readout)


def test_spikes_membranes_and_a_fresh_start(backend, case):
    model, network, x = case
    native = backend.export(network.to_nir())
    spikes, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    record = backend.run(native, x.numpy(), STEPS, membranes=True)
    assert_equal(record, dict(zip(network.layers, spikes, strict=True)), readout)
    assert record.backend == "nengo"
    for layer, potentials in simulate(network.graph, x, STEPS, membranes=True).membranes.items():
        np.testing.assert_array_equal(record.membranes[layer], potentials)
    again = backend.run(native, x[1:].numpy(), 2)
    assert_equal(again, {n: s[:2, 1:] for n, s in zip(network.layers, spikes, strict=True)}, readout[:2, 1:])
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


def test_by_hand_as_a_part_of_a_network(nengo, backend, case):
    model, network, x = case
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    native = backend.export(network.to_nir())
    with nengo.Network() as whole:
        whole.add(native)
        image = nengo.Node(x[0].numpy().ravel())
        nengo.Connection(image, native.input, synapse=None)
        readout = nengo.Probe(native.output)
    with nengo.Simulator(whole, dt=1, progress_bar=False) as simulator:
        simulator.run_steps(STEPS)
    np.testing.assert_array_equal(simulator.data[readout].ravel(), expected[:, 0].ravel())


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_by_hand_on_its_own_and_without_optimizer(nengo, backend, name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(1, shape)
    network = bridge.convert(model, x)
    native = backend.export(network.to_nir())
    with native:
        image = nengo.Node(x.numpy().ravel())
        nengo.Connection(image, native.input, synapse=None)
        probes = [nengo.Probe(native.neurons[layer]) for layer in network.layers]
    with nengo.Simulator(native, dt=1, progress_bar=False, optimize=False) as simulator:
        simulator.run_steps(STEPS)
    for probe, fired in zip(probes, oracle.spikes_of(model, x.numpy(), STEPS)[0], strict=True):
        np.testing.assert_array_equal(simulator.data[probe], fired.reshape(STEPS, -1))


def test_nothing_is_left_behind(nengo, backend):
    """A run adds nothing to the network, nor to one that is being built around it."""
    model, shape = networks.mlp()
    x = networks.dyadic_images(2, shape)
    native = backend.export(bridge.convert(model, x).to_nir())
    before = len(native.all_objects)
    with nengo.Network() as other:
        backend.run(native, x.numpy(), 2, membranes=True)
    assert len(native.all_objects) == before
    assert other.all_objects == []


def test_paddings_strides_and_dilations(backend):
    """Nengo's "same" padding is uneven behind strides and with even kernels; ours never is."""
    generator = torch.Generator().manual_seed(1)
    for size in (5, 6):
        for kernel, stride, padding, dilation, groups in (
            *((3, 1, 1, 1, 1), (3, 2, 1, 1, 2), (5, 1, 2, 1, 1), (3, 1, 2, 2, 2), (2, 1, 1, 1, 1)),
            *(((3, 1), (2, 1), (1, 0), 1, 1), ((1, 3), 1, (2, 1), 1, 4), (3, 3, 2, 1, 1)),
        ):
            conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)
            with torch.no_grad():
                conv.weight.copy_(networks.dyadic(tuple(conv.weight.shape), 1 / 8, 6, generator))
                conv.bias.copy_(networks.dyadic((8,), 1 / 8, 6, generator))
            model = nn.Sequential(conv, networks.qcfs())
            x = networks.dyadic_images(2, (4, size, size + 1), size)
            network = bridge.convert(model, x)
            spikes, _ = oracle.spikes_of(model, x.numpy(), 2)
            record = backend.run(backend.export(network.to_nir()), x.numpy(), 2)
            np.testing.assert_array_equal(record.spikes(network.layers[0]), spikes[0], err_msg=str(conv))


def test_a_spike_at_another_dt_is_nengos(nengo):
    """One that is 1 / dt high, after a potential that grew by J·dt."""
    from exporters.nengo.neuron import SoftResetIF

    output, voltage = np.zeros(2), np.array([0.25, 0.25])
    SoftResetIF().step(0.5, np.array([0.5, 0.4]), output, voltage, np.full(2, 0.5), np.ones(2))
    np.testing.assert_array_equal(output, [2, 0])
    np.testing.assert_array_equal(voltage, [-0.5, 0.45])


def test_layers_without_a_connection(nengo):
    from exporters.nengo.network import NengoNetwork

    ones = np.ones(3, np.float32)
    norm = BatchNorm(name="norm", inputs=("input",), scale=ones, shift=ones)
    with pytest.raises(GraphError, match=r"'norm'.*BatchNorm"):
        NengoNetwork(LayerGraph((Input(name="input", shape=(3,)), norm)))


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
