"""The table of docs/exact.md: spiking networks that equal their ANN, beside plain ones, on whole test sets.

    python benchmarks/equal_to_ann.py digits
    python benchmarks/equal_to_ann.py resnet20-cifar10 --folder cifar-10-batches-bin     # some minutes
    python benchmarks/equal_to_ann.py resnet20-cifar10 --folder … --reference            # an hour: step by step
    python benchmarks/equal_to_ann.py                                                    # writes the table

Every activation of every layer is held against the ANN's, in floating point and in integers. Plain and calibrated rows
come from benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import renew
from torch import Tensor, nn

import bridge
from bridge import SpikingNetwork
from bridge._util.environment import environment
from bridge._util.files import replacing
from bridge._util.progress import progress
from bridge.simulate.ann import activations
from bridge.validation.equality import EqualityTally
from bridge.zoo.data import dataset
from bridge.zoo.pretrained import DATA, pretrained

DOCS = Path(__file__).parent.parent / "docs"
MARK = "<!-- exact table -->"
NAMES = {"digits": "digits CNN", "mnist": "MNIST CNN", "resnet20-cifar10": "ResNet-20, CIFAR-10"}
SCHEDULES = ("staged", "grouped")
FEWER, AT_ONCE = 512, 100
"""Training images that quantization sees; test images that are run together."""
PLAIN_STEPS = (4, 8, 32)

Row = dict[str, Any]


def measured(network: SpikingNetwork, model: nn.Module | None, x: Tensor, y: Tensor, *, reference: bool) -> Row:
    """What `network` makes of all images `x`, held against its ANN: of `model` where that is in floating point."""
    graph, ann = network.graph, network.ann
    assert ann is not None
    tally: EqualityTally | None = None
    right = ann_right = other = 0
    spikes: list[float] = []
    operations: list[float] = []
    for part, labels in progress([*zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True)], "running"):
        record = network.run(part) if reference else network.simulate(part, record=True).record
        assert record is not None
        part = part.float()
        values, _, expected = activations(ann, part)
        if model is not None:
            with torch.inference_mode():
                expected = model(part)
        found = EqualityTally.of(graph, ann, part, record, values)
        if tally is None:
            tally = found
        else:
            tally.add(found)
        top1, truth = record.outputs()[-1].argmax(axis=1), expected.argmax(dim=1).numpy()
        right += int((top1 == labels.numpy()).sum())
        ann_right += int((truth == labels.numpy()).sum())
        other += int((top1 != truth).sum())
        if len(spikes) < 2:  # 200 images are enough for a mean
            price = network.cost(record)
            assert price.spikes is not None
            assert price.synaptic_operations is not None
            spikes.append(price.spikes)
            operations.append(price.synaptic_operations)
    assert tally is not None
    equality, price = tally.result(), network.cost()
    return {
        "images": len(x),
        "latency": price.latency,
        "interval": price.interval,
        "units": price.units,
        "accuracy": right / len(x),
        "ann": ann_right / len(x),
        "top1_differs": other,
        "compared": sum(equality.compared.values()),
        "differing": sum(equality.differing.values()),
        "unexplained": sum(equality.unexplained.values()),
        "outputs_wrong": equality.outputs_wrong,
        "spikes": statistics.mean(spikes),
        "synaptic_operations": statistics.mean(operations),
    }


def rows(name: str, folder: Path | None, *, reference: bool, images: int | None) -> dict[str, Row]:
    """By schedule and kind: the rows of the network called `name`."""
    data = dataset(DATA[name], folder)
    x, y = data.normalise(data.test.x[:images]), data.test.y[:images]
    drawn = torch.randperm(len(data.train.x), generator=torch.Generator().manual_seed(0))[:FEWER]
    few = data.normalise(data.train.x[drawn])
    model = pretrained(name)
    result: dict[str, Row] = {}
    for schedule in SCHEDULES:
        network = bridge.convert(model, x[:1], schedule=schedule)
        whole = network.quantize(8, few, normalisation=(data.mean, data.std))
        simulator = "reference" if reference else "engine"
        for kind, one, given, of in (("float", network, x, model), ("8-bit", whole, whole.pixels(x), None)):
            key = f"{schedule}, {kind}, {simulator}"
            result[key] = measured(one, of, given, torch.as_tensor(np.asarray(y)), reference=reference)
            print(name, key, result[key], flush=True)
    return result


def table(results: dict[str, Any], accuracies: dict[str, Any]) -> str:
    """Markdown: by network, plain and calibrated rows, then those that equal their ANN."""
    heads = (
        "latency, steps", "accuracy, %", "in 8 bits, %", "activations that differ, float", "8-bit",
        "units", "spikes an image", "synaptic operations",
    )  # fmt: skip
    lines = []
    for name, title in NAMES.items():
        if name not in results:
            continue
        found = results[name]
        exact = [found.get(f"staged, {kind}, engine") for kind in ("float", "8-bit")]
        if None in exact:
            continue
        ann, whole = (100 * one["ann"] for one in exact)
        images = exact[0]["images"]
        lines += [
            f"**{title}**: {images:,} test images; the ANN has {ann:.2f} %, the integer ANN {whole:.2f} %.\n",
            f"| | {' | '.join(heads)} |",
            "|---|" + "---:|" * len(heads),
        ]
        for scheme in ("plain", "calibrated"):
            for steps in PLAIN_STEPS:
                shares = [_accuracy(accuracies, name, label, steps) for label in (scheme, f"{scheme}, 8-bit")]
                cells = ["—" if share is None else f"{100 * share:.2f}" for share in shares]
                lines.append(f"| {scheme} | {steps} | {' | '.join(cells)} | | | | | |")
        for schedule in SCHEDULES:
            one, other = (found[f"{schedule}, {kind}, engine"] for kind in ("float", "8-bit"))
            lines.append(
                f"| {schedule} | {one['latency']} | {100 * one['accuracy']:.2f} | {100 * other['accuracy']:.2f} "
                f"| {_differing(one)} | {_differing(other)} | {one['units']:,} | {one['spikes']:,.0f} "
                f"| {one['synaptic_operations'] / 1e6:,.3g} M |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _differing(row: Row) -> str:
    share = f"{row['differing']:,} of {row['compared'] / 1e6:,.4g} M"
    return share if not row["unexplained"] else f"**{share}, {row['unexplained']:,} not by rounding**"


def _accuracy(accuracies: dict[str, Any], name: str, scheme: str, steps: int) -> float | None:
    rows = accuracies.get(name, {}).get("rows", [])
    wanted = [r["accuracy"] for r in rows if r["scheme"] == scheme and r["steps"] == steps and "images" not in r]
    return statistics.mean(wanted) if wanted else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, save it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(NAMES), help="the trained network to measure")
    parser.add_argument("--folder", type=Path, help="where its data set is")
    parser.add_argument("--images", type=int, help="at most so many test images")
    parser.add_argument("--reference", action="store_true", help="run step by step, not from counts")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "equal_to_ann.json")
    parser.add_argument("--page", type=Path, default=DOCS / "exact.md")
    chosen = parser.parse_args(arguments)
    if chosen.name:
        new = rows(chosen.name, chosen.folder, reference=chosen.reference, images=chosen.images)
        results = _saved(chosen.out)  # another run may have written in the meantime
        results.setdefault(chosen.name, {}).update(new)
        results["made"] = {name: value for name, value in environment().items() if name != "command"}
        with replacing(chosen.out) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode())
    renew(chosen.page, MARK, table(_saved(chosen.out), _saved(DOCS / "results" / "accuracy.json")))


def _saved(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


if __name__ == "__main__":
    main()
