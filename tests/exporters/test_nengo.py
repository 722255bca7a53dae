"""Nengo against naive loops, spike for spike, and its networks in the hands of Nengo's own users."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import assert_equal, require
from torch import nn

import bridge
from bridge import GraphError
from bridge.graph import BatchNorm, Input, LayerGraph
from bridge.simulate.reference import simulate

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
                assert conv.bias is not None
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
