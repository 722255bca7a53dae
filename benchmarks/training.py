"""Train the networks that come with the package, and the larger ones of the paper, each by its own recipe.

    python benchmarks/training.py resnet20-cifar10 --folder cifar-10-batches-bin --out trained     # 6 hours on 2 cores
    torchrun --nproc-per-node 4 benchmarks/training.py vgg16-cifar10 --folder cifar-10-batches-bin --out trained

A run that was killed goes on when it is called again. With the package's seed, 0, the same torch and as many threads,
the networks that come with the package come out again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.zoo.averaging import average
from bridge.zoo.data import Dataset, dataset
from bridge.zoo.recipes import PAPER, SHORT, Recipe
from bridge.zoo.train import Result, train

QCFS_ALONE = replace(SHORT, relu_epochs=0, cutout=0)
"""The short recipe without ReLU epochs, which compiled QCFS makes needless, and hardly augmented."""
GREY = replace(QCFS_ALONE, flip=False, padding=2)


@dataclass(frozen=True)
class Stage:
    """One run of the trainer.

    Attributes:
        recipe: of it.
        begins: numbers, from 1, of the earlier stages whose weights it begins with; of several, with their mean.
    """

    recipe: Recipe
    begins: tuple[int, ...] = ()


@dataclass(frozen=True)
class Training:
    """How one network is trained: `model` and `data` as `MODELS` and `bridge.zoo.data.dataset` call them."""

    model: str
    data: str
    stages: tuple[Stage, ...]


FINE = replace(QCFS_ALONE, schedule="cosine", learning_rate=0.03)
SPIKING = replace(FINE, distillation=0.9, spiking_steps=4)
PAPER_4 = replace(PAPER, levels=4, precision="auto")

TRAININGS = {
    "digits": Training(
        "digits",
        "digits",
        (Stage(replace(QCFS_ALONE, epochs=60, batch_size=64, flip=False, padding=1, precision="float32")),),
    ),
    "mnist": Training(
        "mnist",
        "mnist",
        (
            Stage(replace(GREY, epochs=10)),
            Stage(replace(GREY, epochs=1, learning_rate=0.02, spiking_steps=4), begins=(1,)),
        ),
    ),
    "resnet20-cifar10": Training(
        "resnet20",
        "cifar10",
        (
            Stage(replace(QCFS_ALONE, epochs=54)),
            Stage(replace(FINE, epochs=18), begins=(1,)),
            Stage(replace(FINE, epochs=12, distillation=0.9), begins=(1, 2)),
            Stage(replace(SPIKING, epochs=4, learning_rate=0.007), begins=(1, 2, 3)),
            Stage(replace(SPIKING, epochs=8, learning_rate=0.01), begins=(1, 2, 3, 4)),
        ),
    ),
    "vgg16-cifar10": Training("vgg16", "cifar10", (Stage(PAPER_4),)),
    "resnet18-cifar10": Training("resnet18", "cifar10", (Stage(PAPER_4),)),
}


def run(training: Training, data: Dataset, out: Path, **options: Any) -> Result:
    """Train through all stages, in folders of `out`; `options` are of `bridge.zoo.train.train`. Returns the last."""
    results: list[Result] = []
    for number, stage in enumerate(training.stages, start=1):
        earlier = [results[k - 1].weights for k in stage.begins]
        initial = earlier[0] if earlier else None
        if len(earlier) > 1:
            initial = average(earlier, data, out / f"before{number}.safetensors")
        results.append(train(training.model, data, stage.recipe, out / f"stage{number}", initial=initial, **options))
    return results[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(TRAININGS))
    parser.add_argument("--folder", type=Path, help="where its data set is")
    parser.add_argument("--out", type=Path, default=Path("trained"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("bridge").setLevel(logging.INFO)
    training = TRAININGS[chosen.name]
    result = run(training, dataset(training.data, chosen.folder), chosen.out / chosen.name, seed=chosen.seed)
    print(f"{result.accuracy:.2%} right: {result.weights}")


if __name__ == "__main__":
    main()
