"""Three ways to capture a model, on the same models: torch.fx, torch.export, and running it as `bridge.convert` does.

    python benchmarks/capture.py

Writes docs/results/capture.json, and from it a part of docs/conversion.md. A way captures a model if what it made of it
computes on other images what the model computes there.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ways_of_writing import SHAPE, WAYS

import bridge
from bridge.converters.torch_models import model as torch_model
from bridge.graph import LayerGraph
from bridge.simulate.ann import activations

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RESULTS = DOCS / "conversion.md", DOCS / "results" / "capture.json"
MARK = "<!-- capture -->"
ROUNDS = 3
NAMES = [
    *("alexnet", "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mnasnet1_0", "densenet121"),
    *("squeezenet1_1", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "regnet_x_400mf"),
]
CAPTURED, WRONG = "yes", "wrong numbers"


class KeepsQcfs(torch.fx.Tracer):
    """torch.fx's own way of tracing, with QCFS as one operation, as torch's own modules are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one operation."""
        return isinstance(m, bridge.QCFS) or super().is_leaf_module(m, module_qualified_name)


def by_fx(model: nn.Module, x: Tensor) -> nn.Module:
    """What torch.fx makes of a model: a module with a graph of its calls."""
    tracer = KeepsQcfs()
    graph = tracer.trace(model)
    return torch.fx.GraphModule(tracer.root, graph)


def by_export(model: nn.Module, x: Tensor) -> nn.Module:
    """What torch.export makes of a model: a module with a graph of aten operators."""
    return torch.export.export(model, (x,)).module()


def by_running(model: nn.Module, x: Tensor) -> LayerGraph:
    """The layers that `bridge.convert` takes a model for."""
    return torch_model.capture(model, tuple(x.shape))


def computed(captured: nn.Module | LayerGraph, x: Tensor) -> Tensor:
    """What comes of images `x`."""
    if isinstance(captured, LayerGraph):
        return activations(captured, x)[2]
    result: Tensor = captured(x)
    return result


WAYS_TO_CAPTURE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.fx": by_fx,
    "torch.export": by_export,
    "running": by_running,
}


def outcome(capture: Callable[[nn.Module, Tensor], Any], model: nn.Module, x: Tensor, other: Tensor) -> str:
    """Whether what is captured on `x` computes what the `model` computes on `other`; else why not, in short."""
    expected = copy.deepcopy(model)(other)
    try:
        got = computed(capture(copy.deepcopy(model), x), other)
    except Exception as error:
        return _short(error)
    same = got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    return CAPTURED if same else WRONG


def _short(error: Exception) -> str:
    """The first sentence of an error that says something."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    first = (lines or [""])[1 if isinstance(error, bridge.ConversionError) and len(lines) > 1 else 0]
    return f"{type(error).__name__}: {first.partition('. ')[0][:110]}"


def written(kind: type[nn.Module]) -> dict[str, str]:
    """By way to capture: the outcome for a model of this `kind`."""
    torch.manual_seed(0)
    model = kind().eval()
    x, other = torch.rand(2, 2, *SHAPE)
    with torch.no_grad():
        return {name: outcome(way, model, x, other) for name, way in WAYS_TO_CAPTURE.items()}


def size_of(captured: nn.Module | LayerGraph) -> int:
    """How many operations a model was captured as, its parameters not counted."""
    if isinstance(captured, LayerGraph):
        return len(captured.layers)
    nodes = captured.graph.nodes  # type: ignore[union-attr]
    return sum(node.op.startswith("call") for node in nodes)  # type: ignore[union-attr]


def classifiers(names: list[str]) -> dict[str, dict[str, Any]]:
    """By model and way: the outcome, the median time in seconds, and the number of operations."""
    from torchvision_table import make

    results: dict[str, dict[str, Any]] = {}
    for name in names:
        model, size = make(name)
        model = bridge.replace_activations(model.eval(), levels=4, max_pool="avg")
        x, other = torch.rand(2, 2, 3, size, size)
        results[name] = {}
        with torch.no_grad():
            for title, way in WAYS_TO_CAPTURE.items():
                times = []
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    captured = way(model, x)
                    times.append(time.perf_counter() - start)
                results[name][title] = {
                    "outcome": outcome(way, model, x, other),
                    "seconds": statistics.median(times),
                    "operations": size_of(captured),
                }
        print(name, results[name], flush=True)
    return results


def tables(results: dict[str, Any]) -> str:
    """The two tables."""
    ways = list(WAYS_TO_CAPTURE)
    counts = {way: sum(row[way] == CAPTURED for row in results["written"].values()) for way in ways}
    rows = [
        ["a model with", *(f"{way}: {counts[way]} of {len(results['written'])}" for way in ways)],
        ["---"] * (1 + len(ways)),
    ]
    rows += [[title, *(row[way].replace("|", "\\|") for way in ways)] for title, row in results["written"].items()]
    heads = ["model", *(f"{way}: {what}" for way in ways for what in ("s", "operations"))]
    models = [heads, ["---"] * len(heads)]
    for name, of_model in results["models"].items():
        cells = [name]
        for way in ways:
            row = of_model[way]
            cells += [f"{row['seconds']:.2f}" if row["outcome"] == CAPTURED else row["outcome"], str(row["operations"])]
        models.append(cells)
    first, second = ("\n".join("| " + " | ".join(row) + " |" for row in table) for table in (rows, models))
    return (
        f"{first}\n\nClassifiers, torch {results['torch']}, torch threads: {results['threads']}, medians of {ROUNDS} "
        "on a machine with other work to do. The operations of the last way are layers.\n\n"
        f"{second}"
    )


def measured() -> dict[str, Any]:
    """The results in docs/results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def page(text: str) -> str:
    """The page `text` with the tables of the results between its two marks."""
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n\n{tables(measured())}\n\n{MARK}{after}"


def main() -> None:
    warnings.simplefilter("ignore")
    results = {
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "written": {title: written(kind) for title, kind in WAYS.items()},
        "models": classifiers(NAMES),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
