"""What a training run has on disk beside its weights: the checkpoint, what the weights file says, the model card."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bridge._util.environment import environment
from bridge._util.pickles import expect_checkpoint_in_bounds
from bridge.errors import InputError
from bridge.zoo.models import MODELS, require_safetensors
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.augment import standard
from bridge.zoo.training.plan import Metrics, Plan

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
CARD = "card.md"
"""What a run leaves in its folder."""


def read_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint at `path`, on the CPU; None if there is none.

    Raises `InputError` if it is damaged, or of a run with other `settings`.
    """
    if not path.exists():
        return None
    try:
        expect_checkpoint_in_bounds(path)
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = dict(json.loads(loaded["settings"]))
    except Exception as error:
        raise damaged(path, error) from error
    differing = [
        f"{name} is {theirs.get(name)!r} there, {settings.get(name)!r} here"
        for name in {**theirs, **settings}
        if theirs.get(name) != settings.get(name)
    ]
    if differing:
        raise InputError(
            f"{path}: is of another run: {'; '.join(differing)}. Write to another folder, or start anew with "
            "resume=False (on the command line: delete that file)"
        )
    return loaded


def damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(
        f"{path}: not a checkpoint of a run, or damaged ({reason}); delete it, or start anew with resume=False"
    )


def runs_of(path: Path) -> list[dict[str, str]]:
    """The runs that made the weights in the file at `path`, each of which began with the weights of the one before.

    Each is what `weights_metadata` said of it, with the checksum of its weights. Of weights that no run wrote there is
    a checksum alone.
    """
    if path.suffix != ".safetensors":
        return [{"crc32": f"{zlib.crc32(path.read_bytes()):08x}"}]
    checksum = 0  # of the tensors: what else is in the file comes in another order each time it is written
    with require_safetensors().safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            checksum = zlib.crc32(file.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes(), checksum)
        found = file.metadata() or {}
    earlier: list[dict[str, str]] = json.loads(found.pop("earlier", "[]"))
    return [*earlier, {"crc32": f"{checksum:08x}", **found}]


def weights_metadata(plan: Plan, measured: float) -> dict[str, str]:
    """What makes the network again, and what it is worth."""
    return {
        **({"earlier": json.dumps(plan.earlier)} if plan.earlier else {}),
        "model": plan.name,
        "classes": json.dumps(plan.dataset.classes),
        "shape": json.dumps(list(plan.dataset.train.x.shape[1:])),
        "data": plan.dataset.name,
        "mean": json.dumps(plan.dataset.mean),
        "std": json.dumps(plan.dataset.std),
        "recipe": json.dumps(asdict(plan.recipe)),
        "seed": str(plan.seed),
        "options": _options(plan),
        "accuracy": f"{measured:.4f}",
    }


def model_card(plan: Plan, metrics: Metrics, measured: float) -> str:
    """The model card, Markdown."""
    made, recipe = environment(), asdict(plan.recipe)
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    held_out = f", {plan.held_out} of the training images held out" if plan.held_out else ""
    minutes = sum(line["seconds"] for line in metrics) / 60
    shape = ", ".join(map(str, plan.dataset.train.x.shape[1:]))
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    ours = plan.name in MODELS
    model = repr(plan.name) if ours else "model"
    before, initial = _calls(plan.earlier, model)
    yours = "" if ours else f"model = ...  # your {plan.name}\n"
    options = _options(plan) + initial
    if "augment=augment" in before + options:
        yours += "augment = ...  # yours\n"
    loader = "from bridge.zoo.models import load_weights" if ours else "from bridge import load_checkpoint"
    use = f'load_weights("{WEIGHTS}")' if ours else f'load_checkpoint(model, "{WEIGHTS}")  # your {plan.name}'
    mean, std = ([round(value, 6) for value in values] for values in (plan.dataset.mean, plan.dataset.std))
    return f"""# {plan.name} with QCFS, L = {plan.recipe.levels}, on {plan.dataset.name}

Accuracy on the {len(plan.dataset.test.y)} test images: **{measured:.2%}**, of the network after the last epoch; nothing
was chosen by the test images{held_out}.

Trained for {plan.recipe.epochs} epochs in {minutes:.0f} minutes on {plan.group.size} × {plan.group.device.type}
({torch.get_num_threads()} threads each) with seed {plan.seed}{_began(plan.earlier)};
Python {made["python"]}, {packages}; {made["system"]}.

## Use

```python
import bridge
{loader}

model = {use}
network = bridge.convert(model, images)
```

`images` are float32 [B, {shape}], (pixel / 255 − mean) / std with the means {mean} and standard deviations {std} of the
channels.

## Train it again

```python
from bridge.zoo.data import dataset
from bridge.zoo.recipes import Recipe
from bridge.zoo.training.train import train

data = dataset({plan.dataset.name!r}, folder)  # where its files are
{yours}{before}recipe = {plan.recipe!r}
train({model}, data, recipe, "out", seed={plan.seed}{options})
```

| recipe | |
|---|---|
{rows}
"""


def _began(earlier: list[dict[str, str]]) -> str:
    """What a run began with, for its card."""
    if not earlier:
        return ""
    last = earlier[-1]
    if "recipe" in last:
        epochs = json.loads(last["recipe"])["epochs"]
        return f", beginning with the weights of a run of {epochs} epochs ({float(last['accuracy']):.2%})"
    return f", beginning with weights of checksum {last['crc32']}"


def _options(plan: Plan) -> str:
    """The options of `train` that the final weights depend on, as a call has them."""
    held_out = f", held_out={plan.held_out}" if plan.held_out else ""
    augment = "" if plan.augment is standard else ", augment=augment"
    return f"{held_out}{augment}, compile={plan.compile}"


def _calls(earlier: list[dict[str, str]], model: str) -> tuple[str, str]:
    """The calls that make the weights a run began with, and the option that gives it them."""
    calls = initial = ""
    for run in earlier:
        name = f"out-{run['crc32']}"
        if "recipe" in run:
            calls += f"recipe = {Recipe(**json.loads(run['recipe']))!r}\n"
            calls += f"train({model}, data, recipe, {name!r}, seed={run['seed']}{run.get('options', '')}{initial})\n"
            name = f"{name}/{WEIGHTS}"
        else:
            calls += f"# {name}: weights of your own\n"
        initial = f", initial={name!r}"
    return calls, initial
