"""The network for tools that only know ``nir.IF``: what is in the graph, and what the warning says it costs."""

from __future__ import annotations

import re
import warnings

import nir
import numpy as np
import pytest
import torch
from support import networks, oracle
from torch import nn

import bridge
from bridge.errors import LossyWarning
from bridge.foreign import ForeignNetwork
from bridge.nir_graph import from_nir

KNOWN = {"Input", "Output", "Affine", "Conv1d", "Conv2d", "AvgPool2d", "Flatten", "IF"}


def lossy(network: bridge.SpikingNetwork, x: torch.Tensor | None = None) -> tuple[nir.NIRGraph, str]:
    """The dialect, and the warning that comes with it."""
    with pytest.warns(LossyWarning) as caught:
        graph = network.to_nir("if", measured_on=x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return graph, str(caught[0].message)


def hard_reset(model: nn.Sequential, x: np.ndarray, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """`oracle.spikes_of` with NIR's IF in the place of every QCFS: from 0, fires above λ, resets to 0."""
    membranes: dict[int, np.ndarray] = {}
    spikes: dict[int, list[np.ndarray]] = {}
    readout = []
    for _ in range(steps):
        signal = x.astype(np.float64)
        for number, module in enumerate(model):
            if not isinstance(module, bridge.QCFS):
                signal = oracle.transform(module, signal)
                continue
            threshold = oracle.per_channel(oracle.numpy(module.threshold), signal)
            v = membranes.get(number, 0.0) + signal
            fired = v > threshold
            membranes[number] = np.where(fired, 0.0, v)
            spikes.setdefault(number, []).append(fired)
            signal = threshold * fired
        readout.append(signal)
    return [np.stack(rows) for rows in spikes.values()], np.stack(readout)


@pytest.mark.parametrize("name", list(networks.ALL))
def test_every_layer_is_one_if_among_what_importers_know(name):
    model, shape = networks.ALL[name]()
    network = bridge.convert(model, torch.zeros(1, *shape))
    graph, _ = lossy(network)
    assert {type(node).__name__ for node in graph.nodes.values()} <= KNOWN
    assert {n for n, node in graph.nodes.items() if isinstance(node, nir.IF)} == set(network.layers)
    for layer in network.layers:
        node = graph.nodes[layer]
        assert node.r.shape == node.v_threshold.shape == network.graph.shapes[layer]
        assert (node.r == 1).all()
        assert (node.v_threshold == 1).all()
        assert (node.v_reset == 0).all()
    assert all(
        array.dtype == np.float32
        for node in graph.nodes.values()
        for key in ("weight", "bias", "r", "v_threshold", "v_reset")
        if (array := getattr(node, key, None)) is not None
    )


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_it_is_the_network_with_a_hard_reset(name, tmp_path):
    """Read back, run as NIR defines it, and held against the paper's network with another reset: the same spikes."""
    model, shape = networks.ALL[name]()
    network = bridge.convert(model, torch.zeros(1, *shape))
    x = networks.dyadic_images(6, shape)
    with pytest.warns(LossyWarning):
        network.save(tmp_path / "net.nir", "if")
    loaded = bridge.load(tmp_path / "net.nir")
    assert isinstance(loaded, ForeignNetwork)
    assert loaded.dt == 1
    got = loaded.run(x, 8)
    spikes, readout = hard_reset(model, x.numpy(), 8)
    assert got.layers == network.layers
    for layer, expected in zip(got.layers, spikes, strict=True):
        np.testing.assert_array_equal(got.spikes(layer), expected)
    np.testing.assert_array_equal(got.readout, readout.astype(np.float32))


@pytest.mark.parametrize("name", ["residual", "dense", "signal"])
def test_sums_and_factors_become_edges_and_layers(name):
    """The same graph with the exact neuron put back in the place of every IF: nothing else was lost."""
    model, shape = networks.ALL[name]()
    network = bridge.convert(model, torch.zeros(1, *shape))
    graph, _ = lossy(network)
    exact = network.to_nir()
    nodes, edges = dict(graph.nodes), []
    for a, b in graph.edges:
        edges.append((a, f"{b}_membrane" if b in network.layers else b))
    for layer in network.layers:
        for part in (layer, f"{layer}_membrane", f"{layer}_reset"):
            nodes[part] = exact.nodes[part]
        edges += [(f"{layer}_membrane", layer), (layer, f"{layer}_reset"), (f"{layer}_reset", f"{layer}_membrane")]
    restored = bridge.SpikingNetwork(from_nir(nir.NIRGraph(nodes, edges, type_check=False)))
    x = networks.dyadic_images(4, shape)
    expected, got = network.run(x, 6), restored.run(x, 6)
    for layer in network.layers:
        np.testing.assert_array_equal(got.spikes(layer), expected.spikes(layer))
    np.testing.assert_array_equal(got.readout, expected.readout)


def test_the_warning_measures_the_loss():
    model, shape = networks.cnn()
    network = bridge.convert(model, torch.zeros(1, *shape))
    x = networks.dyadic_images(70, shape)
    _, message = lossy(network, x)
    exact, exact_readout = oracle.spikes_of(model, x.numpy(), 8)
    hard, hard_readout = hard_reset(model, x.numpy(), 8)
    wrong = sum(int((a != b).sum()) for a, b in zip(exact, hard, strict=True)) / sum(a.size for a in exact)
    same = (exact_readout.mean(axis=0).argmax(axis=-1) == hard_readout.mean(axis=0).argmax(axis=-1)).mean()
    assert wrong > 0.02
    assert f"On these 70 images at T = 8, {wrong:.1%} of all spikes are wrong, and {same:.1%} of the images" in message


def test_without_images_the_warning_says_how_to_measure():
    model, shape = networks.mlp()
    _, message = lossy(bridge.convert(model, torch.zeros(1, *shape)))
    assert "resets to 0" in message
    assert 'to_nir(neuron="if", measured_on=images)' in message


def test_whole_numbers_keep_their_thresholds():
    model, shape = networks.cnn()
    x = networks.dyadic_images(20, shape)
    network = bridge.convert(model, x).quantize(8, calibration=x)
    graph, message = lossy(network, network.pixels(x))
    exact = network.to_nir()
    for layer in network.layers:
        np.testing.assert_array_equal(graph.nodes[layer].v_threshold, -exact.nodes[f"{layer}_reset"].scale)
        assert (graph.nodes[layer].v_threshold > 1).all()
    (share,) = re.findall(r"([\d.]+)% of all spikes", message)
    assert 2 < float(share) < 40


def test_arguments():
    model, shape = networks.mlp()
    network = bridge.convert(model, torch.zeros(1, *shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network.to_nir().nodes.keys() == network.to_nir("exact").nodes.keys()
    with pytest.raises(bridge.InputError, match='expected "exact" or "if", got \'IF\''):
        network.to_nir("IF")
    with pytest.raises(bridge.InputError, match="measured_on: only"):
        network.to_nir(measured_on=torch.zeros(1, *shape))
    with pytest.raises(bridge.InputError, match=r"measured_on: expected images \[B, 6\], got \[1, 99\]"):
        network.to_nir("if", measured_on=torch.zeros(1, 99))
