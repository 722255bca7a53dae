"""The report on Loihi of staged, grouped and graded networks, by hand and beside counting one by one."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from support import networks
from support.exact_networks import drawn
from torch import nn

import bridge
from bridge import QCFS, ConversionError, loihi
from bridge.loihi.pipeline import pipeline
from bridge.simulate.connections import connections


def chain(levels: int, schedule: str):
    """Four inputs, five neurons, three neurons, two outputs, in integers; and sixteen images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), QCFS(levels, 0.7), nn.Linear(5, 3), QCFS(levels, 0.7), nn.Linear(3, 2))
    x = torch.rand(16, 4)
    network = bridge.convert(model, x, schedule=schedule).quantize(8, x)
    return network, network.pixels(x)


def residual(schedule: str):
    """Every window has four steps; the deepest path has seven layers of neurons, and so eight connections."""
    model, shape = networks.ALL["residual"]()
    x = networks.dyadic_images(2, shape)
    return bridge.convert(model, x, schedule=schedule, steps=4 if schedule == "staged" else None).graph


def test_when_images_enter_and_leave_a_chain():
    graphs = {schedule: chain(4, schedule)[0].graph for schedule in ("plain", "staged", "grouped")}
    found = {name: pipeline(graph, 6 if name == "plain" else 0) for name, graph in graphs.items()}
    # two connections on the way; windows at 0…3 and 3…6
    assert [(one.interval, one.latency, one.images_in_flight) for one in found.values()] == [
        (6, 8, 2),
        (4, 9, 3),
        (1, 3, 3),
    ]
    assert not any(one.delays or one.delayed_steps for one in found.values())
    unknown = pipeline(graphs["plain"], 0)
    assert (unknown.interval, unknown.latency, unknown.images_in_flight) == (0, 0, 0)


def test_what_waits_in_joins():
    plain, staged = pipeline(residual("plain"), 4), residual("staged")
    # A skip is one layer of neurons shorter than its block: one step; in a staged network, its window as well.
    assert plain.delays == dict.fromkeys(plain.delays, 1)
    found = pipeline(staged, 0)
    assert set(found.delays) >= set(plain.delays)
    assert {found.delays[name] for name in plain.delays} == {1 + 3}
    assert found.delayed_steps == sum(np.prod(staged.shapes[name]) * steps for name, steps in found.delays.items())
    assert found.interval == 4


@pytest.mark.parametrize("levels", [1, 4])
def test_groups_and_graded_spikes_by_hand(levels):
    network, x = chain(levels, "grouped")
    record = network.run(x)
    binary, graded = loihi.report(network, record), loihi.report(network, record, spikes="graded")
    first, second = network.layers
    fired = [record.spikes(name)[0] for name in (first, second)]  # [B, L, neurons]
    assert binary.schedule == "grouped"
    assert [layer.neurons for layer in binary.layers] == [5 * levels, 3 * levels, 2]
    assert [layer.neurons for layer in graded.layers] == [5, 3, 2]
    w2, w3 = ((network.graph[name].weight != 0) for name in ("layer_2", "layer_4"))
    # every member of a group has synapses from every member of the groups before
    assert [layer.synapses for layer in binary.layers] == [0, w2.sum() * levels**2, w3.sum() * levels]
    assert [layer.synapses for layer in graded.layers] == [0, w2.sum(), w3.sum()]
    assert [layer.spikes for layer in binary.layers[:2]] == [s.sum() / 16 for s in fired]
    sent = [s.any(axis=1) for s in fired]  # one spike with a number
    assert [layer.spikes for layer in graded.layers[:2]] == [s.sum() / 16 for s in sent]
    reached = [(s @ w.T.astype(int)).sum() / 16 for s, w in zip(sent, (w2, w3), strict=True)]
    assert [layer.synaptic_operations for layer in graded.layers] == [0, *reached]
    members = [(s.sum(axis=1) @ w.T.astype(int)).sum() / 16 for s, w in zip(fired, (w2, w3), strict=True)]
    assert [layer.synaptic_operations for layer in binary.layers] == [0, members[0] * levels, members[1]]
    assert graded.steps == binary.steps == 1
    again = loihi.report(network, network.run(x, 3))  # the answer three times
    assert again.spikes == binary.spikes
    assert again.energy == binary.energy


def test_staged_neurons_have_two_potentials_and_fire_as_often_as_groups():
    (staged, x), (grouped, _) = chain(4, "staged"), chain(4, "grouped")
    report, groups = loihi.report(staged, staged.run(x)), loihi.report(grouped, grouped.run(x))
    graded = loihi.report(grouped, grouped.run(x), spikes="graded")
    assert report.schedule == "staged"
    assert report.spikes == groups.spikes
    assert report.steps == 4
    assert [layer.state_bytes for layer in report.layers] == [5 * 11, 3 * 11, 2 * 11]  # 3 × 24 + 16 bits
    assert [layer.state_bytes for layer in graded.layers] == [5 * 5, 3 * 5, 2 * 5]  # 24 + 16
    assert report.input_macs == report.input_macs_every_step == (staged.graph["layer_0"].weight != 0).sum()
    assert report.energy is not None
    updates, operations = 4 * (5 + 3 + 2), report.synaptic_operations or 0
    assert report.energy.low == pytest.approx(23.6e-12 * operations + 52e-12 * updates)


@pytest.mark.parametrize("spikes", ["binary", "graded"])
def test_pools_are_units_of_their_own(spikes):
    network, x = drawn("maps", "grouped", 8)
    record = network.run(x[:3])
    report = loihi.report(network, record, spikes=spikes)
    pools = [layer for layer in report.layers if layer.fires and layer.name not in network.layers]
    assert len(pools) == 2
    assert all(layer.spikes and layer.synapses for layer in pools)
    assert any("embedded processors" in note for note in report.notes) == (spikes == "graded")
    if spikes == "binary":
        found = connections(network.graph, zeros=False)
        assert [layer.synapses for layer in pools] == [found[layer.name].total for layer in pools]


def test_graded_spikes_need_groups():
    with pytest.raises(ConversionError, match="no such groups: convert with schedule='grouped'"):
        loihi.report(chain(4, "staged")[0], spikes="graded")


def test_side_by_side(tmp_path):
    plain, x = chain(4, "plain")
    staged, _ = chain(4, "staged")
    reports = {f"plain, T = {steps}": loihi.report(plain, plain.run(x, steps)) for steps in (2, 4)}
    reports["staged"] = loihi.report(staged, staged.run(x))
    reports["unknown"] = loihi.report(plain)
    file = StringIO()
    Console(width=200, file=file).print(loihi.side_by_side(reports))
    rows = {line.split("  ")[0].strip(): line.split() for line in file.getvalue().splitlines() if line.strip()}
    assert "plain, T = 2" in rows
    assert rows["staged"][1:5] == ["4", "9", "3", "10"]
    assert rows["unknown"][1:3] == ["—", "—"]
    reports["staged"].save(tmp_path / "report.json")
    assert '"images_in_flight": 3' in (tmp_path / "report.json").read_text()
