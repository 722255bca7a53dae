"""The mean of networks that one training run went through: often better than each of them on images it has not seen.

A learning rate that starts high again leads from one good network to another one near by, and the mean of the two lies
deeper in the valley that both are at the rim of (Izmailov et al., "Averaging weights leads to wider optima and better
generalization", UAI 2018).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from bridge.errors import InputError
from bridge.zoo.augment import standard
from bridge.zoo.models import load_weights, save_weights
from bridge.zoo.recipes import Recipe
from bridge.zoo.run_files import runs_of

if TYPE_CHECKING:
    from bridge.zoo.data import Dataset

IMAGES, AT_ONCE = 10_000, 250
"""Training images that batch norm's statistics of the mean are measured on, and how many together."""


def average(weights: Sequence[str | Path], dataset: Dataset, out: str | Path) -> Path:
    """Write the mean of the networks in the files `weights` to the file `out`, for `train` to begin with.

    Args:
        weights: files that `train` wrote, of one model, the later ones trained from the earlier ones: networks that
            were trained apart have no use for each other's weights.
        dataset: what they were trained on; batch norm's statistics are measured anew on its training images,
            augmented as the last of these runs did.
        out: a safetensors file.

    Raises:
        InputError: there are fewer than two files, or they are not of one model; a file cannot be read or written.
    """
    try:
        histories = [runs_of(Path(path)) for path in weights]
    except OSError as error:
        raise InputError(f"average: {error.filename}: cannot be read: {error.strerror or error}") from error
    runs = [history[-1] for history in histories]
    if len(runs) < 2:
        raise InputError(f"average: expected at least two weights files, got {len(runs)}")
    kinds = {(run.get("model"), run.get("classes"), run.get("shape")) for run in runs}
    if len(kinds) > 1:
        raise InputError(f"average: expected networks of one model and data set, got {sorted(map(str, kinds))}")
    models = [load_weights(path) for path in weights]
    states = [model.state_dict() for model in models]
    mean = models[0]
    mean.load_state_dict(
        {
            name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
            for name, value in states[0].items()
        }
    )
    update_bn(_augmented(dataset, Recipe(**json.loads(runs[-1]["recipe"]))), mean.train())
    about = {name: runs[-1][name] for name in ("model", "classes", "shape", "data", "recipe")}
    earlier = {run["crc32"]: run for history in histories for run in history}  # each once, before those it began
    about |= {"mean_of": json.dumps([run["crc32"] for run in runs]), "earlier": json.dumps([*earlier.values()])}
    save_weights(Path(out), mean.eval(), about)
    return Path(out)


def _augmented(dataset: Dataset, recipe: Recipe) -> Iterator[Tensor]:
    """Training images as `recipe` changes them, which is what batch norm's statistics are of."""
    generator = torch.Generator().manual_seed(0)
    for some in torch.randperm(len(dataset.train.x), generator=generator)[:IMAGES].split(AT_ONCE):
        yield standard(
            dataset.train.x[some],
            dataset.mean,
            dataset.std,
            generator,
            **recipe.augmentation,
        )
