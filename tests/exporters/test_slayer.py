"""SLAYER against a naive loop over the NIR graph in 64-bit whole numbers: spikes, potentials, readout."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backends import require
from support.digits import quantized, test_images
from support.layers import affine, neurons
from support.whole_networks import NETWORKS, cnn, images, mlp
from support.whole_numbers import spikes_of

from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import IntegrateFire, LayerGraph
from bridge.nir_graph import to_nir
from bridge.records import SpikeRecord


@pytest.fixture
def slayer():
    return require("slayer")


def with_neurons(graph: LayerGraph, name: str, **changes) -> LayerGraph:
    return graph.rewrite({name: [replace(graph[name], **changes)]})


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_equals_the_oracle_exactly(slayer, network, steps):
    graph = NETWORKS[network](seed=steps)
    x = images(3, graph.input.shape, seed=steps)
    spikes, readout = spikes_of(to_nir(graph), x, steps)
    record = slayer.run(slayer.export(to_nir(graph)), x, steps)
    for name in graph.spiking:
        assert 0 < spikes[name].mean() < 1
        np.testing.assert_array_equal(record.spikes(name), spikes[name])
    np.testing.assert_array_equal(record.readout, readout)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 16), batch=st.integers(1, 4))
def test_potentials_are_exact_too(seed, steps, batch):
    slayer = require("slayer")
    graph = mlp(seed)
    x = images(batch, graph.input.shape, seed)
    expect_exact_mlp(graph, x, slayer.run(slayer.export(to_nir(graph)), x, steps, membranes=True))


def expect_exact_mlp(graph: LayerGraph, x: np.ndarray, record: SpikeRecord) -> None:
    """Every spike, potential and readout: a potential is what was heard so far less the spikes before, in int64."""
    spikes, readout = spikes_of(to_nir(graph), x, record.steps)
    said = np.broadcast_to(x.astype(np.int64), (record.steps, *x.shape))
    for before_it, name in (("fc1", "a1"), ("fc2", "a2")):
        layer = affine(graph, before_it)
        heard = said @ layer.weight.astype(np.int64).T + layer.bias.astype(np.int64)
        said = spikes[name]
        before = np.cumsum(said, axis=0) - said
        np.testing.assert_array_equal(record.spikes(name), said)
        potential = np.cumsum(heard, axis=0) - int(neurons(graph, name).threshold[0]) * before
        np.testing.assert_array_equal(record.membranes[name], potential)
    np.testing.assert_array_equal(record.readout, readout)


def test_sums_that_float32_cannot_hold_are_an_error(slayer):
    """The neurons never take a spike off what they have summed up."""
    graph = mlp(seed=1, inputs=400)
    x = np.full((1, 400), 255, np.float32)
    first = affine(graph, "fc1")
    heard = np.abs(first.weight.astype(np.int64) @ x[0].astype(np.int64) + first.bias.astype(np.int64)).max()
    steps = int((2**24 - neurons(graph, "a1").threshold[0]) // heard)  # the last that fits
    native = slayer.export(to_nir(graph))
    expect_exact_mlp(graph, x, slayer.run(native, x, steps, membranes=True))
    with pytest.raises(BackendError, match=r"'a1'.*2\^24.*fewer time steps"):
        slayer.run(native, x, steps + 1)


def test_trained_digits_agree(slayer):
    network = quantized(8, "per_layer")
    images, labels = test_images()
    agreement = network.validate(network.pixels(images[:100]), 8, ["slayer"], labels=labels[:100])
    assert agreement.agreed


def test_nothing_is_left_of_the_run_before(slayer):
    graph = cnn(seed=2)
    native = slayer.export(to_nir(graph))
    x, other = images(2, graph.input.shape, 0), images(2, graph.input.shape, 1)
    first = slayer.run(native, x, 5)
    slayer.run(native, other, 8)
    slayer.run(native, images(5, graph.input.shape, 2), 3)
    again = slayer.run(native, x, 5)
    for name in graph.spiking:
        np.testing.assert_array_equal(first.packed[name], again.packed[name])
    np.testing.assert_array_equal(first.readout, again.readout)


def test_the_module_is_slayers_and_takes_time_as_its_last_axis(slayer):
    from lava.lib.dl.slayer import neuron, synapse

    graph = cnn(seed=3)
    module = slayer.export(to_nir(graph))
    assert isinstance(module.c1, synapse.Conv)
    assert isinstance(module.a1, neuron.alif.Neuron)
    assert isinstance(module.readout, synapse.Dense)
    x = images(2, graph.input.shape, 3)
    readout = module(torch.from_numpy(x).float()[..., None].expand(*x.shape, 6))
    np.testing.assert_array_equal(readout.detach().permute(2, 0, 1), spikes_of(to_nir(graph), x, 6)[1])


def test_gradients_reach_every_weight(slayer):
    graph = cnn(seed=4)
    module = slayer.export(to_nir(graph))
    x = torch.from_numpy(images(2, graph.input.shape, 4)).float()
    module(x[..., None].expand(*x.shape, 4)).square().sum().backward()
    for name in ("c1", "c2", "hidden", "readout"):
        assert module.get_submodule(name).weight.grad.abs().sum() > 0


def test_a_threshold_for_each_channel_is_refused(slayer):
    graph = mlp(seed=5)
    threshold = neurons(graph, "a2").threshold.copy()
    threshold[3] += 2
    graph = with_neurons(graph, "a2", level=threshold / 2, threshold=threshold)
    with pytest.raises(GraphError, match=r"'a2'.*one threshold a layer.*scheme=\"per_layer\""):
        slayer.export(to_nir(graph))


def test_another_initial_potential_is_refused(slayer):
    graph = mlp(seed=5)
    graph = with_neurons(graph, "a1", level=neurons(graph, "a1").level + 1)
    with pytest.raises(GraphError, match=r"'a1'.*start at half their threshold"):
        slayer.export(to_nir(graph))


def test_a_network_that_is_not_in_whole_numbers_is_refused(slayer):
    graph = mlp(seed=5)
    half = IntegrateFire(name="a1", inputs=("fc1",), level=np.full(12, 0.5, np.float32))
    with pytest.raises(GraphError, match="quantize"):
        slayer.export(to_nir(graph.rewrite({"a1": [half]})))


def test_images_that_do_not_fit_are_refused(slayer):
    native = slayer.export(to_nir(cnn(seed=6)))
    with pytest.raises(InputError, match=r"expected images \[B, 2, 9, 7\]"):
        slayer.run(native, np.zeros((1, 2, 9, 8), np.float32), 2)


def test_importing_slayer_leaves_no_stand_in_behind(slayer):
    assert "lava.lib.dl.slayer" in sys.modules
    assert "lava.lib.dl.slayer.object_detection" not in sys.modules
