"""Accuracy of the trained networks at T steps: as published, plain, calibrated, in 8 bits, and beside other schemes.

    python benchmarks/accuracy.py resnet20-cifar10 --folder cifar-10-batches-bin    # measures it; hours on 2 cores
    python benchmarks/accuracy.py                   # writes the page from what is saved

Test images are used for the figures and for nothing else: calibration and quantization take training images, drawn by
seed. Each figure is kept in the JSON file as soon as it is there, and not measured twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import schemes
import torch
from torch import Tensor

import bridge
from bridge import SpikingNetwork
from bridge._util.environment import environment
from bridge._util.files import replacing
from bridge._util.progress import progress
from bridge.network import RATE_STEPS
from bridge.zoo.data import Dataset, dataset
from bridge.zoo.pretrained import DATA, FOLDER, pretrained
from bridge.zoo.training.evaluation import accuracy

DOCS = Path(__file__).parent.parent / "docs"
STEPS = (1, 2, 4, 8, 16, 32)
SEEDS, LONG, SEEDS_IF_LONG = 3, 8, 2
"""So many draws of calibration images, but fewer beyond T = `LONG`, where they agree anyway."""
IMAGES, FEWER = 4096, 512
"""Training images to calibrate on; and the first of them, to quantize with and to fit FTBC's biases to."""
PHOTOGRAPHS, MORE = ("cifar10",), 16384
"""Data sets of photographs: calibration takes so many, and each mirrored, too, which is as good a photograph."""
COMPARED, COMPARED_STEPS = 2000, (2, 4, 8, 16)
"""Test images, the first ones, and T of the comparison with other schemes, which have no fast simulator."""
AT_ONCE = 100

PLAIN, CALIBRATED = "plain", "calibrated"
PLAIN_8, CALIBRATED_8 = "plain, 8-bit", "calibrated, 8-bit"
COMPARISON: dict[str, Callable[[SpikingNetwork, Tensor, int], Tensor]] = {
    "delayed readout": schemes.delayed_readout,
    "SRP": schemes.srp,
    "COS": schemes.cos,
}
FTBC = "FTBC"

PUBLISHED: dict[str, tuple[float, dict[int, float]]] = {
    "resnet20-cifar10": (91.77, {2: 73.20, 4: 83.75, 8: 89.55, 16: 91.62, 32: 92.24}),
}
"""Bu et al., ICLR 2022, table 2, in percent: the ANN, then the spiking network by T."""

HEAD = """# Accuracy at few steps

Networks that come with the package (`bridge.zoo.pretrained`), trained by `bridge.zoo.training.train`; their cards in
`bridge/zoo/trained/` say how. The larger two ended with an epoch or more in which every second step of training ran as
spikes at T = 4 ([how](training.md)). *Plain* is conversion as published: thresholds folded into weights, v(0) half a
threshold, nothing fitted. *Calibrated* is `network.calibrate(images, steps=T)` ([how](calibration.md)): the same plain
neurons, other constants. *8-bit* is `network.quantize(8)`, the whole-number network that every backend runs bit for bit
alike. Calibration saw {images:,} training images (of the digits, all 1,347; of CIFAR-10 {more:,}, each mirrored,
too) without their labels, quantization {fewer}, and the test images nothing was chosen by. Several draws of calibration
images: mean (lowest to highest); a figure alone is of one draw. The weights are of one training run each.

The other schemes are not plain neurons: *delayed readout* leaves the first quarter of the steps, of 2 none, out of the
output's mean; *SRP* (Hao et al., AAAI 2023) and *COS* (Hao et al., ICLR 2023) run each neuron twice, half of the steps
and at most 4 in the first phase, and set a mask or an initial potential for each neuron and image; *FTBC* (Wu et al.,
ECCV 2024) has a bias for each channel and step. T is all the steps that a neuron takes, first phases included.
"""

Row = dict[str, Any]


class Subject:
    """One trained network with its data, and the rows that are measured for it."""

    def __init__(self, name: str, data: Dataset) -> None:
        self.name, self.data = name, data
        self.model = pretrained(name)
        self.x, self.y = data.normalise(data.test.x), data.test.y.numpy()

    @cached_property
    def network(self) -> SpikingNetwork:
        return bridge.convert(self.model, self.x[:1])

    def training_images(self, seed: int, count: int) -> Tensor:
        """`count` of them, drawn by `seed`, as the ANN takes them; fewer are the first of more."""
        train = self.data.train.x
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
        return self.data.normalise(train[drawn])

    def calibrated(self, seed: int, steps: int) -> SpikingNetwork:
        if self.data.name in PHOTOGRAPHS:
            x = self.training_images(seed, MORE)
            x = torch.cat([x, x.flip(-1)])
        else:
            x = self.training_images(seed, IMAGES)
        return self.network.calibrate(x, steps)

    def in_8_bits(self, network: SpikingNetwork, seed: int, steps: int = RATE_STEPS) -> SpikingNetwork:
        mean, std = self.data.mean, self.data.std
        few = self.training_images(seed, FEWER)
        return network.quantize(8, calibration=few, normalisation=(mean, std), steps=steps)

    def right(self, network: SpikingNetwork, steps: int, images: int | None = None) -> list[float]:
        """Accuracy after 1…T steps, on all test images or the first of them."""
        x = self.x[:images]
        if network.graph.integer:
            x = network.pixels(x)
        return [float(share) for share in network.simulate(x, steps).accuracy(self.y[:images])]

    def compared(self, outputs: Callable[[Tensor], Tensor]) -> float:
        """Accuracy on the images that schemes are compared on."""
        x, y = self.x[:COMPARED], torch.from_numpy(self.y[:COMPARED])
        found = [outputs(part).flatten(1).argmax(dim=1) for part in progress(x.split(AT_ONCE), "comparing")]
        return float((torch.cat(found) == y).float().mean())


def wanted(steps: Sequence[int], compared: Sequence[int]) -> Iterator[Row]:
    """What each row of figures is of, without its accuracy, quickest first."""
    for scheme in (PLAIN_8, PLAIN):
        yield from ({"scheme": scheme, "steps": t, "seed": 0} for t in steps)
    for t in steps:
        for seed in range(SEEDS if t <= LONG else SEEDS_IF_LONG):
            yield from ({"scheme": scheme, "steps": t, "seed": seed} for scheme in (CALIBRATED, CALIBRATED_8))
    for t in compared:
        for scheme in (PLAIN, CALIBRATED, *COMPARISON, FTBC):
            yield {"scheme": scheme, "steps": t, "seed": 0, "images": COMPARED}


def measured(subject: Subject, steps: Sequence[int], compared: Sequence[int], known: Sequence[Row]) -> Iterator[Row]:
    """Each wanted row that is not `known`, with its accuracy, one after the other."""
    have = [{name: value for name, value in row.items() if name != "accuracy"} for row in known]
    whole: dict[str, list[float]] = {}
    fitted: dict[tuple[int, int], SpikingNetwork] = {}
    for row in wanted(steps, compared):
        if row in have:
            continue
        scheme, t, seed, images = row["scheme"], row["steps"], row["seed"], row.get("images")
        if scheme in (CALIBRATED, CALIBRATED_8) and (t, seed) not in fitted:
            fitted[t, seed] = subject.calibrated(seed, t)
        if scheme in (PLAIN, PLAIN_8):
            key = f"{scheme} {images}"
            if key not in whole:  # one run gives all T
                network = subject.network if scheme == PLAIN else subject.in_8_bits(subject.network, seed)
                whole[key] = subject.right(network, max(compared if images else steps), images)
            share = whole[key][t - 1]
        elif scheme == CALIBRATED:
            share = subject.right(fitted[t, seed], t, images)[-1]
        elif scheme == CALIBRATED_8:
            share = subject.right(subject.in_8_bits(fitted[t, seed], seed, t), t)[-1]
        elif scheme == FTBC:
            biased = subject.network.time_biased(subject.training_images(seed, FEWER), t)
            share = subject.compared(lambda x, biased=biased: torch.from_numpy(biased.simulate(x)[-1]))
        else:
            share = subject.compared(lambda x, run=COMPARISON[scheme], t=t: run(subject.network, x, t))
        yield {**row, "accuracy": share}


def percent(values: Sequence[float]) -> str:
    """Mean, and the lowest to the highest if there are several, in percent."""
    if not values:
        return "—"
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f}–{100 * max(values):.2f})"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def tables(name: str, result: dict[str, Any]) -> list[str]:
    """The two tables of one network, and its plain against its published drop."""
    rows, ann = result["rows"], result["ann"]

    def of(scheme: str, t: int, images: int | None = None) -> list[float]:
        which = {"scheme": scheme, "steps": t}
        return [row["accuracy"] for row in rows if which.items() <= row.items() and row.get("images") == images]

    steps = sorted({row["steps"] for row in rows if "images" not in row})
    text = [
        f"## {result['title']}\n",
        f"L = {result['levels']}; {result['images']:,} test images; top-1 accuracy in percent.\n",
        line(["", "ANN", *(f"T = {t}" for t in steps)]),
        line(["---"] * (len(steps) + 2)),
    ]
    if name in PUBLISHED:
        first, others = PUBLISHED[name]
        text.append(
            line(["QCFS as published", f"{first:.2f}", *(f"{others[t]:.2f}" if t in others else "—" for t in steps)])
        )
    for scheme in (PLAIN, PLAIN_8, CALIBRATED, CALIBRATED_8):
        text.append(line([f"ours, {scheme}", f"{100 * ann:.2f}", *(percent(of(scheme, t)) for t in steps)]))
    text += [
        "\nPoints lost against the ANN:\n",
        line(["", *(f"T = {t}" for t in steps)]),
        line(["---"] * (len(steps) + 1)),
    ]
    if name in PUBLISHED:
        text.append(line(["QCFS as published", *(f"{first - others[t]:.2f}" if t in others else "—" for t in steps)]))
    for scheme in (PLAIN, CALIBRATED, CALIBRATED_8):
        lost = [of(scheme, t) for t in steps]
        text.append(line([f"ours, {scheme}", *(f"{100 * (ann - statistics.mean(v)):.2f}" if v else "—" for v in lost)]))
    compared = sorted({row["steps"] for row in rows if "images" in row})
    if compared:
        count = next(row["images"] for row in rows if "images" in row)
        text += [
            f"\nBeside other schemes, at equal total steps, on the first {count:,} test images:\n",
            line(["", *(f"T = {t}" for t in compared)]),
            line(["---"] * (len(compared) + 1)),
        ]
        for scheme in (PLAIN, CALIBRATED, *COMPARISON, FTBC):
            text.append(line([scheme, *(percent(of(scheme, t, count)) for t in compared)]))
    return [*text, ""]


def page(results: dict[str, Any]) -> str:
    """docs/accuracy.md."""
    text = HEAD.format(images=IMAGES, more=MORE, fewer=FEWER).splitlines()
    text.append("")
    for name in DATA:
        if name in results:
            text += tables(name, results[name])
    made = [results[name]["made"] for name in DATA if name in results]
    versions = sorted({", ".join(f"{package} {v}" for package, v in one["packages"].items()) for one in made})
    text.append(f"Made by `benchmarks/accuracy.py` from [accuracy.json](results/accuracy.json); {'; '.join(versions)}.")
    return "\n".join(text) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, save it, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(DATA), help="the trained network to measure")
    parser.add_argument("--folder", type=Path, help="where its data set is")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--compare", type=int, nargs="*", default=COMPARED_STEPS, help="steps of the other schemes")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "accuracy.json")
    parser.add_argument("--page", type=Path, default=DOCS / "accuracy.md")
    chosen = parser.parse_args(arguments)
    results = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    if chosen.name:
        subject = Subject(chosen.name, dataset(DATA[chosen.name], chosen.folder))
        title = (FOLDER / f"{chosen.name}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        weights = hashlib.sha256((FOLDER / f"{chosen.name}.safetensors").read_bytes()).hexdigest()
        if results.get(chosen.name, {}).get("weights") != weights:  # figures of other weights
            results[chosen.name] = {"rows": []}
        result = results[chosen.name]
        result |= {
            "weights": weights,
            "title": title.partition(" with QCFS")[0] + " on " + title.rpartition(" on ")[2],
            "levels": next(module.levels for module in subject.model.modules() if isinstance(module, bridge.QCFS)),
            "images": len(subject.y),
            "ann": accuracy(subject.model, subject.data.test, subject.data),
            "made": {name: value for name, value in environment().items() if name != "command"},  # which names folders
        }
        for row in measured(subject, chosen.steps, chosen.compare, result["rows"]):
            result["rows"].append(row)
            print(row, flush=True)
            with replacing(chosen.out) as file:
                file.write((json.dumps(results, indent=1) + "\n").encode())
    with replacing(chosen.page) as file:
        file.write((page(results)).encode())


if __name__ == "__main__":
    main()
