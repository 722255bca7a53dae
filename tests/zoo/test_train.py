"""Training: the same to the bit after any interruption, alone and in two processes; its files and its errors."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import BridgeError, InputError
from bridge.zoo import models
from bridge.zoo.data import Dataset, Images
from bridge.zoo.models import load_weights
from bridge.zoo.recipes import PAPER, SHORT, Recipe, learning_rate, recipe_named
from bridge.zoo.training import train as training
from bridge.zoo.training.augment import standard
from bridge.zoo.training.random_numbers import derived
from bridge.zoo.training.run_files import CARD, CHECKPOINT, METRICS, WEIGHTS
from bridge.zoo.training.spiking_steps import SpikingSteps
from bridge.zoo.training.train import train

TINY = Recipe(
    epochs=4,
    batch_size=32,
    learning_rate=0.05,
    schedule="one-cycle",
    threshold=2.0,
    relu_epochs=2,
    padding=1,
    flip=False,
    autoaugment=False,
    cutout=2,
)
STEPS = 5
"""An epoch's, of `patterns`."""

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = {folders!r}
import test_train
for out, stop_at in zip(sys.argv[1::2], sys.argv[2::2]):
    test_train.in_another_process(Path(out), int(stop_at))
"""


class Interruption(Exception):  # noqa: N818 it is no error
    """What stops a run in these tests."""


def patterns(images: int = 170, seed: int = 0) -> Dataset:
    """Ten patterns of 8×8 pixels under noise."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(10, 1, 8, 8, generator=generator)
    parts = []
    for count in (images, 50):
        y = torch.arange(count) % 10
        x = pattern[y] + 0.2 * torch.randn(count, 1, 8, 8, generator=generator)
        parts.append(Images((x * 255).clamp(0, 255).to(torch.uint8), y))
    return Dataset("patterns", *parts, tuple("abcdefghij"), (0.5,), (0.3,))


def small_train(out: Path, recipe: Recipe = TINY, **options) -> training.Result:
    return train("digits", patterns(), recipe, out, **{"compile": False, "device": "cpu", **options})


def in_another_process(out: Path, stop_at: int) -> None:
    """Train, with a checkpoint after every batch, and raise at a step. Each process keeps the weights it ends with."""
    training.learning_rate = stopping(stop_at)
    result = small_train(out, checkpoint_minutes=0.0)
    torch.save(result.model.state_dict(), out / f"rank{os.environ.get('RANK', '0')}.pt")


def stopping(at: int):
    """A `learning_rate` that raises in the step with number `at`, counted from 0."""
    calls = iter(range(10**9))

    def rate(*arguments):
        if next(calls) == at:
            raise Interruption
        return learning_rate(*arguments)

    return rate


def same(one: nn.Module | dict, other: nn.Module | dict) -> bool:
    """Whether two networks have the same weights, to the bit."""
    one, other = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def script(tmp_path):
    """A program that runs `in_another_process`, with a folder and a last step as arguments, or several of both."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(folders=[str(path) for path in Path(__file__).parents[:2]]), encoding="utf-8")
    return path


# Interrupted and resumed


def interrupted_at(step: int, out: Path, monkeypatch, **options) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stopping(step))
        with pytest.raises(Interruption):
            small_train(out, **options)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [3, STEPS, 2 * STEPS, 2 * STEPS + 2, 4 * STEPS - 1])
def test_a_resumed_run_ends_with_the_same_weights(step, precision, tmp_path, monkeypatch):
    recipe = replace(TINY, precision=precision)
    whole = small_train(tmp_path / "whole", recipe)
    interrupted_at(step, tmp_path / "parts", monkeypatch, recipe=recipe, checkpoint_minutes=0.0)
    resumed = small_train(tmp_path / "parts", recipe)
    assert same(whole.model, resumed.model)
    for line, other in zip(whole.metrics, resumed.metrics, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}


def test_it_goes_on_from_the_last_checkpoint_and_not_from_the_start(tmp_path, monkeypatch):
    interrupted_at(2 * STEPS + 2, tmp_path, monkeypatch, checkpoint_minutes=0.0)
    steps = []
    monkeypatch.setattr(training, "learning_rate", lambda *a: steps.append(a[1:]) or learning_rate(*a))
    small_train(tmp_path)
    assert steps[0] == (2, 2 / STEPS)
    assert len(steps) == 2 * STEPS - 2


def test_without_resume_it_starts_anew(tmp_path, monkeypatch):
    interrupted_at(STEPS + 1, tmp_path, monkeypatch)
    steps = []
    monkeypatch.setattr(training, "learning_rate", lambda *a: steps.append(a) or learning_rate(*a))
    small_train(tmp_path, resume=False)
    assert len(steps) == 4 * STEPS


def test_a_run_that_is_over_is_not_repeated(tmp_path, monkeypatch):
    first = small_train(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    monkeypatch.setattr(training, "learning_rate", stopping(0))
    assert same(small_train(tmp_path).model, first.model)
    assert same(load_weights(tmp_path / WEIGHTS), first.model)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path, script):
    whole, out = small_train(tmp_path / "whole"), tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(script), str(out), "-1"])
        before = modified(out / CHECKPOINT)
        while modified(out / CHECKPOINT) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.random() / 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert same(small_train(out).model, whole.model)
    assert len(lines(out)) == TINY.epochs
    assert [path.name for path in out.iterdir() if path.name.startswith(".checkpoint")] == []


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch has deprecated
def test_compiled_it_ends_with_the_same_weights_too(tmp_path, monkeypatch):
    whole = small_train(tmp_path / "whole", compile=True)
    interrupted_at(2 * STEPS + 2, tmp_path / "parts", monkeypatch, compile=True, checkpoint_minutes=0.0)
    assert same(small_train(tmp_path / "parts", compile=True).model, whole.model)
    uncompiled = small_train(tmp_path / "uncompiled")
    for line, other in zip(whole.metrics, uncompiled.metrics, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=0.1)  # dropout has other random numbers


@pytest.mark.slow
def test_two_processes_share_the_work_and_can_be_resumed(tmp_path, script):
    def start(*arguments: object) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, timeout=200)
        print(done.stderr.decode())  # which pytest shows where the test fails
        return done.returncode

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # Two trainings in the same processes, as a network of several stages has them.
    assert start(whole, -1, parts, 2 * STEPS + 2) != 0
    assert (parts / CHECKPOINT).exists()
    assert not (parts / WEIGHTS).exists()
    assert start(parts, -1) == 0
    weights = [torch.load(whole / f"rank{rank}.pt") for rank in range(2)]
    assert same(*weights)
    assert same(load_weights(whole / WEIGHTS), weights[0])
    assert len(lines(whole)) == TINY.epochs
    assert not same(small_train(tmp_path / "alone").model, weights[0])  # batch norm sees half a batch
    assert same(load_weights(parts / WEIGHTS), weights[0])


# What training does


def test_the_seed_decides_everything(tmp_path):
    torch.manual_seed(1)
    one = small_train(tmp_path / "one")
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(following, torch.rand(1))  # the caller's random numbers are untouched
    assert same(one.model, small_train(tmp_path / "two").model)
    assert not same(one.model, small_train(tmp_path / "three", seed=1).model)


def test_every_step_has_random_numbers_of_its_own(tmp_path):
    seen = []

    def augment(x, mean, std, generator, **options):
        seen.append((generator.initial_seed(), tuple(x.flatten().tolist())))
        assert options == {"padding": 1, "flip": False, "autoaugment": False, "cutout": 2}
        return patterns().normalise(x)

    small_train(tmp_path, augment=augment)
    assert len(seen) == 4 * STEPS
    assert len({seed for seed, _ in seen}) == len({images for _, images in seen}) == 4 * STEPS


def test_a_module_is_trained_in_training_mode(tmp_path):
    model = models.build("digits", 10, (1, 8, 8), levels=8, threshold=2.0).eval()
    before = model.norm1.running_mean.clone()
    train(model, patterns(), replace(TINY, epochs=1, relu_epochs=0), tmp_path, compile=False, device="cpu")
    assert not torch.equal(model.norm1.running_mean, before)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize("relu_epochs", [0, 3])
def test_it_learns(schedule, relu_epochs, tmp_path):
    recipe = replace(TINY, epochs=10, relu_epochs=relu_epochs, schedule=schedule, padding=0, cutout=0)
    result = small_train(tmp_path, recipe)
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] / 2
    assert result.accuracy > 0.9
    assert not result.model.training


def observed(out: Path, recipe: Recipe) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """Input, output and λ of a network's QCFS in every training step."""
    seen = []

    def hook(module, arguments, result):
        if module.training:
            seen.append((arguments[0].detach(), result.detach(), module.threshold.item()))

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    model[2].register_forward_hook(hook)
    train(model, patterns(), recipe, out, compile=False, device="cpu")
    return seen


def test_relu_comes_first_and_then_qcfs_with_fitted_thresholds(tmp_path):
    seen = observed(tmp_path, replace(TINY, epochs=3, relu_epochs=2))
    assert len(seen) == 3 * STEPS
    for z, a, threshold in seen[: 2 * STEPS]:
        assert torch.equal(a, z.relu())
        assert threshold == 3.0
    fitted = seen[2 * STEPS][2]
    assert fitted != 3.0
    assert 0 < fitted < max(a.max().item() for _, a, _ in seen[: 2 * STEPS])
    for z, a, threshold in seen[2 * STEPS :]:
        assert len(a.unique()) <= 9
        assert not torch.equal(a, z.relu())
        assert a.max() <= threshold * 1.0001


def test_without_relu_epochs_it_is_qcfs_from_the_start(tmp_path):
    seen = observed(tmp_path, replace(TINY, epochs=1, relu_epochs=0))
    assert seen[0][2] == 3.0
    assert all(len(a.unique()) <= 9 for _, a, _ in seen)


def test_qcfs_stays_in_float32_under_bfloat16(tmp_path):
    for z, a, _ in observed(tmp_path, replace(TINY, epochs=2, relu_epochs=1, precision="bfloat16")):
        assert z.dtype == a.dtype == torch.float32


def test_thresholds_have_a_decay_of_their_own(tmp_path):
    recipe = replace(TINY, epochs=1, relu_epochs=0, weight_decay=0.0)
    spared = observed(tmp_path / "spared", replace(recipe, threshold_weight_decay=0.0))[-1][2]
    decayed = observed(tmp_path / "decayed", replace(recipe, threshold_weight_decay=1.0))[-1][2]
    assert decayed < 0.95 * spared


FINE = replace(TINY, epochs=2, relu_epochs=0, spiking_steps=3, distillation=0.5)


def test_spiking_steps_can_be_resumed_and_leave_batch_norm_its_statistics(tmp_path, monkeypatch):
    first = small_train(tmp_path / "first")
    whole = small_train(tmp_path / "whole", FINE, initial=first.weights)
    options = {"recipe": FINE, "initial": first.weights}
    interrupted_at(STEPS + 2, tmp_path / "parts", monkeypatch, checkpoint_minutes=0.0, **options)
    assert same(small_train(tmp_path / "parts", **options).model, whole.model)
    before, after = first.model.state_dict(), whole.model.state_dict()
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not same(before, after)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch has deprecated
def test_which_steps_spike(tmp_path, monkeypatch):
    seen = []
    own = SpikingSteps.logits
    monkeypatch.setattr(SpikingSteps, "logits", lambda self, f, x: seen.append((self.steps, len(x))) or own(self, f, x))
    first = small_train(tmp_path / "first").weights
    plain = small_train(tmp_path / "plain", FINE, initial=first)
    assert seen == [(3, TINY.batch_size // 3)] * (STEPS // 2) * 2
    compiled = small_train(tmp_path / "compiled", FINE, initial=first, compile=True)
    assert seen[len(seen) // 2 :] == seen[: len(seen) // 2]  # these are not compiled
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(value, compiled.model.state_dict()[name], rtol=0.05, atol=0.02), name
    with pytest.raises(InputError, match="spiking_steps is for fine-tuning: give initial"):
        small_train(tmp_path / "none", FINE)


@pytest.mark.parametrize("levels", [TINY.levels, 2])
def test_distillation_is_from_the_network_that_the_run_began_with(levels, tmp_path):
    """At a rate that changes nothing, the loss is that of the first network under training against itself.

    That has the levels that it was trained with, whatever the recipe's.
    """
    first = small_train(tmp_path / "first")
    batches = []

    def keep(*arguments, **options):
        batches.append(standard(*arguments, **options))
        return batches[-1]

    still = replace(TINY, epochs=1, relu_epochs=0, learning_rate=1e-12, distillation=0.75, levels=levels)
    found = small_train(tmp_path / "second", still, initial=first.weights, augment=keep)
    labels = patterns().train.y[torch.randperm(170, generator=torch.Generator().manual_seed(derived(0, "order", 0)))]
    student = load_weights(first.weights)
    for layer in models.activations(student):
        layer.levels = levels
    expected = []
    for batch, (x, y) in enumerate(zip(batches, labels.split(TINY.batch_size)[:STEPS], strict=True)):
        with torch.no_grad():
            taught = first.model.eval()(x).double().numpy()
            torch.manual_seed(derived(0, "step", 0, batch, 0))  # dropout's
            logits = student.train()(x).double().numpy()
        losses = []
        for of_student, of_teacher, label in zip(logits, taught, y, strict=True):
            chances = np.exp(of_student) / np.exp(of_student).sum()
            soft, teacher = (np.exp(scores / 4) / np.exp(scores / 4).sum() for scores in (of_student, of_teacher))
            divergence = sum(t * np.log(t / s) for t, s in zip(teacher, soft, strict=True))
            losses.append(0.25 * -np.log(chances[label]) + 0.75 * 4**2 * divergence)
        expected.append(np.mean(losses))
    assert found.metrics[0]["loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    with pytest.raises(InputError, match="distillation is from an earlier run's network: give initial"):
        small_train(tmp_path / "none", still)


def calls_of_train(card: str) -> list[tuple[tuple, dict]]:
    """The arguments and options of each call of `train` in a card's "Train it again"."""
    script = card.split("```python\n")[2].split("```")[0]
    calls = []
    record = {"train": lambda *arguments, **options: calls.append((arguments, options)), "folder": "folder"}
    lines = [line for line in script.splitlines() if not line.startswith(("from ", "data = "))]
    exec("\n".join(lines), {**record, "Recipe": Recipe, "data": "data"})
    return calls


def test_it_can_begin_with_given_weights(tmp_path):
    first = small_train(tmp_path / "first")
    recipe = replace(TINY, epochs=1, relu_epochs=0, learning_rate=1e-9, weight_decay=0.0, threshold_weight_decay=0.0)
    second = small_train(tmp_path / "second", recipe, seed=5, initial=first.weights)
    for name, value in first.model.named_parameters():
        assert torch.allclose(value, second.model.state_dict()[name], atol=1e-6), name
    third = small_train(tmp_path / "third", recipe, initial=second.weights)
    card = third.card.read_text()
    assert f"beginning with the weights of a run of 1 epochs ({second.accuracy:.2%})" in card
    calls = calls_of_train(card)
    assert [arguments[:3] for arguments, _ in calls] == [("digits", "data", one) for one in (TINY, recipe, recipe)]
    assert [options["seed"] for _, options in calls] == [0, 5, 0]
    assert "initial" not in calls[0][1]
    for (arguments, _), (_, options) in itertools.pairwise(calls):
        assert options["initial"] == f"{arguments[3]}/{WEIGHTS}"


def test_the_card_defines_the_augmentation_of_ones_own_that_the_run_before_had(tmp_path):
    first = small_train(tmp_path / "first", augment=lambda x, *_, **__: patterns().normalise(x))
    second = small_train(tmp_path / "second", replace(TINY, epochs=1, relu_epochs=0), initial=first.weights)
    assert ["augment" in options for _, options in calls_of_train(second.card.read_text())] == [True, False]


def test_weights_of_another_library_can_be_begun_with(tmp_path):
    model = models.build("digits", 10, (1, 8, 8), 8, 2.0)
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    result = small_train(tmp_path / "out", initial=tmp_path / "theirs.pt")
    assert "beginning with weights of checksum" in result.card.read_text()
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="do not fit"):
        small_train(tmp_path / "out", initial=tmp_path / "other.pt", resume=False)
    with pytest.raises(InputError, match="of another run: initial is"):
        small_train(tmp_path / "out")


def test_held_out_images_are_reported_on_and_not_trained_on(tmp_path):
    result = small_train(tmp_path, held_out=40)
    assert all("test_accuracy" not in line and 0 <= line["held_out_accuracy"] <= 1 for line in result.metrics)
    assert 0 <= result.accuracy <= 1
    assert "40 of the training images held out" in (tmp_path / CARD).read_text()


def test_a_module_that_stops_half_way_gets_its_qcfs_back(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    monkeypatch.setattr(training, "learning_rate", stopping(2))
    with pytest.raises(Interruption):
        train(model, patterns(), TINY, tmp_path, compile=False, device="cpu")
    assert len(model[1](torch.linspace(-1, 5, 100)[:, None]).unique()) == 9
    assert model[1].threshold.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_the_caller_wants_no_gradients(mode, tmp_path):
    with mode():
        without = small_train(tmp_path / "without")
    assert same(without.model, small_train(tmp_path / "with").model)


def test_thresholds_of_channels_that_no_image_has_been_through(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0, per_channel=True), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    train(model, patterns(), TINY, tmp_path, compile=False, device="cpu")
    assert len(model[1].threshold.detach().flatten().unique()) == 8


def test_the_teacher_has_qcfs_in_float32_too(tmp_path):
    seen = []

    class Watched(bridge.QCFS):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.threshold.requires_grad, x.dtype))
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(1, 8, 3), Watched(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.save(model.state_dict(), tmp_path / "first.pt")
    recipe = replace(TINY, relu_epochs=0, precision="bfloat16", distillation=0.5)
    train(model, patterns(), recipe, tmp_path / "out", initial=tmp_path / "first.pt", compile=False, device="cpu")
    assert (False, torch.float32) in seen  # the teacher's λ rests
    assert {dtype for _, dtype in seen} == {torch.float32}


# What it leaves


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def test_metrics_are_lines_of_json(tmp_path):
    result = small_train(tmp_path, evaluate_every=3)
    assert lines(tmp_path) == result.metrics
    (tmp_path / METRICS).unlink()  # as if killed before they were written, but after the checkpoint was
    small_train(tmp_path, evaluate_every=3)
    assert lines(tmp_path) == result.metrics
    assert [line["epoch"] for line in result.metrics] == [1, 2, 3, 4]
    assert [line["activation"] for line in result.metrics] == ["relu", "relu", "qcfs", "qcfs"]
    assert [line["test_accuracy"] is None for line in result.metrics] == [True, True, False, False]
    assert result.metrics[-1]["test_accuracy"] == result.accuracy
    assert all(line["learning_rate"] > 0 and line["seconds"] >= 0 for line in result.metrics)


def test_weights_come_back_as_the_network(tmp_path):
    recipe = replace(TINY, levels=4, epochs=1, relu_epochs=0)
    result = small_train(tmp_path, recipe)
    loaded = load_weights(tmp_path / WEIGHTS)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), result.model(x))
    assert not loaded.training
    assert {module.levels for module in loaded.modules() if isinstance(module, bridge.QCFS)} == {4}


def test_the_card_says_how_to_train_it_again(tmp_path):
    result = small_train(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert f"{result.accuracy:.2%}" in card
    assert f"| epochs | {TINY.epochs} |" in card
    recipe = next(line for line in card.splitlines() if line.startswith("recipe = "))
    assert eval(recipe.removeprefix("recipe = "), {"Recipe": Recipe}) == TINY
    assert str(tmp_path) not in card


def test_the_card_of_a_module_of_ones_own(tmp_path):
    def shifted(*arguments, **options):
        return standard(*arguments, **options)

    model = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    result = train(model, patterns(), TINY, tmp_path, augment=shifted, compile=False, device="cpu")
    card = result.card.read_text()
    assert "means [0.5] and standard deviations [0.3]" in card
    use, again = (part.split("```")[0] for part in card.split("```python\n")[1:])
    compile(again, "card", "exec")
    assert "model = ...  # your Sequential" in again
    assert again.splitlines()[-1] == 'train(model, data, recipe, "out", seed=0, augment=augment, compile=False)'
    other = nn.Sequential(nn.Conv2d(1, 8, 3), bridge.QCFS(8, 3.0), nn.Flatten(), nn.Linear(8 * 36, 10))
    images = torch.rand(2, 1, 8, 8)
    exec(use.replace(WEIGHTS, str(result.weights)), found := {"model": other, "images": images})
    assert same(found["model"], model)
    assert found["network"].run(images, 2).readout.shape == (2, 2, 10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mnist", (1, 28, 28)), ("digits", (1, 8, 8)), ("resnet20", (3, 32, 32)), ("resnet18", (3, 32, 32))],
)
def test_the_zoo_by_name(name, shape):
    model = models.build(name, 10, shape, levels=4, threshold=3.0).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 10)
    activations = [module for module in model.modules() if isinstance(module, bridge.QCFS)]
    assert {(module.levels, module.threshold.item()) for module in activations} == {(4, 3.0)}


def test_the_small_network_converts():
    x = torch.rand(2, 1, 28, 28)
    model = models.build("mnist", 10, (1, 28, 28), levels=4, threshold=2.0).eval()
    assert bridge.convert(model, x).run(x, 4).readout.shape == (4, 2, 10)


# Recipes


def test_the_papers_recipe():
    assert (PAPER.epochs, PAPER.learning_rate, PAPER.momentum, PAPER.weight_decay) == (300, 0.1, 0.9, 5e-4)
    assert (PAPER.schedule, PAPER.threshold, PAPER.cutout, PAPER.autoaugment) == ("cosine", 8.0, 16, True)
    rates = [learning_rate(PAPER, epoch, 0.5) for epoch in range(300)]
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=300)
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_one_cycle_runs_once_for_each_part():
    rates = [learning_rate(SHORT, epoch, done / 10) for epoch in range(SHORT.epochs) for done in range(10)]
    parts = rates[: SHORT.relu_epochs * 10], rates[SHORT.relu_epochs * 10 :]
    for part, peak in zip(parts, (SHORT.learning_rate, SHORT.fine_tuning_rate), strict=True):
        assert max(part) == pytest.approx(peak)
        assert part[0] < peak / 10
        assert part[-1] < peak / 1000


def test_changes_to_a_recipe():
    assert recipe_named("short", ["epochs=9", "relu_epochs=0", "flip=false", "schedule=cosine", "momentum=0.8"]) == (
        replace(SHORT, epochs=9, relu_epochs=0, flip=False, schedule="cosine", momentum=0.8)
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shorter", "epochs=3", "recipe 'shorter': expected one of paper, short"),
        ("short", "epoch=3", "where name is one of epochs"),
        ("short", "epochs", "expected name=value"),
        ("short", "epochs=many", "epochs must be a whole number, got 'many'"),
        ("short", "flip=perhaps", "flip must be true or false"),
        ("short", "schedule=linear", "schedule must be one of cosine, one-cycle"),
        ("short", "momentum=1", "momentum must be at least 0 and below 1, got 1.0"),
        ("short", "relu_epochs=40", "relu_epochs must be at least 0 and below epochs, got 40"),
        ("short", "learning_rate=nan", "learning_rate must be positive, got nan"),
        ("short", "cutout=-1", "cutout must be at least 0"),
        ("short", "distillation=1.5", "distillation must be from 0 to 1, got 1.5"),
    ],
)
def test_a_bad_recipe(name, change, message):
    with pytest.raises(InputError, match=message):
        recipe_named(name, [change])


def test_a_recipe_of_the_wrong_kind():
    with pytest.raises(InputError, match=r"epochs must be int, got 2\.5"):
        replace(SHORT, epochs=2.5)
    with pytest.raises(InputError, match="flip must be bool, got 1"):
        replace(SHORT, flip=1)


# Errors


def test_a_checkpoint_of_another_run(tmp_path):
    small_train(tmp_path)
    with pytest.raises(InputError, match=r"seed is 0 there, 1 here; recipe.levels is 8 there, 4 here.*resume=False"):
        small_train(tmp_path, replace(TINY, levels=4), seed=1)
    with pytest.raises(InputError, match=r"images is \d+ there, \d+ here"):
        train("digits", patterns(seed=1), TINY, tmp_path, compile=False, device="cpu")
    with pytest.raises(InputError, match=r"mean is \[0\.5\] there, \[0\.4\] here"):
        train("digits", replace(patterns(), mean=(0.4,)), TINY, tmp_path, compile=False, device="cpu")


def test_a_checkpoint_of_another_module_of_ones_own(tmp_path):
    def model(rate: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), bridge.QCFS(8, 3.0), nn.Dropout(rate), nn.Linear(8, 10))

    first = train(model(0.1), patterns(), TINY, tmp_path, compile=False, device="cpu").model
    again = train(first, patterns(), TINY, tmp_path, compile=False, device="cpu").model
    assert again is first
    with pytest.raises(InputError, match=r"of another run: layers is '\w+' there, '\w+' here"):
        train(model(0.2), patterns(), TINY, tmp_path, compile=False, device="cpu")


def test_a_run_that_was_begun_anew_does_not_go_on_from_the_one_before(tmp_path, monkeypatch):
    small_train(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", stopping(0))
        with pytest.raises(Interruption):
            small_train(tmp_path, resume=False)
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint(damage, tmp_path):
    small_train(tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of a run, or damaged .*resume=False"):
        small_train(tmp_path)


def test_a_checkpoint_of_another_network(tmp_path):
    small_train(tmp_path)
    content = torch.load(tmp_path / CHECKPOINT)
    del content["model"]["readout.bias"]
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="damaged"):
        small_train(tmp_path)


def test_a_loss_that_is_not_finite(tmp_path):
    message = r"loss became (nan|inf) in epoch 1, batch \d; .*Last checkpoint: .*checkpoint.pt, after epoch 0 and"
    with pytest.raises(BridgeError, match=message):
        small_train(tmp_path, replace(TINY, learning_rate=1e30), checkpoint_minutes=0.0)


def test_weights_that_the_last_step_of_an_epoch_ruined_are_not_kept(tmp_path, monkeypatch):
    rates = iter([0.05] * (4 * STEPS - 1) + [math.inf])
    monkeypatch.setattr(training, "learning_rate", lambda *_: next(rates))
    with pytest.raises(BridgeError, match=r"weights are no longer finite; .*checkpoint\.pt, after epoch 3$"):
        small_train(tmp_path)
    kept = torch.load(tmp_path / CHECKPOINT)["model"]
    assert all(value.isfinite().all() for value in kept.values())
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("relu_epochs", [0, 1])
def test_thresholds_that_do_not_learn_rest(relu_epochs, tmp_path):
    model = models.build("digits", 10, (1, 8, 8), levels=8, threshold=2.0)
    thresholds = [module.threshold.requires_grad_(False) for module in models.activations(model)]
    train(model, patterns(), replace(TINY, relu_epochs=relu_epochs), tmp_path, compile=False, device="cpu")
    assert not any(threshold.requires_grad for threshold in thresholds)
    if not relu_epochs:  # else they were fitted to the data
        assert all((threshold == 2.0).all() for threshold in thresholds)


@pytest.mark.parametrize(
    ("model", "recipe", "options", "message"),
    [
        ("resnet5", TINY, {}, "model 'resnet5': expected one of resnet18"),
        ("resnet20", TINY, {}, r"resnet20 does not take images \[1, 8, 8\]"),
        ("vgg16", TINY, {}, r"vgg16: it does not take images \[1, 8, 8\]: .*multiple of 32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), TINY, {}, "Sequential has no QCFS"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9), bridge.QCFS(8)), TINY, {}, r"gives \[9\] values .* 10 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), bridge.QCFS(4)), TINY, {}, r"has L = \[4\], the recipe L = 8"),
        ("digits", replace(TINY, batch_size=200), {}, "batch_size = 200, but there are only 170"),
        ("digits", TINY, {"held_out": 170}, "held_out from 0 to 169; got 1 and 170"),
        ("digits", TINY, {"evaluate_every": 0}, "evaluate_every must be at least 1"),
    ],
)
def test_bad_input(model, recipe, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(model, patterns(), recipe, tmp_path, compile=False, device="cpu", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        small_train(tmp_path / "file" / "out")


def test_weights_of_something_else(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"cannot be read|not weights"):
        load_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"not weights that bridge\.zoo\.training\.train wrote"):
        load_weights(tmp_path / "other.safetensors")
    observed(tmp_path, replace(TINY, epochs=1, relu_epochs=0))
    with pytest.raises(InputError, match=r"holds weights of Sequential; make that module and use"):
        load_weights(tmp_path / WEIGHTS)


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(BridgeError, match="pip install"):
        small_train(tmp_path)
