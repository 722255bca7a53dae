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

FROM_NIR = ("mlp", "conv", "two blocks", "input skip through a convolution", "signals")
"""These come as a NIR graph, the others as a layer graph."""
WATCHED = ("conv", "flattened neurons", "spikes at once", "scales", "two blocks", "flattened joins", "signals")
"""Where potentials are recorded, too, a Process more for each layer: every kind of layer that neurons can hear, and
every layout of them. For the others that is `long`.
"""
AGAIN = ("deep", "identity skip", "projected skip")
"""What these have, others have among other things: layer after layer of neurons is in "affine after affine" and "nested
blocks", identity skips are in "two blocks", a projection is in "strided projection". `long`.
"""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(
    ("name", "membranes"),
    [
        *((name, name in WATCHED) for name in (*NETWORKS, *RESIDUAL) if name not in AGAIN),
        *(pytest.param(name, True, marks=pytest.mark.long) for name in (*NETWORKS, *RESIDUAL) if name not in WATCHED),
    ],
)
def test_equals_the_naive_loop(name: str, membranes: bool, rng: np.random.Generator) -> None:
    graph = named(rng, name)
    x = images(rng, graph, 7)
    backend = Lava()
    network = backend.export(to_nir(graph)) if name in FROM_NIR else build_network(graph)
    record = backend.run(network, x, 5, membranes=membranes)
    assert record.backend == "lava"
    assert set(record.membranes) == (set(graph.spiking) if membranes else set())
    for layer in graph.spiking:
        assert 0 < record.spikes(layer).mean() < 1, f"{layer} is silent or saturated, which proves nothing"
    expect_equal(record, graph, x, 5)


def test_one_native_network_runs_again_with_other_sizes(rng: np.random.Generator) -> None:
    graph = named(rng, "mlp")
    network = build_network(graph)
    for count, steps in ((3, 4), (3, 4), (1, 1)):
        x = images(rng, graph, count)
        record = Lava().run(network, x, steps)
        assert not record.membranes
        expect_equal(record, graph, x, steps)


@pytest.mark.parametrize(
    "name",
    [
        "three convolutions against none",
        pytest.param("identity skip", marks=pytest.mark.long),
        pytest.param("branches from the input", marks=pytest.mark.long),
    ],
)
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
        (np.zeros((2, 5)), 1, r"expected images \[B, 6\], got \[2, 5\]"),
        (np.zeros((0, 6)), 1, r"expected at least one image, \[B, 6\], got \[0, 6\]"),
        (np.full((1, 6), np.nan), 1, "NaN"),
        (np.zeros((1, 6)), 0, "steps: .* at least 1"),
    ],
)
def test_refuses_wrong_inputs(x: Any, steps: int, message: str, rng: np.random.Generator) -> None:
    network = build_network(named(rng, "mlp"))
    with pytest.raises(InputError, match=message):
        Lava().run(network, x.astype(np.float32), steps)
