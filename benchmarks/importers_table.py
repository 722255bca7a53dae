"""What the frameworks' own NIR importers make of a network: makes docs/importers.md.

    python benchmarks/importers_table.py

Each framework's own importer is given the ``nir.IF`` dialect (`bridge.SpikingNetwork.to_nir` with ``neuron="if"``) and
the exact neuron's loop, and what it then runs is held against the network. Frameworks that are not installed are left
out. Networks trained on scikit-learn's digits, T = 8; some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

import bridge
from bridge.foreign import ForeignNetwork
from bridge.records import differing
from bridge.simulate.reference import simulate
from bridge.zoo.digits import load_digits, train, train_digits

DOCS = Path(__file__).parent.parent / "docs"
STEPS = 8
IMAGES = 50
DIALECTS = {"if": "nir.IF", "exact": "exact loop"}

Run = tuple[dict[str, np.ndarray], np.ndarray]
"""How many spikes each neuron of each layer gives in each step, ``[T, B, ...]``; the readout, ``[T, B, classes]``."""


def stepped(module: nn.Module, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """Run an imported `module`, which takes and gives back its state, on `x` at every step."""
    spikes: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            spikes[layer].append(np.array(output[0] if isinstance(output, tuple) else output))

        return hook

    hooks = [module.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    state, readout = None, []
    with torch.no_grad():
        for _ in range(STEPS):
            output, state = module(x, state)
            readout.append(np.array(output))
    for hook in hooks:
        hook.remove()
    if unheard := [layer for layer, rows in spikes.items() if len(rows) < STEPS]:
        raise ValueError(f"what it makes of the graph does not run the layers {unheard}")
    return {layer: np.stack(rows) for layer, rows in spikes.items()}, np.stack(readout)


def one_by_one(module: nn.Module, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """Run images singly and without a batch, for importers whose Flatten would flatten that too."""
    runs = [stepped(copy.deepcopy(module), layers, image) for image in x]
    spikes = {layer: np.stack([run[0][layer] for run in runs], axis=1) for layer in layers}
    return spikes, np.stack([run[1] for run in runs], axis=1)


def spikingjelly(graph: nir.NIRGraph, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """With ``dt=1``, the only one with which it takes r = 1."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return stepped(import_from_nir(graph, dt=1.0), layers, x)


def snntorch(graph: nir.NIRGraph, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """Its neurons keep their state themselves here: as imported they return a tuple, on which the next layer fails."""
    from snntorch import Leaky
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        module = import_from_nir(graph)
    for child in module.modules():
        if isinstance(child, Leaky):
            child.init_hidden = True
    return one_by_one(module, layers, x)


def norse(graph: nir.NIRGraph, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """Its integrate-and-fire neuron has no time step: it adds its input."""
    import norse.torch

    return one_by_one(norse.torch.from_nir(graph), layers, x)


def sinabs(graph: nir.NIRGraph, layers: tuple[str, ...], x: torch.Tensor) -> Run:
    """A batch at each step; its neurons keep their state."""
    import sinabs.nir

    return stepped(sinabs.nir.from_nir(graph, batch_size=len(x)), layers, x)


IMPORTERS = {"spikingjelly": spikingjelly, "snntorch": snntorch, "norse": norse, "sinabs": sinabs}


def strided_model() -> nn.Sequential:
    """A small CNN for 8×8 images, which halves them by a stride, so that it has no pool."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), bridge.QCFS(STEPS), nn.Conv2d(16, 32, 3, 2, 1), bridge.QCFS(STEPS)),
        *(nn.Flatten(), nn.Linear(512, 64), bridge.QCFS(STEPS), nn.Linear(64, 10)),
    )


def residual_model() -> nn.Sequential:
    """A small residual network for 8×8 images, without a pool."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv1, self.act1 = nn.Conv2d(channels, channels, 3, padding=1), bridge.QCFS(STEPS)
            self.conv2, self.act2 = nn.Conv2d(channels, channels, 3, padding=1), bridge.QCFS(STEPS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act2(x + self.conv2(self.act1(self.conv1(x))))

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), bridge.QCFS(STEPS), Block(16)),
        *(nn.Conv2d(16, 24, 3, stride=2, padding=1), bridge.QCFS(STEPS), Block(24)),
        *(nn.Flatten(), nn.Linear(24 * 16, 10)),
    )


def networks(epochs: int) -> Iterator[tuple[str, bridge.SpikingNetwork]]:
    """The networks of the table, trained."""
    x, y, _, _ = load_digits()
    yield "digits CNN", bridge.convert(train_digits(x, y, epochs), x[:1])
    for title, make in (("CNN without a pool", strided_model), ("residual network", residual_model)):
        torch.manual_seed(0)
        yield title, bridge.convert(train(make(), x, y, epochs), x[:1])


def measure(
    name: str, network: bridge.SpikingNetwork, dialect: str, exact: bridge.SpikeRecord, x: torch.Tensor
) -> dict[str, Any]:
    """One row: what the importer `name` makes of `network`, or the first line of the error it fails with."""
    row: dict[str, Any] = {"framework": name, "dialect": dialect}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = network.to_nir(dialect)
        try:
            spikes, readout = IMPORTERS[name](graph, exact.layers, x)
            came, wanted = list(readout.shape[2:]), list(exact.readout.shape[2:])
            if came != wanted:
                raise ValueError(f"what it makes of the graph has the output {came}, not {wanted}")
        except Exception as error:  # whatever it raises is what its user sees
            return row | {"error": f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]}
        meant = ForeignNetwork(graph, 1.0).run(x, STEPS)
    top1 = readout.astype(np.float64).mean(axis=0).argmax(axis=-1)
    return row | {
        "wrong": share_wrong(exact, spikes),
        "not_as_meant": share_wrong(meant, spikes),
        "top1_agreement": float((top1 == exact.outputs()[-1].argmax(axis=-1)).mean()),
        "most_spikes_a_step": int(max(counts.max() for counts in spikes.values())),
    }


def share_wrong(exact: bridge.SpikeRecord, spikes: dict[str, np.ndarray]) -> float:
    """The share of all neurons and time steps in which `spikes` are not those of `exact`."""
    wrong = sum(int((exact.spikes(layer) != spikes[layer]).sum()) for layer in exact.layers)
    return wrong / sum(spikes[layer].size for layer in exact.layers)


def measured(epochs: int = 12, images: int = IMAGES) -> dict[str, Any]:
    """All rows, for every framework that is here."""
    here = [name for name in IMPORTERS if importlib.util.find_spec(name)]
    x, y = (part[:images] for part in load_digits()[2:])
    result: dict[str, Any] = {
        "steps": STEPS,
        "images": len(x),
        "versions": {name: importlib.metadata.version(name) for name in ("nir", "nirtorch", *here)},
        "missing": [name for name in IMPORTERS if name not in here],
        "networks": {},
    }
    for title, network in networks(epochs):
        exact = network.run(x, STEPS)
        primitives = ForeignNetwork(network.to_nir()).run(x, STEPS)
        doubled = simulate(network.graph, x.double(), STEPS)  # which is how precise those are
        result["networks"][title] = {
            "accuracy": float((exact.outputs()[-1].argmax(axis=-1) == y).mean()),
            "neurons": network.graph.neurons,
            "primitives_differ": sum(int(counts.sum()) for counts in differing(doubled, primitives).values()),
            "rows": [measure(name, network, dialect, exact, x) for dialect in DIALECTS for name in here],
        }
    return result


def page(result: dict[str, Any]) -> str:
    """docs/importers.md."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# What the frameworks' own importers make of a network",
        "",
        f"Made by `benchmarks/importers_table.py`: networks trained on scikit-learn's digits, T = {result['steps']},",
        f"{result['images']} test images; {versions}.",
        "",
        "Each framework's *own* NIR importer (not this package's exporter for it, whose spikes are all right) is given",
        'the same network in two forms: with every layer as one `nir.IF`, as `network.to_nir(neuron="if")` writes it,',
        "and with the exact neuron as its loop of primitives, as `to_nir()` does ([neuron.md](neuron.md)).",
        "",
        "*Wrong*: share of all neurons and time steps whose spikes are not the network's. *Not as meant*: the same,",
        "held against what NIR says the given graph is, with dt = 1 ([foreign_graphs.md](foreign_graphs.md)). *Top 1*:",
        "images whose largest output is the network's. *Most*: spikes of one neuron in one step.",
    ]
    if result["missing"]:
        lines += ["", f"Not installed where this was made, and so left out: {', '.join(result['missing'])}."]
    for title, network in result["networks"].items():
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            f"{network['neurons']} neurons; {network['accuracy']:.1%} of the images right. Its loops of primitives,",
            f"run as NIR defines each of them, differ from it in {network['primitives_differ']} spikes.",
            "",
            "| given | importer | wrong | not as meant | top 1 | most |",
            "|---|---|---|---|---|---|",
        ]
        for row in network["rows"]:
            given = f"| {DIALECTS[row['dialect']]} | {row['framework']} |"
            if "error" in row:
                text = row["error"].replace("|", " ")
                lines.append(f"{given} fails: `{text}` | | | |")
                continue
            numbers = (_share(row[key]) for key in ("wrong", "not_as_meant", "top1_agreement"))
            lines.append(f"{given} {' | '.join(numbers)} | {row['most_spikes_a_step']} |")
    lines += [
        "",
        "snnTorch's importer gives neurons that return tuples, on which the next layer fails. They are made to keep",
        "their state here (`init_hidden`); without that, nothing could be measured. SpikingJelly's is called with",
        "`dt=1.0`, the only one with which it takes r = 1. Norse's and Sinabs' leave out nodes they do not know",
        "(average pools, I, Threshold, Scale), and run the others depth first (`nirtorch.load`): where two branches of",
        "more than an edge meet, the join runs before the second of them.",
    ]
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return "0" if value == 0 else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "importers.json")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=IMAGES)
    chosen = parser.parse_args()
    result = measured(chosen.epochs, chosen.images)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    chosen.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
