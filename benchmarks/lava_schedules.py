"""The table of docs/loihi.md: throughput, latency and accuracy in Lava's fixed point, by schedule.

    python benchmarks/lava_schedules.py digits
    python benchmarks/lava_schedules.py resnet20-cifar10 --folder cifar-10-batches-bin --images 64
    python benchmarks/lava_schedules.py                                                    # writes the table

8 bits. Images stream through Lava one behind the other, the given number of them, by default the whole test set; spikes
are held against those of the emulator `lava-twin`, activations against the integer ANN's. The emulator runs the whole
test set, and gives the accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_to_ann import AT_ONCE, FEWER, NAMES
from pages import renew
from torch import Tensor

import bridge
from bridge import SpikingNetwork
from bridge._util.environment import environment
from bridge._util.files import replacing
from bridge._util.progress import progress
from bridge.records import differing
from bridge.simulate.ann import activations
from bridge.validation.equality import EqualityTally
from bridge.zoo.data import dataset
from bridge.zoo.pretrained import DATA, pretrained
from exporters.lava import LavaFixed, LavaTwin

DOCS = Path(__file__).parent.parent / "docs"
MARK = "<!-- schedules in Lava -->"
PLAIN_STEPS = (1, 2, 4, 8, 16)

Row = dict[str, Any]


def measured(network: SpikingNetwork, backend: LavaFixed, steps: int, x: Tensor, y: np.ndarray, images: int) -> Row:
    """What `network` does in `steps` steps: `images` of the images `x` in Lava, all of them on the emulator."""
    emulator, graph = LavaTwin(), network.to_nir()
    native, twin = backend.export(graph), emulator.export(graph)
    start = time.perf_counter()
    record = backend.run(native, x[:images].numpy(), steps)
    seconds = time.perf_counter() - start
    expected = emulator.run(twin, x[:images].numpy(), steps)
    row: Row = {
        "interval": native.interval(steps),
        "latency": native.interval(steps) + native.delay,
        "in_lava": images,
        "seconds": seconds,
        "spikes_wrong": sum(int(counts.sum()) for counts in differing(record, expected).values()),
        "outputs_wrong": int((record.outputs()[-1] != expected.outputs()[-1]).any(axis=1).sum()),
        "compared": 0,
        "activations_wrong": 0,
    }
    if network.latency is not None:
        assert network.ann is not None
        pixels = x[:images].float()
        values, _, _ = activations(network.ann, pixels)
        found = EqualityTally.of(network.graph, network.ann, pixels, record, values).result()
        row["compared"], row["activations_wrong"] = sum(found.compared.values()), sum(found.differing.values())
    right = 0
    for part, labels in progress(
        [*zip(x.split(AT_ONCE), np.split(y, range(AT_ONCE, len(y), AT_ONCE)), strict=True)], "emulating"
    ):
        top1 = network.simulate(part, steps).outputs[-1].argmax(axis=1)
        right += int((top1 == labels).sum())
    return {**row, "images": len(x), "accuracy": right / len(x)}


def rows(name: str, folder: Path | None, images: int | None) -> dict[str, Row]:
    """By schedule and T: the rows of the network called `name`."""
    data = dataset(DATA[name], folder)
    x, y = data.normalise(data.test.x), np.asarray(data.test.y)
    drawn = torch.randperm(len(data.train.x), generator=torch.Generator().manual_seed(0))[:FEWER]
    few, count = data.normalise(data.train.x[drawn]), images or len(x)
    model = pretrained(name)
    result: dict[str, Row] = {}
    for schedule, ways in {
        "plain": {f"plain, T = {steps}": (LavaFixed(lanes=1), steps) for steps in PLAIN_STEPS},
        "staged": {"staged": (LavaFixed(lanes=1), None)},
        "grouped": {
            "grouped, binary": (LavaFixed(lanes=1), None),
            "grouped, graded spikes": (LavaFixed(lanes=1, spikes="graded"), None),
        },
    }.items():
        network = bridge.convert(model, x[:1], schedule=schedule)
        whole = network.quantize(8, few, normalisation=(data.mean, data.std))
        for key, (backend, steps) in ways.items():
            result[key] = measured(whole, backend, steps or whole.latency or 1, whole.pixels(x), y, count)
            print(name, key, result[key], flush=True)
    return result


def table(results: dict[str, Any]) -> str:
    """Markdown: by network, a row for each schedule."""
    heads = ("an image every … steps", "latency, steps", "accuracy, %", "activations that differ from the ANN's")
    lines = []
    for name, title in NAMES.items():
        if name not in results:
            continue
        found = results[name]
        first = next(iter(found.values()))
        wrong = sum(row["spikes_wrong"] + row["outputs_wrong"] for row in found.values())
        lines += [
            f"**{title}**: accuracy on {first['images']:,} test images (emulator); {first['in_lava']:,} of them in "
            f"Lava itself, {wrong:,} spikes or outputs that differ from the emulator's.\n",
            f"| | {' | '.join(heads)} |",
            "|---|" + "---:|" * len(heads),
        ]
        for key, row in found.items():
            equal = f"{row['activations_wrong']:,} of {row['compared']:,}" if row["compared"] else "—"
            lines.append(f"| {key} | {row['interval']} | {row['latency']} | {100 * row['accuracy']:.2f} | {equal} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, save it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(NAMES), help="the trained network to measure")
    parser.add_argument("--folder", type=Path, help="where its data set is")
    parser.add_argument("--images", type=int, help="at most so many test images in Lava itself")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "lava_schedules.json")
    parser.add_argument("--page", type=Path, default=DOCS / "loihi.md")
    chosen = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    if chosen.name:
        results[chosen.name] = rows(chosen.name, chosen.folder, chosen.images)
        results["made"] = {name: value for name, value in environment().items() if name != "command"}
        with replacing(chosen.out) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode())
    renew(chosen.page, MARK, table(results))


if __name__ == "__main__":
    main()
