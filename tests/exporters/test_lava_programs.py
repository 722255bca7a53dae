"""What `Lava.export` returns, and our Processes, as parts of a Lava program of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.lava import LAVA, images, naive_run
from support.lava_networks import add, dag, named, same, spike

from exporters.lava.backend import build_network
from exporters.lava.network import LavaNetwork

pytestmark = LAVA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_readouts_own_sum_is_that_of_the_last_image(rng: np.random.Generator) -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource

    graph = named(rng, "input skip")
    native, x = build_network(graph), images(rng, graph, 3)
    process = native.process(steps=4)
    for name, currents in native.feed(x).items():
        source = CurrentSource(currents=currents, interval=4, offset=native.offsets[name])
        source.a_out.connect(process.inputs[name])
    try:
        process.run(condition=RunSteps(3 * 4 + native.delay), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        total = process.v.get()
    finally:
        process.stop()
    _, _, readout = naive_run(graph, x, 4)
    np.testing.assert_array_equal(native.readout_layout.from_lava(total), readout[:, -1].sum(axis=0))


def compiled(network: LavaNetwork, steps: int) -> dict[str, Any]:
    """The parts of the network's Process, by name, as Lava makes them when it compiles it."""
    from lava.magma.core.run_configs import Loihi2SimCfg

    process = network.process(steps)
    process.compile(Loihi2SimCfg(select_tag="floating_pt"))
    return {part.name: part for part in process.procs.members}


def test_only_the_shorter_branch_of_a_join_is_delayed(rng: np.random.Generator) -> None:
    from exporters.lava.processes import Delay

    def delays(network: LavaNetwork) -> list[tuple[int, float]]:
        parts = compiled(network, 3).values()
        return [(part.proc_params["steps"], part.proc_params["gain"]) for part in parts if isinstance(part, Delay)]

    native = build_network(named(rng, "two blocks"))
    assert native.offsets == {"a": 0, "b": 1, "c": 2, "d": 3, "end": 4}
    assert delays(native) == [(2, 1), (2, 1)]
    assert native.fed == {"a": "stem"}
    # A layer heard late by two is held back once, and one that is heard twice is doubled.
    graph = dag(
        rng,
        (2, 3, 3),
        {
            "a": ("x", spike()),
            "conv1": ("a", same(2)),
            "sum1": ("conv1 a", add()),
            "b": ("sum1", spike()),
            "sum2": ("a sum1", add()),
            "c": ("sum2", spike()),
            "sum3": ("a b", add()),
            "conv2": ("sum3", same(2)),
            "end": ("conv2 c", add()),
        },
    )
    assert sorted(delays(build_network(graph))) == [(1, 1), (1, 1), (1, 2)]


def test_processes_are_lavas_own_and_layouts_restore_the_order(rng: np.random.Generator) -> None:
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense

    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    graph = named(rng, "conv")
    network = build_network(graph)
    parts = compiled(network, 3)
    kinds = [LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, LavaIntegrateFire, Conv, Dense]
    names = [layer.name for layer in graph if layer.name in network.depths]
    assert [type(parts[name]) for name in names] == kinds
    assert list(network.offsets.values()) == [0, 1, 2]
    assert network.delay == 4
    for name, layout in network.layouts.items():
        values = rng.random((2, *graph.shapes[name]))
        assert layout.to_lava(values).shape[1:] == parts[name].s_out.shape
        np.testing.assert_array_equal(layout.from_lava(layout.to_lava(values)), values)


def test_the_neuron_works_in_a_lava_program_of_ones_own() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource, Readout, Sink, shared_array
    from exporters.lava.processes import IntegrateFire as LavaIntegrateFire

    source = CurrentSource(currents=np.array([[0.25, 0.75], [1.5, -0.5]]), interval=2)
    neuron, readout = LavaIntegrateFire(shape=(2,), interval=2), Readout(shape=(2,), bias=0.5, interval=2)
    spikes = shared_array((4, 2), bool)
    sink = Sink(buffer=spikes)
    source.a_out.connect(neuron.a_in)
    neuron.s_out.connect([sink.a_in, readout.a_in])
    try:
        source.run(condition=RunSteps(4), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
        potential, total = neuron.u.get(), readout.v.get()
    finally:
        source.stop()
    np.testing.assert_array_equal(spikes, [[0, 1], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(potential, [1.0, -1.0])
    np.testing.assert_array_equal(total, [3.0, 1.0])


def test_the_delay_works_in_a_lava_program_of_ones_own() -> None:
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    from exporters.lava.processes import CurrentSource, Delay, Sink, shared_array

    with pytest.raises(ValueError, match=r"Delay 'late': expected a number of steps from 0 on, got -1"):
        Delay(shape=(2,), steps=-1, name="late")
    source = CurrentSource(currents=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), interval=1, offset=1)
    lines = [Delay(shape=(2,), steps=0, gain=3), Delay(shape=(2,), steps=1), Delay(shape=(2,), steps=3, gain=-0.5)]
    kept = [shared_array((6, 2), float) for _ in lines]
    source.a_out.connect([line.a_in for line in lines])
    for line, buffer in zip(lines, kept, strict=True):
        line.a_out.connect(Sink(buffer=buffer).a_in)
    try:
        source.run(condition=RunSteps(6), run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
    finally:
        source.stop()
    np.testing.assert_array_equal(kept[0], [[0, 0], [3, 6], [9, 12], [15, 18], [0, 0], [0, 0]])
    np.testing.assert_array_equal(kept[1], [[0, 0], [0, 0], [1, 2], [3, 4], [5, 6], [0, 0]])
    np.testing.assert_array_equal(kept[2], [[0, 0], [0, 0], [0, 0], [0, 0], [-0.5, -1], [-1.5, -2]])
