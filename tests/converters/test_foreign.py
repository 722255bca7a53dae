"""Other tools' NIR files: run here as by an independent loop, and as by the frameworks that wrote them."""

from __future__ import annotations

import itertools

import nir
import numpy as np
import pytest
import torch
from support import networks, oracle
from support.backends import require
from torch import nn

import bridge
from bridge import GraphError, InputError
from bridge.cli import sources
from bridge.foreign import ForeignNetwork
from bridge.records import SpikeRecord, differing

STEPS = 10
OFF_THE_GRID = 1 + 2.0**-20  # a threshold that no sum of the dyadic weights meets, so that > and ≥ are the same test

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def naive(graph: nir.NIRGraph, x: np.ndarray, dt: float, late: dict | None = None) -> dict[str, np.ndarray]:
    """Every node's output ``[T, B, ...]``: NIR's equations by forward Euler, in float64, whichever node can go next.

    `late` are edges that deliver one step later, and what they deliver at first.
    """
    late = dict(late or {})
    v, i, past = {}, {}, {}
    history: dict[str, list[np.ndarray]] = {name: [] for name in graph.nodes}
    for now in x.astype(np.float64):
        value: dict[str, np.ndarray] = {}
        while len(value) < len(graph.nodes):
            ready = len(value)
            for name, node in graph.nodes.items():
                edges = [edge for edge in graph.edges if edge[1] == name]
                if name in value or any(edge not in late and edge[0] not in value for edge in edges):
                    continue
                heard = [late[edge] if edge in late else value[edge[0]] for edge in edges]
                value[name] = one_node(name, node, now if isinstance(node, nir.Input) else sum(heard), dt, v, i, past)
            assert len(value) > ready, "stuck in a loop"
        late = {edge: value[edge[0]] for edge in late}
        for name in graph.nodes:
            history[name].append(value[name])
    return {name: np.stack(values) for name, values in history.items()}


def one_node(name, node, total, dt, v, i, past):
    """The output of one node in one step; v, i and past are all nodes' states."""
    if isinstance(node, nir.CubaLI | nir.CubaLIF):
        i[name] = i.get(name, 0.0) + dt / node.tau_syn * (node.w_in * total - i.get(name, 0.0))
        total, tau = i[name], node.tau_mem
    elif isinstance(node, nir.LI | nir.LIF):
        tau = node.tau
    old = v.get(name, 0.0)
    if isinstance(node, nir.CubaLI | nir.CubaLIF | nir.LI | nir.LIF):
        v[name] = old + dt / tau * (node.v_leak - old + node.r * total)
    elif isinstance(node, nir.I | nir.IF):
        v[name] = old + dt * node.r * total
    elif isinstance(node, nir.Threshold):
        return (total > node.threshold).astype(float)
    elif isinstance(node, nir.Scale):
        return node.scale * total
    elif isinstance(node, nir.Delay):
        past.setdefault(name, []).append(total)
        out = np.zeros_like(total)
        for at, seconds in np.ndenumerate(node.delay):
            back = round(float(seconds) / dt)
            if back < len(past[name]):
                out[(slice(None), *at)] = past[name][-1 - back][(slice(None), *at)]
        return out
    elif isinstance(node, nir.Flatten):
        return total.reshape(len(total), -1)
    elif isinstance(node, nir.Affine | nir.Linear):
        return total @ np.asarray(node.weight, float).T + getattr(node, "bias", 0.0)
    elif isinstance(node, nir.Conv2d):
        out, per_group, *kernel = node.weight.shape
        made = nn.Conv2d(per_group, out, tuple(kernel), node.stride, node.padding, node.dilation)
        made.weight.data, made.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return oracle.transform(made, total)
    elif isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        kernel, stride, padding = (oracle.pair(o) for o in (node.kernel_size, node.stride, node.padding))
        pooled = oracle.pool(nn.AvgPool2d(kernel, stride, padding), total)
        return pooled * (kernel[0] * kernel[1] if isinstance(node, nir.SumPool2d) else 1)
    else:
        return total
    if not hasattr(node, "v_threshold"):
        return v[name]
    fired = v[name] > node.v_threshold
    v[name] = np.where(fired, node.v_reset, v[name])
    return fired.astype(float)


def dyadic(*shape: int, seed: int = 0) -> np.ndarray:
    return networks.dyadic(shape, 1 / 8, 6, torch.Generator().manual_seed(seed)).numpy()


def like(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value)


def graph_of(edges: list[tuple[str, str]], size: tuple[int, ...] = (6,), **nodes: nir.NIRNode) -> nir.NIRGraph:
    last = {"output": nir.Output(output_type={"output": np.array([3])})}
    return nir.NIRGraph({"input": nir.Input(input_type={"input": np.array(size)}), **nodes, **last}, edges, {}, False)


def chain(*nodes: nir.NIRNode, size: tuple[int, ...] = (6,)) -> nir.NIRGraph:
    names = ["input", *(f"n{number}" for number in range(len(nodes))), "output"]
    return graph_of([*itertools.pairwise(names)], size, **dict(zip(names[1:], nodes, strict=False)))


def lif(size: int = 3, **changes: object) -> nir.LIF:
    values = {"tau": 4e-4, "r": 4.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: like(value, size) for name, value in values.items()})


def cuba(**changes: float) -> nir.CubaLIF:
    values = {"tau_syn": 4e-4, "tau_mem": 4e-4, "r": 4.0, "v_leak": 0.0, "v_threshold": 1.0} | changes
    return nir.CubaLIF(**{name: like(value, 6) for name, value in values.items()})


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


def recurrent() -> nir.NIRGraph:
    return graph_of(
        [("input", "fc"), ("fc", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")],
        fc=nir.Linear(dyadic(3, 6)),
        lif=lif(),
        rec=nir.Affine(dyadic(3, 3, seed=3), dyadic(3, seed=4)),
    )


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


# What frameworks write. Weights, decays and inputs are multiples of powers of two, so that float32 and float64 agree.


def dyadic_net(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim():
                parameter.copy_(networks.dyadic(tuple(parameter.shape), 1 / 8, 6, generator))
    return net


def spikes_of(net: nn.Module, x: torch.Tensor, modules: list[nn.Module]) -> list[np.ndarray]:
    """Spikes ``[T, B, ...]`` of `modules` while `net` runs on `x`, a step at a time."""
    kept: list[list[np.ndarray]] = [[] for _ in modules]
    for rows, module in zip(kept, modules, strict=True):
        module.register_forward_hook(
            lambda _, __, out, rows=rows: rows.append((out[0] if isinstance(out, tuple) else out).numpy() != 0)
        )
    with torch.no_grad():
        for now in x:
            net(now)
    return [np.stack(rows) for rows in kept]


def train(*shape: int) -> torch.Tensor:
    """An input that changes: spikes, of either sign so that negative potentials occur."""
    return torch.from_numpy(np.sign(dyadic(STEPS, 5, *shape)).astype(np.float32))


def test_spikingjellys_networks(tmp_path):
    require("spikingjelly")
    from spikingjelly.activation_based import layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    spiking = [
        neuron.IFNode(v_threshold=OFF_THE_GRID, v_reset=0.0),
        neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=OFF_THE_GRID, v_reset=0.0),
        neuron.LIFNode(tau=4.0, v_threshold=OFF_THE_GRID / 2, v_reset=0.0),
        neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=OFF_THE_GRID, v_reset=0.0),
    ]
    net = dyadic_net(
        nn.Sequential(
            *(layer.Conv2d(1, 4, 3, padding=1), spiking[0], layer.AvgPool2d(2), layer.Flatten()),
            *(layer.Linear(64, 12), spiking[1], layer.Linear(12, 8), spiking[2], layer.Linear(8, 4), spiking[3]),
        )
    )
    x = train(1, 8, 8)
    export_to_nir(net, x[0], tmp_path / "net.nir")
    network = bridge.load(tmp_path / "net.nir")
    assert network.dt == 1e-4
    record = network.run(x)
    for name, expected in zip(record.layers, spikes_of(net, x, spiking), strict=True):
        np.testing.assert_array_equal(record.spikes(name), expected)
        assert 0.01 < expected.mean() < 0.9


def test_snntorchs_networks(tmp_path):
    """With ``reset_delay=False``: with it, its recurrent neurons also lose the input of the step after a spike."""
    require("snntorch")
    import snntorch
    from snntorch.export_nir import export_to_nir

    reset = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    spiking = [
        snntorch.Leaky(torch.tensor([0.5, 0.75] * 6), threshold=torch.ones(12), **reset),
        snntorch.RLeaky(0.5, linear_features=10, **reset),
        snntorch.Synaptic(torch.full((8,), 0.5), torch.full((8,), 0.75), threshold=torch.ones(8), **reset),
        snntorch.RLeaky(0.75, V=torch.ones(4), all_to_all=False, threshold=0.5, **reset),
    ]
    net = dyadic_net(
        nn.Sequential(
            *(nn.Linear(6, 12), spiking[0], nn.Linear(12, 10), spiking[1], nn.Linear(10, 8), spiking[2]),
            *(nn.Linear(8, 4), spiking[3]),
        )
    )
    x = train(6)
    nir.write(tmp_path / "net.nir", export_to_nir(net, torch.zeros(6)))
    network = bridge.load(tmp_path / "net.nir")
    assert network.dt == 1e-4
    record = network.run(x)
    assert record.layers == ("1", "3.lif", "5", "7.lif")
    for name, expected in zip(record.layers, spikes_of(net, x, spiking), strict=True):
        np.testing.assert_array_equal(record.spikes(name), expected)
        assert 0.01 < expected.mean() < 0.9


@pytest.mark.parametrize(("mechanism", "alike"), [("zero", True), ("subtract", False)])
def test_a_soft_reset_does_not_survive_snntorchs_export(mechanism, alike):
    """A decay of 0.9 is not exact in float32, nor is its file's tau: what rounds differently is 1e-7 of a potential,
    and of these potentials none comes nearer to the threshold than that.
    """
    require("snntorch")
    import snntorch
    from snntorch.export_nir import export_to_nir

    spiking = snntorch.Leaky(
        torch.full((20,), 0.9), threshold=torch.ones(20), init_hidden=True, reset_mechanism=mechanism
    )
    net = nn.Sequential(nn.Linear(6, 20), spiking)
    x = torch.rand(50, 8, 6)
    network = ForeignNetwork(export_to_nir(net, torch.zeros(6)))
    (expected,) = spikes_of(net, x, [spiking])
    wrong = (network.run(x).spikes("1") != expected).mean()
    assert wrong == 0 if alike else wrong > 0.01


def test_norses_leaky_neurons(tmp_path):
    """Norse 1.1 writes tau = dt / tau_mem_inv, with its dt of 1e-3: dt too small. A time step of dt² undoes it."""
    require("norse")
    import norse.torch as norse

    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.full((8,), 250.0), v_th=torch.ones(8) / 8, v_leak=torch.zeros(8), v_reset=torch.zeros(8)
    )
    spiking = norse.LIFBoxCell(p)
    net = norse.SequentialState(nn.Linear(6, 8), spiking)
    nir.write(tmp_path / "net.nir", norse.to_nir(net, torch.zeros(6)))
    network = bridge.load(tmp_path / "net.nir", dt=1e-6)
    x = torch.rand(50, 8, 6)
    rows, state = [], None
    with torch.no_grad():
        for now in x:
            spikes, state = net(now, state)
            rows.append(spikes.numpy() != 0)
    np.testing.assert_array_equal(network.run(x).spikes("1"), np.stack(rows))
    assert 0.01 < np.mean(rows) < 0.9


def test_norses_integrate_and_fire_neurons():
    require("norse")
    import norse.torch as norse

    net = dyadic_net(norse.SequentialState(nn.Linear(6, 8), norse.IAFCell(norse.IAFParameters(v_th=torch.ones(8)))))
    network = ForeignNetwork(norse.to_nir(net, torch.zeros(6)))
    assert network.dt == 1
    x, rows, state = train(6), [], None
    with torch.no_grad():
        for now in x:
            spikes, state = net(now, state)
            rows.append(spikes.numpy() != 0)
    np.testing.assert_array_equal(network.run(x).spikes("1"), np.stack(rows))


@pytest.mark.parametrize("alike", [True, False])
def test_sinabs_networks(alike):
    """Sinabs' IAF is NIR's IF if told to spike once a step and to reset to zero; by default it does neither."""
    require("sinabs")
    import sinabs.activation
    import sinabs.layers
    import sinabs.nir

    reset = {"spike_fn": sinabs.activation.SingleSpike, "reset_fn": sinabs.activation.MembraneReset()}
    spiking = sinabs.layers.IAFSqueeze(
        batch_size=1, spike_threshold=torch.tensor(OFF_THE_GRID), min_v_mem=None, **(reset if alike else {})
    )
    net = dyadic_net(nn.Sequential(nn.Linear(6, 8), spiking))
    graph = sinabs.nir.to_nir(net, torch.zeros(1, 6))
    x = 2 * train(6)
    expected = []
    with torch.no_grad():
        for image in x.transpose(0, 1):
            spiking.reset_states()
            expected.append(net(image).numpy())
    got = ForeignNetwork(graph).run(x).spikes("1")
    assert got.any()
    assert np.array_equal(got, np.stack(expected, axis=1)) == alike


# What is refused, and what is said.


def missing_dt() -> nir.NIRGraph:
    return chain(nir.Linear(dyadic(3, 6)), lif(), nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)))


def unlike_shapes() -> nir.NIRGraph:
    graph = recurrent()
    graph.nodes["rec"] = nir.Affine(dyadic(4, 3), dyadic(4))
    return graph


def odd_parameters() -> nir.NIRGraph:
    return chain(nir.Linear(dyadic(3, 6)), lif(2))


def no_neuron_in_a_loop() -> nir.NIRGraph:
    graph = recurrent()
    graph.nodes["loop"] = nir.Scale(like(0.5, 3))
    graph.edges += [("fc", "loop"), ("loop", "twice"), ("twice", "loop"), ("twice", "lif")]
    graph.nodes["twice"] = nir.Scale(like(0.5, 3))
    return graph


def no_edge() -> nir.NIRGraph:
    graph = recurrent()
    graph.edges.remove(("input", "fc"))
    return graph


def no_node() -> nir.NIRGraph:
    graph = recurrent()
    graph.edges.append(("lif", "nowhere"))
    return graph


REFUSED = {
    "no dt": (missing_dt, None, "'n2' .IF.: r = 1 .*give the time step with dt"),
    "odd r": (lambda: chain(nir.IF(r=like(2.0, 6), v_threshold=like(1.0, 6))), None, "r = 2 .*with dt"),
    "tau in steps": (lambda: chain(lif(6, tau=20.0)), None, "'n0': a time constant or delay of 1 or more .*dt"),
    "tau too short": (lambda: chain(lif(6, tau=5e-5)), None, "'n0': a step of dt = 0.0001 is longer"),
    "dt too long": (lambda: chain(lif(6)), 1e-3, "'n0': a step of dt = 0.001 is longer"),
    "dt below 0": (lambda: chain(lif(6)), -1.0, "above 0.*got -1.0"),
    "dt of text": (lambda: chain(lif(6)), "1e-4", "above 0.*got '1e-4'"),
    "shapes": (unlike_shapes, None, r"'lif': expected every input of shape \(3,\), got .*'rec': \(4,\)"),
    "parameters": (odd_parameters, None, r"'n1': parameters of shape \(2,\) do not fit .*\(3,\)"),
    "loop": (no_neuron_in_a_loop, None, "loop without a neuron.*'?twice"),
    "no edge": (no_edge, None, "'fc' .Linear.: no edge leads into it"),
    "no node": (no_node, None, "no node 'nowhere'"),
    "half a step": (lambda: chain(lif(6), nir.Delay(like(1.5e-4, 6))), None, "'n1' .Delay.: expected delays of whole"),
    "backwards": (lambda: chain(lif(6), nir.Delay(like(-1e-4, 6))), None, "'n1' .Delay.: expected delays of whole"),
    "nan": (lambda: chain(lif(6, v_leak=np.nan)), None, "'n0': expected v_leak of finite"),
    "nan weight": (lambda: chain(nir.Linear(like(np.nan, 3, 6)), lif()), None, "'n0'.*finite weights"),
    "tau of 0": (
        lambda: chain(lif(6, tau=0.0)),
        None,
        "'n0': a step of dt = 0.0001 is longer than its time constant 0",
    ),
    "short synapse": (lambda: chain(cuba(tau_syn=5e-5)), None, "'n0': a step of dt = 0.0001 is longer"),
    "text": (lambda: chain(lif(6, tau="long")), None, "'n0': expected tau of finite numbers"),
    "flatten": (lambda: chain(lif(6), nir.Flatten({"input": None}, 1, -1)), None, "'n1' .Flatten.: dimensions 1 to"),
    "no spikes": (lambda: chain(nir.Linear(dyadic(3, 6))), None, "nothing spikes"),
    "no shape": (lambda: chain(lif(6), size=()), None, "'n0'|at least one dimension"),
    "two inputs": (
        lambda: graph_of([("input", "output")], more=nir.Input({"input": np.array([3])})),
        None,
        "one Input",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused(case, tmp_path):
    make, dt, says = REFUSED[case]
    with pytest.raises(GraphError, match=says):
        ForeignNetwork(make(), dt)


def test_load_tells_whose_file_it_is(tmp_path):
    model, shape = networks.mlp()
    bridge.convert(model, torch.zeros(1, *shape)).save(tmp_path / "ours.nir")
    assert isinstance(bridge.load(tmp_path / "ours.nir"), bridge.SpikingNetwork)
    assert isinstance(bridge.load(tmp_path / "ours.nir", dt=1), bridge.SpikingNetwork)
    with pytest.raises(InputError, match="leave dt out"):
        bridge.load(tmp_path / "ours.nir", dt=0.5)
    nir.write(tmp_path / "theirs.nir", missing_dt())
    with pytest.raises(GraphError, match=r"theirs\.nir: node 'n2' .IF.: r = 1"):
        bridge.load(tmp_path / "theirs.nir")
    network = bridge.load(tmp_path / "theirs.nir", dt=1e-4)
    assert repr(network) == "ForeignNetwork([6] -> [3], 2 spiking layers, dt = 0.0001)"
    assert network.nir.nodes.keys() == missing_dt().nodes.keys()


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
    network = bridge.load(tmp_path / "net.nir", dt=1)
    x = np.stack([dyadic(4, *shape, seed=seed) for seed in range(STEPS)])
    expected = naive(graph, x, 1.0, {(f"{name}_reset", f"{name}_membrane"): np.zeros(1) for name in loops})
    got = network.run(x)
    assert set(got.layers) == set(loops)
    for name in loops:
        np.testing.assert_array_equal(got.spikes(name), expected[name])


def test_spikingjellys_time_step_is_found_in_r():
    """It writes r = 1 / dt, and dt is 1e-4 unless another was asked for, which the file cannot say for sure."""
    assert ForeignNetwork(chain(nir.IF(r=like(1e4, 6), v_threshold=like(1.0, 6)))).dt == 1e-4
    with pytest.raises(GraphError, match="r = 1000"):
        ForeignNetwork(chain(nir.IF(r=like(1e3, 6), v_threshold=like(1.0, 6))))
    assert ForeignNetwork(chain(nir.IF(r=like(1e3, 6), v_threshold=like(1.0, 6))), 1e-3).dt == 1e-3


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 6)), None, "steps: expected a whole number"),
        (np.zeros((2, 6)), 0, "steps: expected a whole number"),
        (np.zeros((2, 6)), True, "steps: expected a whole number"),
        (np.zeros((5, 2, 6)), 4, r"T = steps, got \[5, 2, 6\] and steps = 4"),
        (np.zeros((5, 2, 7)), None, r"\[T, B, 6\]"),
        (np.zeros(6), 3, r"\[B, 6\]"),
        (np.zeros((0, 6)), 3, "at least one input"),
        (np.zeros((5, 0, 6)), None, "at least one input"),
        (np.full((2, 6), np.inf), 3, "finite"),
        (np.zeros((2, 6), complex), 3, "real numbers"),
        (torch.zeros(2, 6, dtype=torch.complex64), 3, "real numbers"),
        ([[0.0] * 6], 3, "got list"),
    ],
)
def test_inputs_that_do_not_fit(x, steps, says):
    with pytest.raises(InputError, match=says):
        ForeignNetwork(recurrent()).run(x, steps)


def test_a_constant_input_is_the_same_at_every_step():
    x = dyadic(4, 6)
    network = ForeignNetwork(recurrent())
    constant, repeated = network.run(x, 7), network.run(torch.from_numpy(np.stack([x] * 7)))
    assert constant.steps == 7
    np.testing.assert_array_equal(constant.spikes("lif"), repeated.spikes("lif"))


def test_the_command_line_takes_our_networks_only(tmp_path):
    path = tmp_path / "theirs.nir"
    nir.write(path, chain(nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)), size=(3,)))
    with pytest.raises(InputError, match=r"theirs\.nir: another tool's network, .*bridge\.load"):
        sources.network(str(path))
