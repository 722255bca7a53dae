"""Rockpool: exact on plain and residual networks, and usable as Rockpool's users use their own modules."""

from __future__ import annotations

import copy
import doctest

import nir
import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import require
from support.layers import ours

import bridge
from bridge import GraphError
from bridge.graph import Affine, Input, IntegrateFire, LayerGraph, Linear
from bridge.nir_graph import to_nir

STEPS = 5


@pytest.fixture
def rockpool():
    return require("rockpool")


@pytest.fixture(params=networks.ALL)
def case(request):
    """A model, its spiking network, and three images."""
    model, shape = networks.ALL[request.param]()
    x = networks.dyadic_images(3, shape)
    return model, bridge.convert(model, x), x


def over_time(x: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Images ``[B, ...]`` held constant, as Rockpool wants them: ``[B, T, N]``."""
    return x.flatten(1).unsqueeze(1).expand(-1, steps, -1)


def flat(readout: np.ndarray) -> np.ndarray:
    """A readout ``[T, B, ...]`` as Rockpool gives it: ``[B, T, N]``."""
    return readout.reshape(*readout.shape[:2], -1).swapaxes(0, 1)


def test_by_hand_and_from_a_fresh_state(rockpool, case):
    model, network, x = case
    net = rockpool.export(network.to_nir())
    _, readout = oracle.spikes_of(model, x.numpy(), STEPS)
    for images in (x, x[:1]):  # a new batch size, too
        net.reset_state()
        output, state, record = net(over_time(images), record=True)
        np.testing.assert_array_equal(output.detach(), flat(readout)[: len(images)])
        assert set(record) == set(network.layers)
        assert any(bool(state[layer]["vmem"].any()) for layer in network.layers)


def test_in_a_sequence_of_rockpools_own(rockpool):
    from rockpool.nn.combinators import Sequential
    from rockpool.nn.modules import LinearTorch

    model, shape = networks.residual()
    x = networks.dyadic_images(3, shape)
    net = Sequential(rockpool.export(bridge.convert(model, x).to_nir()), LinearTorch((3, 2), weight=torch.ones(3, 2)))
    output, _, _ = net(over_time(x))
    expected = flat(oracle.spikes_of(model, x.numpy(), STEPS)[1]).sum(axis=2, keepdims=True)
    np.testing.assert_array_equal(output.detach(), np.repeat(expected, 2, axis=2))


def test_the_example(rockpool, tmp_path, monkeypatch):
    model, shape = networks.residual()
    x = networks.dyadic_images(6, shape)
    bridge.convert(model, x).save(tmp_path / "net.nir")
    monkeypatch.chdir(tmp_path)
    names = {"Rockpool": type(rockpool), "nir": nir, "images": x}
    example = doctest.DocTestParser().get_doctest(type(rockpool).__doc__ or "", names, "Rockpool", None, 0)
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (result.failed, result.attempted) == (0, 7)
    spikes, readout = oracle.spikes_of(model, x.numpy(), 8)
    got = example.globs
    np.testing.assert_array_equal(got["prediction"], readout.mean(axis=0).argmax(axis=1))
    np.testing.assert_allclose([*got["rate"].values()], [fired.mean() for fired in spikes], rtol=1e-6)
    assert not any(bool(layer["vmem"].any()) for layer in got["net"].state().values() if layer)
    affine = [layer for layer in ours(bridge.load("net.nir")).graph if isinstance(layer, Affine)]
    assert len(got["weights_and_biases"]) == 2 * len(affine)


def test_gradients_reach_the_weights(rockpool, case):
    _, network, x = case
    net = rockpool.export(network.to_nir())
    rockpool.run(net, x.numpy(), 2)  # a run must leave no state that stands in the way
    output, _, _ = net(over_time(x))
    output.sum().backward()
    gradients = [parameter.grad for parameter in net.parameters().astorch()]
    assert gradients
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_copies_are_independent(rockpool, case):
    model, network, x = case
    net = rockpool.export(network.to_nir())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters().astorch():
            parameter.zero_()
        for name in network.layers:
            net.get_submodule(name).level.fill_(100)
    _, expected = oracle.spikes_of(model, x.numpy(), STEPS)
    np.testing.assert_array_equal(rockpool.run(twin, x.numpy(), STEPS).readout, expected)


def test_refused_layers(rockpool):
    linear = Linear(name="state", inputs=("x",), weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    fire = IntegrateFire(name="fire", inputs=("state",), level=np.full(2, 0.5, np.float32))
    with pytest.raises(GraphError, match=r"'state'.*rename"):
        rockpool.export(to_nir(LayerGraph((Input(name="x", shape=(2,)), linear, fire))))
    fire = IntegrateFire(name="fire", inputs=("x",), level=np.array([0.5, -0.25], np.float32))
    with pytest.raises(GraphError, match=r"'fire'.*levels > 0.*got -0.25"):
        rockpool.export(to_nir(LayerGraph((Input(name="x", shape=(2,)), fire))))
    hard = nir.NIRGraph.from_list(nir.IF(r=np.ones(2), v_threshold=np.ones(2)))
    with pytest.raises(GraphError, match=r"'if'.*soft reset"):
        rockpool.export(hard)
