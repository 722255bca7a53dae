"""Norse: exact on plain and residual networks, and usable as Norse's users use their own modules."""

from __future__ import annotations

import copy
import doctest
from dataclasses import replace

import nir
import numpy as np
import pytest
import torch
from support import networks, oracle, whole_networks, whole_numbers
from support.backends import require
from torch import nn

import bridge
from bridge import GraphError
from bridge.graph import LayerGraph
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture
def norse():
    return require("norse")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def test_lifted_over_time_in_a_sequence(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    import norse.torch as snn

    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    over_time = x.expand(STEPS, *x.shape)
    readout, state = snn.Lift(net)(over_time)
    np.testing.assert_array_equal(readout.detach().numpy(), expected)
    assert set(state) == set(network.layers)
    assert all(isinstance(one, snn.IAFState) for one in state.values())
    readout, _ = snn.Lift(snn.SequentialState(net, nn.Identity()))(over_time)
    np.testing.assert_array_equal(readout.detach().numpy(), expected)


def test_a_run_in_two_parts(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    readout, state = net(x)
    for t in range(1, STEPS):
        again, _ = net(x, state)  # a state is not changed by what follows it
        readout, state = net(x, state)
        np.testing.assert_array_equal(readout.detach().numpy(), expected[t])
        assert torch.equal(readout, again)


def test_the_example(norse, tmp_path, monkeypatch):
    model, shape = networks.residual()
    x = networks.dyadic_images(6, shape)
    bridge.convert(model, x).save(tmp_path / "net.nir")
    monkeypatch.chdir(tmp_path)
    names = {"Norse": type(norse), "nir": nir, "images": x}
    example = doctest.DocTestParser().get_doctest(type(norse).__doc__ or "", names, "Norse", None, 0)
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (result.failed, result.attempted) == (0, 6)
    spikes, readout = oracle.spikes_of(model, x.numpy(), 9)
    got = example.globs
    np.testing.assert_array_equal(got["prediction"], readout[:8].mean(axis=0).argmax(axis=1))
    np.testing.assert_array_equal(got["readout"].detach(), readout[8])
    np.testing.assert_allclose([*got["rate"].values()], [fired[8].mean() for fired in spikes], rtol=1e-6)


def test_gradients_reach_the_weights(norse, case):
    _, network, x = case
    net = norse.export(network.to_nir())
    state, total = None, torch.zeros(())
    for _ in range(3):
        readout, state = net(x, state)
        total = total + readout.sum()
    total.backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_copies_are_independent(norse, case):
    model, network, x = case
    net = norse.export(network.to_nir())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    np.testing.assert_array_equal(norse.run(twin, x.numpy(), STEPS).readout, expected)


def test_a_layer_called_state(norse):
    graph = whole_networks.mlp(0)
    rename = {"a1": "state", "fc2": "x"}
    layers = (
        replace(
            layer,
            name=rename.get(layer.name, layer.name),
            inputs=tuple(rename.get(name, name) for name in layer.inputs),
        )
        for layer in graph
    )
    net = norse.export(to_nir(LayerGraph(tuple(layers))))
    import norse.torch as snn

    pixels = whole_networks.images(4, (6,), 0)
    readout, state = snn.Lift(net)(torch.from_numpy(pixels).float().expand(6, 4, 6))
    np.testing.assert_array_equal(readout.detach(), whole_numbers.spikes_of(to_nir(graph), pixels, 6)[1])
    assert set(state) == {"state", "a2"}


def test_refused_layers(norse):
    hard = nir.NIRGraph.from_list(nir.IF(r=np.ones(2), v_threshold=np.ones(2)))
    with pytest.raises(GraphError, match=r"'if'.*soft reset"):
        norse.export(hard)
