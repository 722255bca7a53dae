"""Train the networks that come with the package, and the larger ones of the paper, each by its own recipe.

    python benchmarks/training.py resnet20-cifar10 --folder cifar-10-batches-bin --out trained    # 15 minutes on a GPU
    torchrun --nproc-per-node 4 benchmarks/training.py vgg16-cifar10 --folder cifar-10-batches-bin --out trained

A run that was killed goes on when it is called again. With the package's seed, 0, the same torch and as many threads,
the digits' network comes out again, and MNIST's by the recipes on its card: its first run was in bfloat16 and its
second, on a processor without it, in float32, where this script takes for both what the machine has. The ResNet-20 was
trained on a GPU, where sums come in any order, so another run gives another network.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.zoo.data import Dataset, dataset
from bridge.zoo.recipes import PAPER, SHORT, Recipe
from bridge.zoo.training.train import Result, train

QCFS_ALONE = replace(SHORT, relu_epochs=0, cutout=0)
"""The short recipe without ReLU epochs, which compiled QCFS makes needless, and hardly augmented."""
GREY = replace(QCFS_ALONE, flip=False, padding=2)


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes:
        model: as `MODELS` calls it.
        data: as `bridge.zoo.data.dataset` calls it.
        stages: runs, each of which begins with the weights of the one before.
    """

    model: str
    data: str
    stages: tuple[Recipe, ...]


PAPER_4 = replace(PAPER, levels=4, precision="auto")

TRAININGS = {
    "digits": Training(
        "digits",
        "digits",
        (replace(QCFS_ALONE, epochs=60, batch_size=64, flip=False, padding=1, precision="float32"),),
    ),
    "mnist": Training(
        "mnist",
        "mnist",
        (replace(GREY, epochs=10), replace(GREY, epochs=1, learning_rate=0.02, spiking_steps=4)),
    ),
    "resnet20-cifar10": Training(
        "resnet20",
        "cifar10",
        (
            replace(QCFS_ALONE, epochs=150, schedule="cosine", cutout=8),
            replace(QCFS_ALONE, epochs=24, schedule="cosine", learning_rate=0.03, spiking_steps=4, distillation=0.9),
        ),
    ),
    "vgg16-cifar10": Training("vgg16", "cifar10", (PAPER_4,)),
    "resnet18-cifar10": Training("resnet18", "cifar10", (PAPER_4,)),
}


def run(training: Training, data: Dataset, out: Path, **options: Any) -> Result:
    """Train through all stages, in folders of `out`; `options` are those of `train`. Returns the last."""
    initial: Path | None = None
    for number, recipe in enumerate(training.stages, start=1):
        result = train(training.model, data, recipe, out / f"stage{number}", initial=initial, **options)
        initial = result.weights
    return result


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
