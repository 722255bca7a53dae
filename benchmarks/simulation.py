"""How fast a converted network is simulated, here and elsewhere, in what memory, and how long its conversion takes.

    python benchmarks/simulation.py --out --markdown
    python benchmarks/simulation.py --networks resnet20 --steps 8 --batches 32 --parts speed

Networks of random weights, scaled so that neurons of all layers fire, in float32 and in whole numbers. In each round
every contender of a case is timed once, one after the other, so that a disturbance hits all alike; ratios are taken
within a round. Before that, int8 spikes are held against the reference: they must be equal, or nothing is timed.

A contender whose one run takes longer than the limit, measured or estimated from a smaller case, is left out of it.
Memory is the peak of one run beyond what the process held before, in a process of its own, on a network that has run
once.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from contenders import (
    ANN,
    CONTENDERS,
    FLOAT32,
    INT8,
    MEMORY_BATCH,
    SUBJECTS,
    MissingError,
    Networks,
    Run,
    contenders,
    networks,
)
from simulation_page import page
from torch import Tensor, nn

import bridge
from bridge._util.progress import progress
from bridge.graph import IntegrateFire
from bridge.network import SpikingNetwork
from bridge.prepare.qcfs import QCFS
from bridge.records import SpikeRecord, differing
from bridge.simulate.engine.kernels import has_int8
from bridge.simulate.reference import simulate

DOCS = Path(__file__).parent.parent / "docs"
STEPS, BATCHES, ROUNDS, LIMIT = (1, 4, 8, 32), (1, 32), 5, 30.0
PARTS = ("speed", "memory", "conversion")
CHECK_IMAGES, CHECK_STEPS = 2, 4
MEMORY_STEPS = (8, 16, 32)
LAVA_CASE = ("digits", 8, 32)
"""Lava's stock processes take minutes for anything larger."""
SHORT, MOST_CALLS = 0.05, 200
"""A run shorter than so many seconds is timed as several in a row, at most so many: clocks and caches are noisy."""

REST = 0.1
"""Seconds between two contenders: threads of the one before spin for a while, waiting for more to do."""

PACKAGES = ("torch", "numpy", "numba", "spikingjelly", "snntorch", "sinabs", "onnxruntime", "lava-nc")

Past = dict[str, list[tuple[int, float]]]
"""By contender, how much work (T times images) took how many seconds, in the order in which it was measured."""


class WrongSpikesError(Exception):
    """The engine's int8 spikes are not the reference's: its speed is worth nothing."""


# --- right before fast


def check(subject: Networks, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Hold the engine's spikes against the reference's, and the others' outputs.

    Raises `WrongSpikesError` if a single spike or output of the network in whole numbers is another.
    """
    few = slice(0, CHECK_IMAGES)
    right = subject.whole.run(subject.pixels[few], CHECK_STEPS)
    record = subject.whole.simulate(subject.pixels[few], CHECK_STEPS, record=True).record
    wrong = _total(differing(right, record))
    if wrong or not np.array_equal(right.readout, record.readout):
        raise WrongSpikesError(f"{INT8}: {wrong} spikes, or outputs, are not those of the reference")
    reference = subject.floating.run(subject.images[few], CHECK_STEPS)
    record = subject.floating.simulate(subject.images[few], CHECK_STEPS, record=True).record
    rates = {layer: float(reference.spikes(layer).mean()) for layer in reference.layers}
    outputs = reference.outputs()[-1]
    apart = _total(differing(reference, record))
    ties, distance = origins(subject.floating, subject.images[few], record) if apart else (0, 0.0)
    others = [name for name in runs if name not in (INT8, ANN, "lava-fixed")]
    return {
        "images": CHECK_IMAGES,
        "steps": CHECK_STEPS,
        "spikes compared": subject.floating.graph.neurons * CHECK_IMAGES * CHECK_STEPS,
        "int8 spikes that differ": wrong,
        "float spikes that differ": apart,
        "of these by themselves": ties,
        "largest distance from the level": distance,
        "mean rate": statistics.fmean(rates.values()),
        "silent layers": [layer for layer, rate in rates.items() if rate == 0],
        "largest difference of an output": {
            name: float(np.abs(np.asarray(runs[name](CHECK_STEPS, CHECK_IMAGES)) - outputs).max()) for name in others
        },
    }


def origins(network: SpikingNetwork, x: Tensor, record: SpikeRecord) -> tuple[int, float]:
    """How many spikes of `record` are wrong by themselves, and how far from the level their potentials are, at most.

    By themselves: given what `record` says each layer heard and fired, the reference decides otherwise. All others
    follow from these. The distance is that of the potential in float64: rounding alone explains only a small one.
    """
    expected = simulate(network.graph, x, record.steps, heard=record)
    exact = simulate(network.graph, x.double(), record.steps, membranes=True, heard=record)
    count, distance = 0, 0.0
    for name in network.layers:
        wrong = record.spikes(name) != expected.spikes(name)
        layer = network.graph[name]
        assert isinstance(layer, IntegrateFire)
        level = layer.level.reshape(-1, *[1] * (wrong.ndim - 3))
        count += int(wrong.sum())
        distance = max(distance, float(np.abs(exact.membranes[name] - level)[wrong].max(initial=0.0)))
    return count, distance


def _total(counts: Mapping[str, Any]) -> int:
    return int(sum(values.sum() for values in counts.values()))


# --- times


def estimate(past: Sequence[tuple[int, float]], work: int) -> float | None:
    """Seconds that `work` will take, in proportion to the largest measured that is not larger; None without one."""
    smaller = [entry for entry in past if entry[0] <= work]
    if not smaller:
        return None
    done, seconds = max(smaller, key=lambda entry: entry[0])
    return seconds * work / done


def calls_for(seconds: float) -> int:
    """How many runs of `seconds` are timed as one."""
    return max(1, min(MOST_CALLS, math.ceil(SHORT / max(seconds, 1e-9))))


def timed(run: Run, steps: int, batch: int, calls: int = 1) -> float:
    """Seconds of one of `calls` runs."""
    start = time.perf_counter()
    for _ in range(calls):
        run(steps, batch)
    return (time.perf_counter() - start) / calls


def race(
    runs: Mapping[str, Run], steps: int, batch: int, rounds: int, limit: float, past: Past
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time all `runs` in turn: seconds of each round by contender, and why each of the others was left out.

    What a run took is added to `past`, from which later cases are estimated.
    """
    calls: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name, run in runs.items():
        work = batch if name == ANN else steps * batch  # the ANN runs once, whatever T is
        expected = estimate(past.get(name, ()), work)
        if expected is not None and expected > limit:
            left_out[name] = f"about {expected:.0f} s a run"
            continue
        warm = timed(run, steps, batch)
        if warm > limit:
            left_out[name] = f"{warm:.0f} s a run"
            past.setdefault(name, []).append((work, warm))
        else:
            calls[name] = calls_for(warm)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, count in calls.items():
            time.sleep(REST)
            seconds[name].append(timed(runs[name], steps, batch, count))
    for name, values in seconds.items():
        work = batch if name == ANN else steps * batch
        past.setdefault(name, []).append((work, statistics.median(values)))
    if ANN in seconds:
        seconds[ANN] = [steps * value for value in seconds[ANN]]
    return seconds, left_out


def speed(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Images a second of runs of `batch` images: median, lowest and highest of the rounds."""
    values = [batch / value for value in seconds]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(seconds: Mapping[str, Sequence[float]], of: str) -> dict[str, float]:
    """How many times as fast `of` is as each of the others: the median over rounds of the ratios within a round."""
    if of not in seconds:
        return {}
    return {
        name: statistics.median(other / own for own, other in zip(seconds[of], values, strict=True))
        for name, values in seconds.items()
        if name != of
    }


def case(steps: int, batch: int, seconds: Mapping[str, list[float]], left_out: Mapping[str, str]) -> dict[str, Any]:
    """One entry of the results."""
    return {
        "steps": steps,
        "batch": batch,
        "seconds": dict(seconds),
        "images_per_second": {name: speed(values, batch) for name, values in seconds.items()},
        "ratios": {engine: ratios(seconds, engine) for engine in (INT8, FLOAT32)},
        "left_out": dict(left_out),
    }


def speeds(key: str, runs: Mapping[str, Run], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases of one network, the ones with the least work first: what is too slow is known before it is tried."""
    cases = sorted(((steps, batch) for steps in options.steps for batch in options.batches), key=math.prod)
    past: Past = {}
    results = []
    for steps, batch in progress(cases, f"{SUBJECTS[key].title}: speed"):
        taking_part = {n: run for n, run in runs.items() if n != "lava-fixed" or (key, steps, batch) == LAVA_CASE}
        results.append(case(steps, batch, *race(taking_part, steps, batch, options.rounds, options.limit, past)))
    return results


# --- memory


def memory(
    key: str,
    subject: Networks,
    runs: Mapping[str, Run],
    cases: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """MiB by contender and T, each measured in a process of its own; none for what was too slow to be timed."""
    wanted = [s for s in MEMORY_STEPS if s <= max(options.steps) and MEMORY_BATCH in options.batches]
    slow = [(name, case["steps"]) for case in cases if case["batch"] == MEMORY_BATCH for name in case["left_out"]]
    least = {name: min(steps for other, steps in slow if other == name) for name, _ in slow}
    jobs = [(n, s) for n in runs for s in wanted if s < least.get(n, s + 1) and n != "lava-fixed"]
    results: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        if jobs:
            subject.save(Path(folder))
        for name, steps in progress(jobs, f"{SUBJECTS[key].title}: memory"):
            command = [sys.executable, __file__, "--measure", key, folder, name, str(steps), str(MEMORY_BATCH)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                results.setdefault(name, {})[str(steps)] = json.loads(done.stdout.splitlines()[-1])
            elif done.returncode > 0:  # below: killed, for want of memory, which is an answer too
                raise RuntimeError(f"memory of {name}, T = {steps}:\n{done.stderr}")
    return results


def measure(key: str, folder: Path, name: str, steps: int, batch: int) -> float:
    """MiB that one run takes beyond what this process holds before."""
    run = CONTENDERS[name](Networks.load(SUBJECTS[key], folder))
    run(1, 1)  # the first one also packs weights, and loads code
    gc.collect()
    return peak_of(lambda: run(steps, batch)) / 2**20


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that this process grows by, at most, during `work`.

    ``ru_maxrss`` alone would not tell: it holds the peak of what came before, and at the start even the parent's.
    Linux can set its counter back to what is in use; elsewhere the difference of ``ru_maxrss`` is a lower bound.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (AttributeError, OSError):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Bytes, from a line such as ``VmRSS:   13576 kB``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# --- conversion


def with_relu(model: nn.Module) -> nn.Module:
    """A copy of `model` with ReLU where it has QCFS, as ann2snn takes it."""
    copy = deepcopy(model)
    for module in copy.modules():
        for name, child in module.named_children():
            if isinstance(child, QCFS):
                setattr(module, name, nn.ReLU())
    return copy


def conversions(subject: Networks, images: int, rounds: int, limit: float) -> dict[str, list[float]]:
    """Seconds of each round by what is done: convert, write, read; and SpikingJelly's converter on the same with ReLU.

    That one needs data for its thresholds: four batches, `images` in all. None of the copies it works on is timed.
    """
    x = subject.images[:images]
    relu = with_relu(subject.model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        jobs: dict[str, Callable[[], Callable[[], object]]] = {
            "bridge.convert": lambda: partial(bridge.convert, subject.model, x[:1]),
            "network.save": lambda: partial(subject.floating.save, path),
            "bridge.load": lambda: partial(bridge.load, path),
        }
        if importlib.util.find_spec("spikingjelly"):
            jobs["ann2snn, with calibration"] = lambda: partial(ann2snn, deepcopy(relu), x.split(max(1, images // 4)))
            jobs["ann2snn, without calibration"] = lambda: partial(ann2snn, deepcopy(relu), ())
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        too_slow = set()
        for turn in range(rounds + 1):  # the first one warms up
            for name, prepare in jobs.items():
                if name in too_slow:
                    continue
                work = prepare()
                start = time.perf_counter()
                work()
                took = time.perf_counter() - start
                if turn:
                    seconds[name].append(took)
                elif took > limit:
                    too_slow.add(name)
    return {name: values for name, values in seconds.items() if values}


def ann2snn(model: nn.Module, loader: Sequence[Tensor]) -> nn.Module:
    """SpikingJelly's conversion, thresholds from the largest activations on the batches of `loader`."""
    with redirect_stderr(io.StringIO()):  # it draws a progress bar
        from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe

        return Converter(RateCodingRecipe(dataloader=loader, mode="max")).convert(model)


# --- results


def machine() -> dict[str, Any]:
    """What the figures depend on, without saying which machine it was."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "int8 operators": has_int8(),
        "numba": importlib.util.find_spec("numba") is not None,
        "versions": versions,
    }


def subject_results(key: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    subject = networks(SUBJECTS[key], max(options.batches))
    runs, skipped = contenders(subject, lava=options.lava and key == LAVA_CASE[0])
    result: dict[str, Any] = {
        "title": SUBJECTS[key].title,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "neurons": subject.floating.graph.neurons,
        "skipped": skipped,
        "check": check(subject, runs),
        "cases": speeds(key, runs, options) if "speed" in options.parts else [],
    }
    if "memory" in options.parts:
        result["memory_mib"] = memory(key, subject, runs, result["cases"], options)
    if "conversion" in options.parts:
        result["conversion_seconds"] = conversions(subject, SUBJECTS[key].images, options.rounds, options.limit)
    return result


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=[*SUBJECTS], help="default: all")
    parser.add_argument("--steps", nargs="+", type=_positive, default=[*STEPS], help="T; default: 1 4 8 32")
    parser.add_argument("--batches", nargs="+", type=_positive, default=[*BATCHES], help="images; default: 1 32")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a run may take; default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="default: all")
    parser.add_argument("--lava", action="store_true", help="also Lava's stock processes, on digits: takes minutes")
    parser.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=DOCS / "results" / "speed.json",
        help="write JSON; by default to docs/results/speed.json",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        nargs="?",
        const=DOCS / "speed_table.md",
        help="write the tables; by default to docs/speed_table.md",
    )
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)  # what `memory` starts
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if options.measure:
        key, folder, name, steps, batch = options.measure
        print(json.dumps(measure(key, Path(folder), name, int(steps), int(batch))))
        return
    results: dict[str, Any] = {
        "machine": machine(),
        "settings": {name: getattr(options, name) for name in ("steps", "batches", "rounds", "limit")},
        "networks": {},
        "missing": {},
    }
    for key in options.networks:
        try:
            results["networks"][key] = subject_results(key, options)
        except MissingError as error:
            results["missing"][SUBJECTS[key].title] = str(error)
        if options.out:  # after each network: all of them take a long while
            options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if options.markdown:
            options.markdown.write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
