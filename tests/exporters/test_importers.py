"""Why the project exists: the same weights through the frameworks' own NIR importers spike differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from importers_table import DIALECTS, IMPORTERS, STEPS, measured, page
from support.backends import require
from torch import nn

import bridge
from bridge.errors import LossyWarning
from bridge.foreign import ForeignNetwork
from bridge.records import differing


def random_qcfs_network(seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Four QCFS layers with random weights, λ set from the data so that about all levels are in use."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), bridge.QCFS(STEPS), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), bridge.QCFS(STEPS), nn.AvgPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), bridge.QCFS(STEPS)),
        *(nn.Flatten(), nn.Linear(32 * 16, 64), nn.BatchNorm1d(64), bridge.QCFS(STEPS), nn.Linear(64, 10)),
    )
    with torch.no_grad():
        for _ in range(30):
            model.train()(torch.rand(64, 3, 16, 16))  # running statistics
    return model.eval(), (3, 16, 16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["spikingjelly", "snntorch"])
def test_the_official_importers_lose_spikes(name, record_property):
    """Hard reset and no initial potential (SpikingJelly), a leak of 0.9 besides (snnTorch): 14 to 20 % are wrong."""
    backend = require(name)
    totals = []
    for seed in range(3):
        model, shape = random_qcfs_network(seed)
        x = torch.rand(8, *shape)
        network = bridge.convert(model, x)
        exact = network.run(x, STEPS)
        # Our own exporter for the same framework, on the same images, has none wrong.
        own = backend.run(backend.export(network.to_nir()), x.numpy(), STEPS)
        assert not any(counts.any() for counts in differing(exact, own).values())
        with pytest.warns(LossyWarning):
            graph = network.to_nir("if")
        spikes, _ = IMPORTERS[name](graph, exact.layers, x)
        wrong = {layer: float((exact.spikes(layer) != spikes[layer]).mean()) for layer in exact.layers}
        neurons = {layer: int(np.prod(exact.shapes[layer])) for layer in exact.layers}
        totals.append(sum(wrong[layer] * neurons[layer] for layer in neurons) / sum(neurons.values()))
        assert min(wrong.values()) > 0.02, "every layer is hit"
    record_property("spikes_wrong", totals)
    print(f"{name}'s own importer: {', '.join(f'{share:.1%}' for share in totals)} of the spikes are wrong")
    assert all(0.14 <= share <= 0.20 for share in totals)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_spikingjellys_importer_runs_what_the_dialect_means():
    """It is not the importer that loses these spikes, but what it is given: hard reset from 0, here simulated too.

    Its float32 is held against float64, and its neurons fire on ≥ where NIR's do on >: both matter only where a
    potential lies within rounding of the threshold.
    """
    require("spikingjelly")
    model, shape = random_qcfs_network(0)
    x = torch.rand(8, *shape)
    network = bridge.convert(model, x)
    with pytest.warns(LossyWarning):
        graph = network.to_nir("if")
    spikes, _ = IMPORTERS["spikingjelly"](graph, network.layers, x)
    meant = ForeignNetwork(graph).run(x, STEPS)
    for layer in network.layers:
        assert (meant.spikes(layer) != spikes[layer]).mean() < 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_table_is_measured():
    """Everything it does, on networks that are hardly trained."""
    require("spikingjelly")
    require("snntorch")
    result = measured(epochs=1, images=3)
    for network in result["networks"].values():
        assert network["primitives_differ"] == 0
        rows = {(row["dialect"], row["framework"]): row for row in network["rows"]}
        assert len(rows) == len(DIALECTS) * (len(IMPORTERS) - len(result["missing"]))
        for name in ("spikingjelly", "snntorch"):
            assert 0 < rows["if", name]["wrong"] < 0.5
            assert rows["if", name]["most_spikes_a_step"] == 1
            assert "Unknown node type" in rows["exact", name]["error"]
        assert rows["if", "spikingjelly"]["not_as_meant"] < 1e-3 < rows["if", "snntorch"]["not_as_meant"]
    assert page(result).count("| nir.IF | snntorch |") == len(result["networks"]) == 3


def test_the_page_says_what_was_measured():
    rows = [
        {
            "framework": "spikingjelly",
            "dialect": "if",
            "wrong": 0.125,
            "not_as_meant": 0.0,
            "top1_agreement": 0.5,
            "most_spikes_a_step": 3,
        },
        {"framework": "snntorch", "dialect": "exact", "error": "ValueError: no | such node"},
    ]
    text = page(
        {
            "steps": 8,
            "images": 4,
            "versions": {"nir": "1.0.8"},
            "missing": ["norse"],
            "networks": {"tiny": {"accuracy": 0.25, "neurons": 7, "primitives_differ": 0, "rows": rows}},
        }
    )
    assert "| nir.IF | spikingjelly | 12.5% | 0 | 50.0% | 3 |" in text
    assert "| exact loop | snntorch | fails: `ValueError: no   such node` | | | |" in text
    assert "left out: norse." in text
    assert "## Tiny" in text
