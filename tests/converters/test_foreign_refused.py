"""Other tools' NIR files and inputs that are refused, and what is said then: the time step above all."""

from __future__ import annotations

from typing import Any

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
    network = layers.theirs(bridge.load(tmp_path / "theirs.nir", dt=1e-4))
    assert repr(network) == "ForeignNetwork([6] -> [3], 2 spiking layers, dt = 0.0001)"
    assert network.nir.nodes.keys() == missing_dt().nodes.keys()


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
    assert ForeignNetwork(chain(nir.IF(r=like(1.0, 6), v_threshold=like(1.0, 6))), five - 4).dt == 1
    odd: tuple[Any, ...] = (True, np.True_, np.complex128(1), np.inf)
    for dt in odd:
        with pytest.raises(GraphError, match="dt: expected a time step above 0"):
            ForeignNetwork(recurrent(), dt)


def test_the_command_line_takes_our_networks_only(tmp_path):
    path = tmp_path / "theirs.nir"
    nir.write(path, chain(nir.IF(r=like(1.0, 3), v_threshold=like(1.0, 3)), size=(3,)))
    with pytest.raises(InputError, match=r"theirs\.nir: another tool's network, .*bridge\.load"):
        sources.network(str(path))
