"""What a training run has on disk beside its weights: the checkpoint, what the weights file says, the model card."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridge.environment import environment
from bridge.errors import InputError
from bridge.zoo.models import MODELS, require_safetensors
from bridge.zoo.recipes import Recipe

if TYPE_CHECKING:
    from bridge.zoo.train import Metrics, Plan

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
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = json.loads(loaded["settings"])
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
            "resume=False"
        )
    return loaded


def damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path}: not a checkpoint of a run, or damaged ({reason}); start anew with resume=False")


def earlier_run(path: Path) -> dict[str, str]:
    """Of weights that a run begins with: their checksum, and what `weights_metadata` said of them, if it wrote them."""
    if path.suffix != ".safetensors":
        return {"crc32": f"{zlib.crc32(path.read_bytes()):08x}"}
    checksum = 0  # of the tensors: what else is in the file comes in another order each time it is written
    with require_safetensors().safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            checksum = zlib.crc32(file.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes(), checksum)
        return {"crc32": f"{checksum:08x}", **(file.metadata() or {})}


def weights_metadata(plan: Plan, measured: float) -> dict[str, str]:
    """What makes the network again, and what it is worth."""
    initial = {} if plan.initial is None else {"initial": json.dumps(plan.initial)}
    return {
        **initial,
        "model": plan.name,
        "classes": json.dumps(plan.dataset.classes),
        "shape": json.dumps(list(plan.dataset.train.x.shape[1:])),
        "data": plan.dataset.name,
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
    model = repr(plan.name) if plan.name in MODELS else f"model  # your {plan.name}"
    earlier, initial = _earlier(plan.initial, model)
    before = "".join(earlier)
    averaging = "from bridge.zoo.averaging import average\n" if "average(" in before else ""
    return f"""# {plan.name} with QCFS, L = {plan.recipe.levels}, on {plan.dataset.name}

Accuracy on the {len(plan.dataset.test.y)} test images: **{measured:.2%}**, of the network after the last epoch; nothing
was chosen by the test images{held_out}.

Trained for {plan.recipe.epochs} epochs in {minutes:.0f} minutes on {plan.group.size} × {plan.group.device.type}
({torch.get_num_threads()} threads each) with seed {plan.seed}{_began(plan.initial)};
Python {made["python"]}, {packages}; {made["system"]}.

## Use

```python
import bridge
from bridge.zoo.models import load_weights

network = bridge.convert(load_weights("{WEIGHTS}"), images)  # float32 [B, {shape}], normalised as in training
```

## Train it again

```python
{averaging}from bridge.zoo.data import dataset
from bridge.zoo.recipes import Recipe
from bridge.zoo.train import train

data = dataset({plan.dataset.name!r}, folder)
{before}recipe = {plan.recipe!r}
train({model}, data, recipe, "out", seed={plan.seed}{_options(plan)}{initial})
```

| recipe | |
|---|---|
{rows}
"""


def _began(initial: dict[str, str] | None) -> str:
    """What a run began with, for its card."""
    if initial is None:
        return ""
    if "mean_of" in initial:
        runs = [_run(run) for run in json.loads(initial["mean_of"])]
        return f", beginning with the mean of the weights of {len(runs)} runs, of {', '.join(runs[:-1])} and {runs[-1]}"
    if "recipe" in initial:
        return f", beginning with the weights of a run of {_run(initial)}"
    return f", beginning with weights of checksum {initial['crc32']}"


def _run(initial: dict[str, str]) -> str:
    """How long a run was, and how good its network."""
    return f"{json.loads(initial['recipe'])['epochs']} epochs ({float(initial['accuracy']):.2%})"


def _options(plan: Plan) -> str:
    """The options of `train` that the final weights depend on, as a call has them."""
    return (f", held_out={plan.held_out}" if plan.held_out else "") + f", compile={plan.compile}"


def _earlier(initial: dict[str, str] | None, model: str) -> tuple[list[str], str]:
    """The calls that make the weights a run began with, first to last, and the option that gives it them."""
    if initial is None:
        return [], ""
    name = f"out-{initial['crc32']}"
    if "mean_of" in initial:
        runs = [_earlier(run, model) for run in json.loads(initial["mean_of"])]
        files = ", ".join(option.partition("=")[2] for _, option in runs)
        call = f"average([{files}], data, '{name}.safetensors')\n"
        return [*dict.fromkeys(step for steps, _ in runs for step in steps), call], f", initial='{name}.safetensors'"
    if "recipe" not in initial:
        return [f"# {name}: weights of your own\n"], f", initial={name!r}"
    steps, option = _earlier(json.loads(initial.get("initial", "null")), model)
    recipe = Recipe(**json.loads(initial["recipe"]))
    options = f"seed={initial['seed']}{initial.get('options', '')}{option}"
    call = f"recipe = {recipe!r}\ntrain({model}, data, recipe, {name!r}, {options})\n"
    return [*steps, call], f", initial='{name}/{WEIGHTS}'"
