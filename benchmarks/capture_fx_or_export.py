"""torch.fx against torch.export as the way to capture a model: success, time and what comes out, on torchvision.

python benchmarks/capture_fx_or_export.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torchvision_table import make

import bridge
from bridge.prepare.tracing import trace

NAMES = [
    *("alexnet", "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mnasnet1_0", "densenet121"),
    *("squeezenet1_1", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "regnet_x_400mf"),
]


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `run`, or the error it raises, and the median of three times in seconds."""
    times = []
    result: Any = None
    for _ in range(3):
        start = time.perf_counter()
        try:
            result = run()
        except Exception as error:
            result = error
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def main() -> None:
    print("| model | fx: s | fx: operations | fx: modules kept | export: s | export: operations |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        model, size = make(name)
        model = bridge.replace_activations(model.eval(), levels=4, max_pool="avg")
        x = torch.rand(2, 3, size, size)
        traced, fx_seconds = timed(lambda model=model: trace(model)[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported, export_seconds = timed(lambda model=model, x=x: torch.export.export(model, (x,)).graph)
        cells = [name, f"{fx_seconds:.2f}"]
        if isinstance(traced, Exception):
            cells += [type(traced).__name__, "—"]
        else:
            cells += [len(traced.nodes), sum(node.op == "call_module" for node in traced.nodes)]
        cells.append(f"{export_seconds:.2f}")
        cells.append(type(exported).__name__ if isinstance(exported, Exception) else len(exported.nodes))
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
