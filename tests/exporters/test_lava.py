"""The Lava backend against a naive loop, spike for spike, on a dyadic grid where every arithmetic is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.lava import LAVA, expect_equal, images, naive_run
from support.lava_networks import NETWORKS, RESIDUAL, named

from bridge.errors import GraphError, InputError
from bridge.graph import BatchNorm, Input, LayerGraph
from bridge.nir_graph import to_nir
from exporters.lava import Lava
from exporters.lava.backend import build_network

pytestmark = LAVA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("name", [*NETWORKS, *RESIDUAL])
def test_equals_the_naive_loop(name: str, rng: np.random.Generator) -> None:
    graph = named(rng, name)
    x = images(rng, graph, 7)
    record = Lava().run(build_network(graph), x, 5, membranes=True)
    assert record.backend == "lava"
    assert set(record.membranes) == set(graph.spiking)
    for layer in graph.spiking:
        assert 0 < record.spikes(layer).mean() < 1, f"{layer} is silent or saturated, which proves nothing"
    expect_equal(record, graph, x, 5)


@pytest.mark.parametrize("name", ["mlp", "conv", "two blocks", "input skip through a convolution", "signals"])
def test_exports_from_nir(name: str, rng: np.random.Generator) -> None:
    graph = named(rng, name)
    x = images(rng, graph, 3)
    backend = Lava()
    expect_equal(backend.run(backend.export(to_nir(graph)), x, 4), graph, x, 4)


def test_one_native_network_runs_again_with_other_sizes(rng: np.random.Generator) -> None:
    graph = named(rng, "mlp")
    network = build_network(graph)
    for count, steps in ((1, 1), (3, 4), (3, 4), (1, 9)):
        x = images(rng, graph, count)
        record = Lava().run(network, x, steps)
        assert not record.membranes
        expect_equal(record, graph, x, steps)


@pytest.mark.parametrize("name", ["identity skip", "three convolutions against none", "branches from the input"])
def test_without_delays_the_spikes_are_wrong(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(model: Any) -> None:
        model.a_out.send(model.gain * model.a_in.recv())

    monkeypatch.setattr("exporters.lava.processes.streams.PyDelayModelFloat.run_spk", at_once)
    graph = named(rng, name)
    x = images(rng, graph, 7)
    record = Lava().run(build_network(graph), x, 5)
    spikes, _, _ = naive_run(graph, x, 5)
    wrong = {layer: int((record.spikes(layer) != (spikes[layer] == 1)).sum()) for layer in graph.spiking}
    assert wrong["a"] == 0, "before the first join nothing can be late"
    assert wrong["end"] > 0


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_run_exactly(rng: np.random.Generator) -> None:
    ones = np.ones(2, dtype=np.float32)
    x = Input(name="x", shape=(2,))
    norm = BatchNorm(name="norm", inputs=("x",), scale=ones, shift=ones)
    with pytest.raises(GraphError, match=r"'norm' \(BatchNorm.*rewrite"):
        build_network(LayerGraph((x, norm)))


@pytest.mark.parametrize(
    ("x", "steps", "message"),
    [
        (np.zeros((2, 5)), 1, r"expected images \[B, 6\], got \(2, 5\)"),
        (np.zeros((0, 6)), 1, "expected images"),
        (np.full((1, 6), np.nan), 1, "NaN"),
        (np.zeros((1, 6)), 0, "at least one time step"),
    ],
)
def test_refuses_wrong_inputs(x: Any, steps: int, message: str, rng: np.random.Generator) -> None:
    network = build_network(named(rng, "mlp"))
    with pytest.raises(InputError, match=message):
        Lava().run(network, x.astype(np.float32), steps)
