"""Other tools' NIR files and inputs that are refused, and what is said then: the time step above all."""

from __future__ import annotations

import itertools
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from support import layers, networks
from support.nir_graphs import chain, dyadic, graph_of, lif, like, recurrent

import bridge
from bridge import GraphError, InputError
from bridge.cli import sources
from bridge.foreign import ForeignNetwork

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def cuba(**changes: float) -> nir.CubaLIF:
    values = {"tau_syn": 4e-4, "tau_mem": 4e-4, "r": 4.0, "v_leak": 0.0, "v_threshold": 1.0} | changes
    return nir.CubaLIF(**{name: like(value, 6) for name, value in values.items()})


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


text: Any = "long"
REFUSED: dict[str, tuple[Any, Any, str]] = {
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
    "text": (lambda: chain(lif(6, tau=text)), None, "'n0': expected tau of finite numbers"),
    "flatten": (
        lambda: chain(lif(6), nir.Flatten({"input": None}, 1, -1)),
        None,
        "'n1' .Flatten.: expected dimensions without a batch.*write start_dim = 0",
    ),
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
    network = layers.theirs(bridge.load(tmp_path / "theirs.nir", dt=1e-4))
    assert repr(network) == "ForeignNetwork([6] -> [3], 2 spiking layers, dt = 0.0001)"
    assert network.nir.nodes.keys() == missing_dt().nodes.keys()


def test_spikingjellys_time_step_is_found_in_r():
    """It writes r = 1 / dt, and dt is 1e-4 unless another was asked for, which the file cannot say for sure."""
    assert ForeignNetwork(chain(nir.IF(r=like(1e4, 6), v_threshold=like(1.0, 6)), out=(6,))).dt == 1e-4
    with pytest.raises(GraphError, match="r = 1000"):
        ForeignNetwork(chain(nir.IF(r=like(1e3, 6), v_threshold=like(1.0, 6)), out=(6,)))
    assert ForeignNetwork(chain(nir.IF(r=like(1e3, 6), v_threshold=like(1.0, 6)), out=(6,)), 1e-3).dt == 1e-3


@pytest.mark.parametrize(
    ("x", "steps", "says"),
    [
        (np.zeros((2, 6)), None, "steps: expected a whole number"),
        (np.zeros((2, 6)), 0, "steps: expected a whole number"),
        (np.zeros((2, 6)), True, "steps: expected a whole number"),
        (np.zeros((2, 6)), 5.0, "steps: expected a whole number"),
        (np.zeros((5, 2, 6)), 5.0, "steps: expected a whole number"),
        (np.zeros((5, 2, 6)), np.True_, "steps: expected a whole number"),
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


def test_numpys_numbers_are_numbers():
    short: Any = np.float32(1e-4)
    five: Any = np.int64(5)
    network = ForeignNetwork(recurrent(), short)
    assert network.dt == short
    x = np.ones((2, 6))
    np.testing.assert_array_equal(network.run(x, five).readout, network.run(x, 5).readout)
    assert network.run(np.ones((5, 2, 6)), five).steps == 5
    assert ForeignNetwork(chain(nir.IF(r=like(1.0, 6), v_threshold=like(1.0, 6)), out=(6,)), five - 4).dt == 1
    odd: tuple[Any, ...] = (True, np.True_, np.complex128(1), np.inf)
    for dt in odd:
        with pytest.raises(GraphError, match="dt: expected a time step above 0"):
            ForeignNetwork(recurrent(), dt)


def image(out: Any = (4, 6, 6), size: Any = (2, 8, 8), **changes: Any) -> nir.NIRGraph:
    """A convolution and its neurons; `changes` are of the convolution, made once nir has seen it."""
    conv = nir.Conv2d((8, 8), np.ones((4, 2, 3, 3)), 1, 0, 1, 1, np.zeros(4))
    for key, value in changes.items():
        setattr(conv, key, value)
    neurons = nir.IF(r=like(1.0, 4, 6, 6), v_threshold=like(1.0, 4, 6, 6))
    return graph_of([("input", "conv"), ("conv", "if"), ("if", "output")], size, out, **{"conv": conv, "if": neurons})


def inside(out: tuple[int, ...]) -> nir.NIRGraph:
    inner = chain(nir.IF(r=like(1.0, 6), v_threshold=like(1.0, 6)), out=out)
    return chain(inner, out=(6,))


def flattened(size: tuple[int, ...], start: int) -> nir.NIRGraph:
    flatten, linear = nir.Flatten({"input": None}, start, -1), nir.Linear(dyadic(3, 128))
    return chain(flatten, linear, nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)), size=size)


def batched(*size: int) -> nir.NIRGraph:
    return chain(nir.Linear(dyadic(3, 6)), nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)), size=size)


def typed(name: str, end: str, shape: Any) -> nir.NIRGraph:
    graph = image()
    setattr(graph.nodes[name], f"{end}_type", {end: shape})
    return graph


objects = np.array([None] * 72).reshape(4, 2, 3, 3)
CONTRADICTIONS: dict[str, tuple[Any, str]] = {
    "output": (lambda: image(out=(9, 9)), r"'output' .Output.: expected a shape of \(4, 6, 6\).*got \(9, 9\). Write"),
    "output's batch": (lambda: image(out=(5, 4, 6, 6)), r"'output' .Output.: expected .*got \(5, 4, 6, 6\)"),
    "inner output": (lambda: inside((9,)), r"'n0\.output' .end of an inner graph.: expected .*\(6,\).*got \(9,\)"),
    "input_shape": (lambda: image(input_shape=(34, 34)), r"'conv' .Conv2d.: expected an input_shape of \(8, 8\).*34"),
    "odd input_shape": (lambda: image(input_shape=(8.5, 8)), "'conv': input_shape: expected a shape of whole"),
    "input_type": (
        lambda: typed("if", "input", np.array([4, 9, 9])),
        r"'if' .IF.: expected an input_type of \(4, 6, 6\)",
    ),
    "output_type": (
        lambda: typed("conv", "output", (4, 7, 7)),
        r"'conv' .Conv2d.: expected an output_type of \(4, 6, 6\)",
    ),
    "type of text": (lambda: typed("if", "input", "wide"), "'if': input_type: expected a shape of whole numbers"),
    "Input's halves": (lambda: image(size=(2, 8.5, 8)), "'input': shape: expected a shape of whole numbers"),
    "Input below 1": (lambda: image(size=(2, -8, 8)), r"'input' .Input.: .*none below 1, got \(2, -8, 8\)"),
    "stride": (lambda: image(stride=(1.5, 1.5)), r"'conv': stride: expected a whole number, or 2 of them, got \(1\.5"),
    "strides": (
        lambda: image(stride=(1, 1, 1)),
        r"'conv': stride: expected a whole number, or 2 of them, got \(1, 1, 1",
    ),
    "padding": (lambda: image(padding=np.array([0.5, 0])), "'conv': padding: expected a whole number"),
    "dilation": (lambda: image(dilation=np.nan), "'conv': dilation: expected a whole number"),
    "groups": (lambda: image(groups=1.5), "'conv': groups: expected a whole number, got 1.5"),
    "no groups": (lambda: image(groups=0), "'conv' .Conv2d.: expected groups of equal size of its 4 .*groups = 0"),
    "unequal groups": (lambda: image(groups=3), "'conv' .Conv2d.: expected groups of equal size.*groups = 3"),
    "stride of True": (lambda: image(stride=True), "'conv': stride: expected a whole number"),
    "complex": (
        lambda: image(weight=np.ones((4, 2, 3, 3)) * 1j),
        "'conv': weight: expected real numbers, got complex128",
    ),
    "objects": (lambda: image(weight=objects), "'conv': weight: expected real numbers, got object"),
    "text": (lambda: image(bias=np.array(["a"] * 4)), "'conv': bias: expected real numbers, got <U1"),
    "rank": (lambda: image(weight=np.ones((4, 2, 3))), r"'conv': weight: expected an array of 4 dim.*\(4, 2, 3\)"),
    "rank of a bias": (lambda: image(bias=np.zeros((4, 1))), r"'conv': bias: expected an array of 1 dim.*\(4, 1\)"),
    "NaN": (lambda: image(bias=like(np.nan, 4)), "'conv'.*finite weights and biases"),
    "too large": (lambda: image(weight=like(1e300, 4, 2, 3, 3)), "'conv'.*finite weights and biases"),
    "pool": (
        lambda: chain(nir.AvgPool2d(np.array([2, 2]), np.array([1.5, 2]), np.array([0, 0])), lif(), size=(2, 4, 4)),
        "'n0': stride: expected a whole number",
    ),
    "Conv1d": (
        lambda: chain(nir.Conv1d(6, np.ones((3, 1, 3)), 1, 0, 1, 1, np.zeros(3)), lif(), size=(1, 7)),
        r"'n0' .Conv1d.: expected an input_shape of \(7,\).*got \(6,\)",
    ),
    "a batch": (lambda: batched(1, 6), r"'input' .Input.: expected a shape without batch.*\(1, 6\); .* takes \(6,\)"),
    "batch and time": (lambda: batched(5, 1, 6), r"'input' .Input.: .*got \(5, 1, 6\); .* takes \(6,\): write that"),
    "batch of neurons": (
        lambda: chain(nir.IF(r=like(1.0, 6), v_threshold=like(1.0, 6)), size=(1, 6), out=(6,)),
        r"'input' .Input.: .*got \(1, 6\)",
    ),
    "Flatten's batch": (lambda: flattened((2, 8, 8), 1), "'n0' .Flatten.: .*got start_dim = 1; .*write start_dim = 0"),
    "both batches": (
        lambda: flattened((5, 2, 8, 8), 1),
        r"'input' .Input.: .* takes \(2, 8, 8\): write that, and start_dim = 0 in node 'n0' .Flatten.",
    ),
    "half a Flatten": (
        lambda: chain(nir.Flatten({"input": None}, 0.5, -1), lif()),
        "'n0': start_dim: expected a whole",
    ),
}


@pytest.mark.parametrize("case", list(CONTRADICTIONS))
def test_what_contradicts_itself_is_refused_at_its_node(case):
    make, says = CONTRADICTIONS[case]
    with pytest.raises(GraphError, match=says):
        ForeignNetwork(make())


def test_the_remedies_work():
    """What the messages say to write is accepted."""
    assert ForeignNetwork(image()).shapes == {"if": (4, 6, 6)}
    assert ForeignNetwork(image(out=(1, 1, 4, 6, 6))).shapes == {"if": (4, 6, 6)}  # as Rockpool writes it
    assert ForeignNetwork(image(input_shape=None, stride=np.array([1.0, 1.0]))).shapes == {"if": (4, 6, 6)}
    assert ForeignNetwork(typed("if", "input", None)).shapes == {"if": (4, 6, 6)}
    assert ForeignNetwork(inside((6,))).shapes == {"n0.n0": (6,)}
    assert ForeignNetwork(batched(6)).shapes == {"n1": (3,)}
    assert ForeignNetwork(flattened((2, 8, 8), 0)).shapes == {"n2": (3,)}


def test_one_of_our_own_files_that_contradicts_itself(tmp_path):
    model, shape = networks.cnn()
    graph = bridge.convert(model, torch.zeros(1, *shape)).to_nir()
    graph.nodes["output"].output_type = {"output": np.array([9])}
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(GraphError, match=r"net\.nir: node 'output' .Output.: expected a shape of \(4,\).*got \(9,\)"):
        bridge.load(tmp_path / "net.nir")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, (1, 0), "same"])
def test_types_that_nir_infers_wrongly_are_no_contradiction(groups, padding, tmp_path):
    """It takes kernels for square and groups for 1, writes so into the Flatten and the Output, and knows no other."""
    neurons = nir.IF(r=like(1.0, 2, 9, 7), v_threshold=like(0.5, 2, 9, 7))
    conv = nir.Conv2d(None, np.ones((4, 2 // groups, 3, 1)), 1, padding, 1, groups, np.zeros(4))
    pool, flatten = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), nir.Flatten(None, 0, -1)
    nodes = {"in": nir.Input({"input": np.array([2, 9, 7])}), "if": neurons, "conv": conv, "pool": pool}
    nodes |= {"flat": flatten, "out": nir.Output({"output": None})}
    names = [*nodes]
    graph = nir.NIRGraph(nodes, [*itertools.pairwise(names)])
    nir.write(tmp_path / "net.nir", graph)
    readout = layers.theirs(bridge.load(tmp_path / "net.nir")).run(np.ones((1, 2, 9, 7)), 1).readout
    wrong = int(nir.read(tmp_path / "net.nir", type_check=False).nodes["out"].output_type["output"][0])
    assert (readout.shape[-1] == wrong) == (padding == "same")
    graph.nodes["out"].output_type = {"output": np.array([wrong + readout.shape[-1]])}
    with pytest.raises(GraphError, match=r"'out' .Output.: expected a shape of"):
        ForeignNetwork(graph)


def test_nirs_own_types_of_a_first_convolution(tmp_path):
    conv = nir.Conv2d((9, 7), np.ones((4, 1, 3, 2)), 1, 0, 1, 2, np.zeros(4))
    neurons = nir.IF(r=like(1.0, 4, 7, 6), v_threshold=like(1.0, 4, 7, 6))
    nir.write(tmp_path / "net.nir", chain(conv, neurons, size=(2, 9, 7), out=(4, 7, 6)))
    assert conv.input_type["input"].tolist() == [1, 9, 7]
    assert conv.output_type["output"].tolist() == [4, 7, 5]
    assert layers.theirs(bridge.load(tmp_path / "net.nir")).shapes == {"n1": (4, 7, 6)}


def test_types_in_a_graph_inside_are_not_left_to_nir(tmp_path):
    """It would infer them while it reads the file, wrongly, and then find a contradiction."""
    conv = nir.Conv2d((9, 7), np.ones((4, 2, 3, 2)), 1, 0, 1, 1, np.zeros(4))
    neurons = nir.IF(r=like(1.0, 4, 7, 6), v_threshold=like(1.0, 4, 7, 6))
    inner = chain(conv, neurons, size=(2, 9, 7), out=(4, 7, 6))
    nir.write(tmp_path / "net.nir", chain(inner, size=(2, 9, 7), out=(4, 7, 6)))
    with pytest.raises(ValueError, match="type mismatch"):
        nir.read(tmp_path / "net.nir", type_check=False)
    assert layers.theirs(bridge.load(tmp_path / "net.nir")).shapes == {"n0.n1": (4, 7, 6)}
    inner.edges.append(("n1", "nowhere"))
    nir.write(tmp_path / "net.nir", chain(inner, size=(2, 9, 7), out=(4, 7, 6)))
    with pytest.raises(GraphError, match=r"edge 'n0\.n1' → 'n0\.nowhere': there is no node 'n0\.nowhere'"):
        bridge.load(tmp_path / "net.nir")


def test_a_file_that_nir_cannot_read_names_the_node(tmp_path):
    path = tmp_path / "theirs.nir"
    nir.write(path, inside((6,)))
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n0/nodes/n0/v_threshold"]
        file["node/nodes/n0/nodes/n0/v_threshold"] = np.ones(2)
    with pytest.raises(
        GraphError,
        match=r"'n0\.n0' .IF.: .*must have the same shape; it holds r \(6,\), v_reset \(6,\), v_threshold \(2,\)",
    ):
        bridge.load(path)
    with h5py.File(path, "r+") as file:
        del file["node/nodes/n0/nodes/n0/r"]
    with pytest.raises(GraphError, match=r"'n0\.n0' .IF.: .*missing .*'r'"):
        bridge.load(path)


def test_the_command_line_takes_our_networks_only(tmp_path):
    path = tmp_path / "theirs.nir"
    nir.write(path, chain(nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)), size=(3,)))
    with pytest.raises(InputError, match=r"theirs\.nir: another tool's network, .*bridge\.load"):
        sources.network(str(path))
