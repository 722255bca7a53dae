"""What the proof costs: `validate` beside the backend's own run and the engine's, all in one process, in turn.

    python benchmarks/validation.py --cifar FOLDER --out docs/results/validation.json

A row is a network, an arithmetic and a backend. Each round runs the engine alone, the backend alone (in the batches
that `validate` uses) and `validate`, on the same images; the figures are medians of the rounds. The ratio is that of
`validate` to the other two together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

import bridge
from bridge._util.environment import environment
from bridge._util.progress import progress
from bridge.backends import registry
from bridge.simulate.images import BATCH
from bridge.zoo.data import dataset
from bridge.zoo.pretrained import pretrained

STEPS = 8
BACKENDS = ("spikingjelly", "snntorch", "onnxruntime")


def networks(cifar: str | None, images: int) -> list[tuple[str, bridge.SpikingNetwork, Tensor]]:
    """The packaged networks in integers and in floats, with so many images of the test split."""
    found = []
    for name, data in (
        ("digits", dataset("digits")),
        ("resnet20-cifar10", dataset("cifar10", cifar) if cifar else None),
    ):
        if data is None:
            continue
        x = data.normalise(data.test.x[:images])
        network = bridge.convert(pretrained(name))
        whole = network.quantize(8, data.normalise(data.train.x[:256]))
        found += [(f"{name}, 8 bits", whole, whole.pixels(x)), (f"{name}, float32", network, x)]
    return found


def seconds(run: Callable[[], Any]) -> float:
    """How long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, network: bridge.SpikingNetwork, x: Tensor, backend_name: str, rounds: int) -> dict[str, Any]:
    """One row: medians in milliseconds an image."""
    backend = registry.usable(backend_name)
    native = backend.export(network.to_nir())
    images = x.float().numpy()

    def alone() -> None:
        for start in range(0, len(x), BATCH):
            backend.run(native, images[start : start + BATCH], STEPS)

    runs: dict[str, Callable[[], Any]] = {
        "engine": lambda: network.simulate(x, STEPS),
        "backend": alone,
        "validate": lambda: network.validate(x, STEPS, [backend_name]),
    }
    first = network.validate(x[:BATCH], STEPS, [backend_name])  # whatever is compiled or packed once
    network.simulate(x[:BATCH], STEPS)
    assert first.agreed
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            times[kind].append(1000 * seconds(run) / len(x))
    row: dict[str, Any] = {kind: statistics.median(found) for kind, found in times.items()}
    ratios = [v / (e + b) for e, b, v in zip(*(times[kind] for kind in runs), strict=True)]
    return {"network": name, "images": len(x), "peer": backend_name, **row, "ratio": statistics.median(ratios)}


def main() -> None:
    """Measure every row and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", help="folder of CIFAR-10's files; without it, the digits alone")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    chosen = parser.parse_args()
    cases = [(*one, backend) for one in networks(chosen.cifar, chosen.images) for backend in BACKENDS]
    rows = [measure(*case, chosen.rounds) for case in progress(cases, "measuring")]
    print("| network, T = 8 | images | backend | engine alone | backend alone | `validate` | times both |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{row[kind]:.2f} ms" for kind in ("engine", "backend", "validate"))
        print(f"| {row['network']} | {row['images']} | {row['peer']} | {times} | {row['ratio']:.2f} |")
    if chosen.out:
        chosen.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
