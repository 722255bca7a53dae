"""Training ends with the same weights, to the bit, after any interruption, alone and in two processes."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training import (
    STEPS,
    TINY,
    Interruption,
    interrupted_at,
    lines,
    patterns,
    same,
    small_train,
    steps_taken,
    stopping,
)
from torch import nn

import bridge
from bridge.errors import InputError
from bridge.zoo.models import load_weights
from bridge.zoo.training import train as training
from bridge.zoo.training.run_files import CHECKPOINT, WEIGHTS
from bridge.zoo.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = {folders!r}
from test_resuming import killed, run_one_after_the_other
{call}
"""


@pytest.fixture
def script(tmp_path):
    """Writes a program that makes a call of one of this file's functions."""

    def write(call: str) -> Path:
        path = tmp_path / "script.py"
        folders = [str(path) for path in reversed(Path(__file__).parents[:3])]
        path.write_text(SCRIPT.format(folders=folders, call=call), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def whole(request, tmp_path_factory):
    """A recipe, and a run of it that nothing interrupts."""
    recipe = replace(TINY, precision=request.param)
    return recipe, small_train(tmp_path_factory.mktemp("whole"), recipe)


@pytest.mark.parametrize("step", [3, STEPS, 2 * STEPS, 2 * STEPS + 2, 4 * STEPS - 1])
def test_a_resumed_run_ends_with_the_same_weights(step, whole, tmp_path, monkeypatch):
    recipe, expected = whole
    interrupted_at(step, tmp_path, monkeypatch, recipe=recipe, checkpoint_minutes=0.0)
    resumed = small_train(tmp_path, recipe)
    assert same(expected.model, resumed.model)
    for line, other in zip(expected.metrics, resumed.metrics, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}


def test_it_goes_on_from_the_last_checkpoint_and_not_from_the_start(tmp_path, monkeypatch):
    interrupted_at(2 * STEPS + 2, tmp_path, monkeypatch, checkpoint_minutes=0.0)
    steps = steps_taken(monkeypatch)
    small_train(tmp_path)
    assert steps[0] == (2, 2 / STEPS)
    assert len(steps) == 2 * STEPS - 2


def test_without_resume_it_starts_anew(tmp_path, monkeypatch):
    interrupted_at(STEPS + 1, tmp_path, monkeypatch)
    steps = steps_taken(monkeypatch)
    small_train(tmp_path, resume=False)
    assert len(steps) == 4 * STEPS


def test_a_run_that_is_over_is_not_repeated(tmp_path, monkeypatch):
    first = small_train(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    monkeypatch.setattr(training, "learning_rate", stopping(0))
    assert same(small_train(tmp_path).model, first.model)
    assert same(load_weights(tmp_path / WEIGHTS), first.model)


def killed(out: Path, times: int) -> None:
    """Train in a child of this process, and kill it at a random moment after its first checkpoint, so many times."""
    importlib.import_module("torch._dynamo")  # else each child would, for seconds, at its optimiser's first step
    for _ in range(times):
        before = modified(out / CHECKPOINT)
        child = multiprocessing.get_context("fork").Process(
            target=small_train, args=(out,), kwargs={"checkpoint_minutes": 0.0}
        )
        child.start()
        while modified(out / CHECKPOINT) == before and child.is_alive():
            time.sleep(0.01)
        time.sleep(random.random() / 4)
        child.kill()
        child.join()


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path, script):
    """The children are those of a fresh program: this one has threads, which a fork would lose."""
    expected, out = small_train(tmp_path / "whole"), tmp_path / "killed"
    subprocess.run([sys.executable, script("killed(Path(sys.argv[1]), 3)"), out], check=True, timeout=200)
    assert (out / CHECKPOINT).exists()
    assert same(small_train(out).model, expected.model)
    assert len(lines(out)) == TINY.epochs
    assert [path.name for path in out.iterdir() if path.name.startswith(".checkpoint")] == []


def run_one_after_the_other(runs: Iterable[tuple[Path, int]]) -> None:
    """Train into each folder, with a checkpoint after every batch, and raise at a step. The next run survives that.

    Each process keeps the weights that it ends with.
    """
    *earlier, last = runs
    for out, stop_at in earlier:
        with contextlib.suppress(Interruption):
            run_to(out, stop_at)
    run_to(*last)


def run_to(out: Path, stop_at: int) -> None:
    training.learning_rate = stopping(stop_at)  # type: ignore[assignment, attr-defined]
    result = small_train(out, checkpoint_minutes=0.0)
    torch.save(result.model.state_dict(), out / f"rank{os.environ['RANK']}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("resumed_by", ["the same processes", pytest.param("others", marks=pytest.mark.long)])
def test_two_processes_share_the_work_and_can_be_resumed(resumed_by, tmp_path, script):
    def start(*runs: tuple[Path, int]) -> subprocess.CompletedProcess[str]:
        """Of the runs, each of which goes to a step, the last may end both processes."""
        program = script("run_one_after_the_other(zip(map(Path, sys.argv[1::2]), map(int, sys.argv[2::2])))")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program]
        arguments = [str(each) for run in runs for each in run]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200)
        print(done.stderr)  # which pytest shows where the test fails
        return done

    all_of_it, middle = -1, 2 * STEPS + 2
    whole, parts, more = tmp_path / "whole", tmp_path / "parts", tmp_path / "more"
    if resumed_by == "others":
        ended = start((whole, all_of_it), (parts, middle))
        assert (parts / CHECKPOINT).exists()
        assert not (parts / WEIGHTS).exists()
        assert start((parts, all_of_it)).returncode == 0
    else:  # the last run is there to be interrupted
        ended = start((whole, all_of_it), (parts, middle), (parts, all_of_it), (more, 2))
        assert (more / CHECKPOINT).exists()
        assert not (more / WEIGHTS).exists()
    assert ended.returncode != 0
    exits = set(re.findall(r"exitcode *: (-?\d+)", ended.stderr))
    assert "1" in exits, exits
    assert exits <= {"1", "-15"}, exits  # no crash on the way out; the slower one may have been told to end
    weights = [torch.load(whole / f"rank{rank}.pt") for rank in range(2)]
    assert same(*weights)
    assert same(load_weights(whole / WEIGHTS), weights[0])
    assert len(lines(whole)) == TINY.epochs
    assert not same(small_train(tmp_path / "alone").model, weights[0])  # batch norm sees half a batch
    assert same(load_weights(parts / WEIGHTS), weights[0])


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
