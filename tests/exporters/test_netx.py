"""NetX files: what lava-dl's importer makes of them, spike for spike, and what it refuses."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import h5py
import numpy as np
import pytest
from support.backends import require
from support.digits import quantized, test_images
from support.layers import affine, neurons
from support.whole_networks import Weights, cnn, images, mlp, residual, signal
from support.whole_numbers import spikes_of

from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import Conv2d, Input, LayerGraph, Linear
from bridge.nir_graph import to_nir
from exporters.lava_dl.netx import NetX

pytestmark = pytest.mark.lava


@pytest.fixture(autouse=True)
def lava_dl():
    return require("slayer")  # the same package


def strided(seed: int) -> LayerGraph:
    """Images through two layers without neurons, stride, dilation and groups, no flattening, spikes at the end."""
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(2, 9, 8)),
            Conv2d(name="centred", inputs=("input",), weight=np.ones((2, 1, 1, 1), "f4"), bias=-w(2), groups=2),
            Conv2d(name="c1", inputs=("centred",), weight=w(4, 2, 3, 3, limit=12), bias=w(4), padding=(1, 1)),
            w.neurons("a1", "c1", 4, 10000),
            Conv2d(name="c2", inputs=("a1",), weight=w(6, 2, 3, 2), bias=w(6), stride=(2, 1), padding=(1, 2), groups=2),
            w.neurons("a2", "c2", 6, 60),
            Conv2d(name="c3", inputs=("a2",), weight=w(3, 6, 2, 2), bias=w(3), dilation=(2, 3)),
            w.neurons("a3", "c3", 3, 60),
        )
    )


def one_sided(seed: int) -> LayerGraph:
    """Matrices of one sign, whose weights NetX and Dense hold in other ways than mixed ones."""
    w = Weights(seed)
    return LayerGraph(
        (
            Input(name="input", shape=(5,)),
            Linear(name="fc1", inputs=("input",), weight=w(12, 5, limit=20), bias=w(12, limit=2000)),
            w.neurons("a1", "fc1", 12, 3000),
            Linear(name="fc2", inputs=("a1",), weight=np.abs(w(9, 12)), bias=w(9)),
            w.neurons("a2", "fc2", 9, 300),
            Linear(name="fc3", inputs=("a2",), weight=-np.abs(w(7, 9, limit=126)) - 1, bias=w(7) + 320),
            w.neurons("a3", "fc3", 7, 60),
            Linear(name="readout", inputs=("a3",), weight=np.sign(w(4, 7)) * 4, bias=w(4)),
        )
    )


def in_units(seed: int) -> LayerGraph:
    """First neurons that hear far more than fits their registers in 1/64, with a threshold that allows for units."""
    graph = cnn(seed)
    values = np.full(6, 640 * 128, np.float32)
    first = affine(graph, "c1")
    first = replace(first, weight=first.weight * 6)
    return graph.rewrite({"c1": [first], "a1": [replace(neurons(graph, "a1"), level=values / 2, threshold=values)]})


def large_readout(seed: int) -> LayerGraph:
    """A readout above half the largest threshold, where its neurons fire."""
    w = Weights(seed)
    weight = np.ones((600, 2), np.float32)
    weight[:20] = -1
    return LayerGraph(
        (
            Input(name="input", shape=(2,)),
            Linear(name="fc1", inputs=("input",), weight=weight, bias=np.ones(600, np.float32)),
            w.neurons("a1", "fc1", 600, 4),
            Linear(
                name="readout",
                inputs=("a1",),
                weight=np.full((3, 600), 127, np.float32) - np.arange(3)[:, None],
                bias=w(3),
            ),
        )
    )


NETWORKS = {
    "mlp": mlp,
    "cnn": cnn,
    "strided": strided,
    "one_sided": one_sided,
    "in_units": in_units,
    "large_readout": large_readout,
}


@pytest.mark.parametrize(
    ("network", "steps"),
    [
        ("cnn", 1),
        *((name, 5) for name in NETWORKS),
        *(pytest.param(n, 1, marks=pytest.mark.long) for n in NETWORKS if n != "cnn"),
    ],
)
def test_the_file_runs_exactly(network, steps, tmp_path):
    graph = NETWORKS[network](seed=2)
    x = images(3, graph.input.shape, seed=2)
    spikes, readout = spikes_of(to_nir(graph), x, steps)
    netx = NetX(to_nir(graph))
    netx.write(tmp_path / "net")
    record = netx.run(tmp_path / "net", x, steps)
    for name in graph.spiking:
        assert 0 < spikes[name].mean() < 1
        np.testing.assert_array_equal(record.spikes(name), spikes[name])
    np.testing.assert_array_equal(record.readout, readout)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_trained_digits_run_exactly_and_stock_neurons_do_not(tmp_path):
    from lava.proc.lif.models import PyLifResetModelBitAcc

    network, steps = quantized(8, "per_layer"), 4
    tensors, labels = test_images()
    x, labels = network.pixels(tensors[:20]).numpy(), labels[:20]
    spikes, readout = spikes_of(network.to_nir(), x, steps)
    netx = NetX(network.to_nir())
    netx.write(tmp_path / "digits.net")
    record = netx.run(tmp_path / "digits.net", x, steps)
    for name in network.graph.spiking:
        np.testing.assert_array_equal(record.spikes(name), spikes[name])
    np.testing.assert_array_equal(record.readout, readout)
    right = readout.mean(axis=0).argmax(axis=-1) == labels
    assert right.mean() >= 0.95

    stock = netx.run(tmp_path / "digits.net", x, steps, PyLifResetModelBitAcc)
    for name in network.graph.spiking:
        assert (stock.spikes(name) != spikes[name]).mean() > 0.1
    assert (stock.outputs()[-1].argmax(axis=-1) == labels).mean() < right.mean()


def test_a_potential_that_leaves_its_register_is_an_error(tmp_path):
    graph = mlp(seed=1)
    # What comes in is far above the threshold, so that it piles up.
    values = np.full(12, 2, np.float32)
    graph = graph.rewrite({"a1": [replace(neurons(graph, "a1"), level=values / 2, threshold=values)]})
    netx = NetX(to_nir(graph))
    netx.write(tmp_path / "net")
    x = np.full((1, 6), 255, np.float32)
    heard = np.abs(netx.currents(x)).max()
    steps = int(2**17 // heard) + 1
    with pytest.raises(BackendError, match="24 bits: run fewer time steps"):
        netx.run(tmp_path / "net", x, steps)
    assert not multiprocessing.active_children()


def test_the_file_holds_what_netx_reads(tmp_path):
    graph = cnn(seed=2)
    NetX(to_nir(graph)).write(tmp_path / "net")
    with h5py.File(tmp_path / "net") as file:
        layers = [file["layer"][str(i)] for i in range(len(file["layer"]))]
        assert [layer["type"][0].decode() for layer in layers] == ["input", "conv", "flatten", "dense", "dense"]
        conv, hidden, readout = layers[1], layers[3], layers[4]
        np.testing.assert_array_equal(conv["weight"], affine(graph, "c2").weight)
        np.testing.assert_array_equal(conv["bias"], affine(graph, "c2").bias)
        np.testing.assert_array_equal(conv["shape"], graph.shapes["a2"])
        assert [tuple(conv[key]) for key in ("stride", "padding", "dilation")] == [(1, 2), (2, 1), (2, 1)]
        assert conv["groups"][()] == 2
        neuron = {key: value[()] for key, value in conv["neuron"].items() if key != "type"}
        threshold = neurons(graph, "a2").threshold[0]
        assert neuron == {"vThMant": threshold, "iDecay": 4096, "vDecay": 0, "refDelay": 1}
        assert hidden["weight"].shape == (10, int(np.prod(graph.shapes["a2"])))  # the pool is part of it
        assert readout["neuron/vDecay"][()] == 4096


def test_a_residual_sum_is_refused(tmp_path):
    with pytest.raises(GraphError, match=r"'project' \(Conv2d\).*it hears a1, and NetX knows sequences only"):
        NetX(to_nir(residual(seed=0)))


def test_a_convolution_of_signals_is_refused():
    with pytest.raises(GraphError, match=r"'c2' \(Conv1d\).*NetX"):
        NetX(to_nir(signal(seed=0)))


def test_a_pool_that_cannot_be_folded_is_refused():
    graph = cnn(seed=0)
    pooled = graph.rewrite({"hidden": [], "a3": [], "flatten": [], "readout": []})
    with pytest.raises(GraphError, match=r"'pool' \(SumPool2d\).*NetX"):
        NetX(to_nir(pooled))


def test_a_threshold_for_each_channel_is_refused():
    graph = mlp(seed=0)
    threshold = neurons(graph, "a2").threshold + 2 * np.arange(9)
    graph = graph.rewrite({"a2": [replace(neurons(graph, "a2"), level=threshold / 2, threshold=threshold)]})
    with pytest.raises(GraphError, match=r"'a2'.*one threshold a layer.*scheme=\"per_layer\""):
        NetX(to_nir(graph))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fc2", {"weight": np.full((9, 12), 128, np.float32)}, "'fc2'.*weight reaches 128"),
        ("fc2", {"bias": np.full(9, 5000, np.float32)}, "'fc2'.*bias reaches 5000"),
        ("fc2", {"weight": np.zeros((9, 12), np.float32)}, "'fc2'.*weights are all 0"),
        ("a2", {"level": np.full(9, 1e5), "threshold": np.full(9, 2e5)}, "'a2'.*threshold reaches 200000"),
        ("fc1", {"weight": np.full((12, 6), 127 * 50, np.float32)}, "'a1'.*input in one step plus threshold reaches"),
    ],
)
def test_numbers_too_large_for_the_registers_are_refused(name, changes, message):
    graph = mlp(seed=0)
    changed = graph.rewrite({name: [replace(graph[name], **changes)]})
    with pytest.raises(GraphError, match=message):
        NetX(to_nir(changed))


def test_a_file_that_is_none_or_another_networks_is_refused(tmp_path):
    netx = NetX(to_nir(mlp(seed=0)))
    x = images(1, (6,), 0)
    with pytest.raises(InputError, match="not a NetX file"):
        netx.run(tmp_path / "missing", x, 2)
    NetX(to_nir(cnn(seed=0))).write(tmp_path / "cnn")
    with pytest.raises(InputError, match="write the file from this network"):
        netx.run(tmp_path / "cnn", x, 2)


def test_images_that_do_not_fit_are_refused(tmp_path):
    netx = NetX(to_nir(mlp(seed=0)))
    with pytest.raises(InputError, match=r"expected images \[B, 6\]"):
        netx.run(tmp_path / "net", np.zeros((1, 7), np.float32), 2)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    netx = NetX(to_nir(mlp(seed=0)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        netx.write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
