"""Any NIR graph, run here as by an independent loop over NIR's equations."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
from support import layers, networks
from support.nir_graphs import chain, dyadic, graph_of, lif, like, naive, recurrent

import bridge
from bridge import GraphError
from bridge.foreign import ForeignNetwork
from bridge.records import SpikeRecord, differing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = 10


def neurons_of_every_kind() -> dict[str, nir.NIRGraph]:
    into = nir.Affine(dyadic(5, 6), dyadic(5, seed=1))
    dt = 2.0**-13  # a power of two, and so is every dt / tau: all sums are exact
    cuba = {"tau_syn": like(2 * dt, 5), "tau_mem": like(4 * dt, 5), "r": like(2.0, 5), "v_leak": like(0.25, 5)}
    spiking = {"v_threshold": like(0.5, 5), "v_reset": np.array([0, 0.125, -0.25, 0, 0.25])}
    out = nir.Linear(dyadic(3, 5, seed=2))
    end = nir.IF(r=like(1 / dt, 3), v_threshold=like(1.0, 3))
    delay = nir.Delay(np.array([0, 1, 2, 3, 1]) * dt)
    leaky = nir.LI(tau=like(4 * dt, 5), r=like(4.0, 5), v_leak=like(0.5, 5))
    return {
        "IF": chain(into, nir.IF(r=like(2 / dt, 5), **spiking), out, end),
        "LIF": chain(into, nir.LIF(tau=like(2 * dt, 5), r=like(1.0, 5), v_leak=like(0.125, 5), **spiking), out, end),
        "CubaLIF": chain(into, nir.CubaLIF(**cuba, **spiking, w_in=like(2.0, 5)), out, end),
        "CubaLI": chain(into, nir.CubaLI(**cuba, w_in=like(0.5, 5)), out, end),
        "LI": chain(into, leaky, out, end),
        "I": chain(into, nir.I(r=like(1 / dt, 5)), nir.Threshold(like(1.0, 5)), nir.Scale(dyadic(5)), out, end),
        "Delay": chain(into, delay, out, end, nir.Delay(np.array([2, 0, 1]) * dt)),
    }


@pytest.mark.parametrize("kind", list(neurons_of_every_kind()))
def test_every_kind_of_neuron_is_the_naive_loops(kind, tmp_path):
    graph = neurons_of_every_kind()[kind]
    nir.write(tmp_path / "net.nir", graph)
    x = np.stack([dyadic(4, 6, seed=seed) for seed in range(STEPS)])
    network = bridge.load(tmp_path / "net.nir", dt=2.0**-13)
    assert isinstance(network, ForeignNetwork)
    record, expected = network.run(x), naive(graph, x, 2.0**-13)
    assert set(record.layers) == {n for n in graph.nodes if isinstance(graph.nodes[n], nir.Threshold)} | {
        n for n in graph.nodes if hasattr(graph.nodes[n], "v_threshold")
    }
    for layer in record.layers:
        np.testing.assert_array_equal(record.spikes(layer), expected[layer])
    assert 0.02 < np.mean([record.spikes(layer).mean() for layer in record.layers]) < 0.98
    np.testing.assert_array_equal(record.readout, expected["output"].astype(np.float32))


def test_every_layer_between_them_too():
    """A convolution and pools of other shapes than the usual, and an input held constant."""
    conv = nir.Conv2d(None, dyadic(4, 2, 3, 2), (1, 2), (1, 0), (1, 1), 1, dyadic(4, seed=1))
    graph = chain(
        *(conv, nir.IF(r=like(1.0, 4, 8, 4), v_threshold=like(1.0, 4, 8, 4))),
        *(nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), nir.Scale(dyadic(4, 4, 2, seed=5))),
        *(nir.AvgPool2d(np.array([2, 1]), np.array([1, 1]), np.array([0, 0])), nir.Flatten({"input": None}, 0, -1)),
        *(nir.Linear(dyadic(3, 24)), nir.IF(r=like(1.0, 3), v_threshold=like(2.0, 3))),
        size=(2, 8, 8),
    )
    x = dyadic(3, 2, 8, 8)
    network = ForeignNetwork(graph)
    assert network.dt == 1
    assert network.shapes == {"n1": (4, 8, 4), "n7": (3,)}
    record, expected = network.run(x, 6), naive(graph, np.stack([x] * 6), 1.0)
    for layer in ("n1", "n7"):
        np.testing.assert_array_equal(record.spikes(layer), expected[layer])
        assert 0.1 < record.spikes(layer).mean() < 0.9


def test_what_a_loop_brings_back_arrives_one_step_later_and_its_bias_at_once():
    graph = recurrent()
    x = np.stack([dyadic(4, 6, seed=seed) for seed in range(STEPS)])
    got = ForeignNetwork(graph).run(x)
    expected = naive(graph, x, 1e-4, {("rec", "lif"): graph.nodes["rec"].bias})
    np.testing.assert_array_equal(got.spikes("lif"), expected["lif"])
    unlooped = ForeignNetwork(chain(graph.nodes["fc"], lif())).run(x)
    assert (got.spikes("lif") != unlooped.spikes("n1")).any()


def test_a_graph_in_the_graph_is_its_nodes():
    flat = recurrent()
    inner = nir.NIRGraph(
        {
            "in": nir.Input(input_type={"input": np.array([3])}),
            **{name: flat.nodes[name] for name in ("lif", "rec")},
            "out": nir.Output(output_type={"output": np.array([3])}),
        },
        [("in", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "out")],
        type_check=False,
    )
    nested = graph_of([("input", "fc"), ("fc", "cell"), ("cell", "output")], fc=flat.nodes["fc"], cell=inner)
    x = np.stack([dyadic(4, 6, seed=seed) for seed in range(STEPS)])
    got = ForeignNetwork(nested).run(x)
    np.testing.assert_array_equal(got.spikes("cell.lif"), ForeignNetwork(flat).run(x).spikes("lif"))


def test_a_delay_says_which_of_two_neurons_hears_the_other_later():
    edges = [("input", "a"), ("a", "b"), ("b", "late"), ("late", "a"), ("b", "output")]
    nodes = {"a": lif(), "b": lif(v_threshold=0.5), "late": nir.Delay(like(1e-4, 3))}
    graph = graph_of(edges, (3,), **nodes)
    x = np.abs(np.stack([dyadic(4, 3, seed=seed) for seed in range(STEPS)]))
    direct = graph_of([*edges[:2], ("b", "a"), edges[-1]], (3,), a=nodes["a"], b=nodes["b"])
    expected = naive(direct, x, 1e-4, {("b", "a"): np.zeros(3)})
    got = ForeignNetwork(graph).run(x)
    for layer in "ab":
        np.testing.assert_array_equal(got.spikes(layer), expected[layer])
    assert got.spikes("b").any()
    with pytest.raises(GraphError, match=r"\['a', 'b'\].*put a Delay"):
        ForeignNetwork(direct)


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_the_exact_neuron_is_what_its_primitives_say(name):
    """The package's own files, run without knowing what they are: the same spikes."""
    model, shape = networks.ALL[name]()
    network = bridge.convert(model, torch.zeros(1, *shape))
    x = networks.dyadic_images(5, shape)
    primitives = ForeignNetwork(network.to_nir())
    assert primitives.dt == 1
    ours, theirs = network.run(x, STEPS), primitives.run(x, STEPS)
    assert set(theirs.layers) == set(ours.layers)
    for layer in ours.layers:
        np.testing.assert_array_equal(ours.spikes(layer), theirs.spikes(layer))
    np.testing.assert_array_equal(ours.readout, theirs.readout)


def test_records_are_compared_like_any(tmp_path):
    graph = recurrent()
    x = np.stack([dyadic(70, 6, seed=seed) for seed in range(STEPS)])  # more than are simulated together
    one = ForeignNetwork(graph).run(x)
    one.save(tmp_path / "one.npz")
    assert not differing(one, SpikeRecord.load(tmp_path / "one.npz"))["lif"].any()
    graph.nodes["lif"].v_threshold[1] += 0.5
    other = ForeignNetwork(graph).run(x)
    expected = (one.spikes("lif") != other.spikes("lif")).sum(axis=(1, 2))
    assert expected.any()
    np.testing.assert_array_equal(differing(one, other)["lif"], expected)


def test_neurons_that_are_not_quite_this_packages(tmp_path):
    """The loop with another r is no network of this package; it is what its equations say, if they are told dt."""
    model, shape = networks.mlp()
    graph = bridge.convert(model, torch.zeros(1, *shape)).to_nir()
    loops = [name for name, node in graph.nodes.items() if isinstance(node, nir.Threshold)]
    for name in loops:
        graph.nodes[f"{name}_membrane"].r *= 2
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(GraphError, match=r"net\.nir: .*an r other than 1"):
        bridge.load(tmp_path / "net.nir")
    network = layers.theirs(bridge.load(tmp_path / "net.nir", dt=1))
    x = np.stack([dyadic(4, *shape, seed=seed) for seed in range(STEPS)])
    expected = naive(graph, x, 1.0, {(f"{name}_reset", f"{name}_membrane"): np.zeros(1) for name in loops})
    got = network.run(x)
    assert set(got.layers) == set(loops)
    for name in loops:
        np.testing.assert_array_equal(got.spikes(name), expected[name])


def test_a_constant_input_is_the_same_at_every_step():
    x = dyadic(4, 6)
    network = ForeignNetwork(recurrent())
    constant, repeated = network.run(x, 7), network.run(torch.from_numpy(np.stack([x] * 7)))
    assert constant.steps == 7
    np.testing.assert_array_equal(constant.spikes("lif"), repeated.spikes("lif"))
