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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bridge
from bridge import registry
from bridge._util.progress import progress
from bridge.errors import BackendError
from bridge.graph import IntegrateFire
from bridge.network import SpikingNetwork
from bridge.prepare.qcfs import QCFS
from bridge.records import SpikeRecord, differing
from bridge.simulate.engine.kernels import has_int8
from bridge.simulate.reference import simulate
from bridge.zoo import resnet20, vgg16
from bridge.zoo.digits import digits_model

DOCS = Path(__file__).parent.parent / "docs"
LEVELS = 4
STEPS, BATCHES, ROUNDS, LIMIT = (1, 4, 8, 32), (1, 32), 5, 30.0
PARTS = ("speed", "memory", "conversion")
CHECK_IMAGES, CHECK_STEPS = 2, 4
MEMORY_BATCH, MEMORY_STEPS = 32, (8, 16, 32)
LAVA_CASE = ("digits", 8, 32)
"""Lava's stock processes take minutes for anything larger."""
SHORT, MOST_CALLS = 0.05, 200
"""A run shorter than so many seconds is timed as several in a row, at most so many: clocks and caches are noisy."""

REST = 0.1
"""Seconds between two contenders: threads of the one before spin for a while, waiting for more to do."""

INT8, FLOAT32 = "engine, int8", "engine, float32"
ANN = "T × ANN"
VIA_BACKEND = ("lava-fixed",)
"""These run through their backend's own `run`, which also records every spike."""
PACKAGES = ("torch", "numpy", "numba", "spikingjelly", "snntorch", "sinabs", "onnxruntime", "lava-nc")

Run = Callable[[int, int], Any]
"""Simulates so many steps of so many images: ``run(steps, batch)`` gives the mean outputs ``[B, ...]``."""
Past = dict[str, list[tuple[int, float]]]
"""By contender, how much work (T times images) took how many seconds, in the order in which it was measured."""


class MissingError(Exception):
    """A contender, or a network, that cannot take part; the message says why."""


class WrongSpikesError(Exception):
    """The engine's int8 spikes are not the reference's: its speed is worth nothing."""


# --- networks


def resnet34() -> nn.Module:
    """torchvision's: the zoo's, without pools at its start, has sums over 28×28 pixels, too wide for 8-bit weights."""
    try:
        from torchvision_table import torchvision_models

        models = torchvision_models()
    except ImportError as error:
        raise MissingError("torchvision is not installed") from error
    return bridge.replace_activations(models.resnet34(weights=None), levels=LEVELS, max_pool="avg")


@dataclass(frozen=True)
class Subject:
    """A network to simulate; `images` are how many set its batch norms and its whole numbers."""

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    images: int


SUBJECTS = {
    "digits": Subject("digits CNN, 8×8", digits_model, (1, 8, 8), 32),
    "resnet20": Subject("ResNet-20, 32×32", partial(resnet20, levels=LEVELS), (3, 32, 32), 32),
    "vgg16": Subject("VGG-16, 32×32", partial(vgg16, levels=LEVELS), (3, 32, 32), 32),
    "resnet34": Subject("ResNet-34, 224×224", resnet34, (3, 224, 224), 8),
}


@dataclass(frozen=True)
class Networks:
    """One network in its three forms, and images for it: `pixels` 0…255, `images` the same as the ANN takes them."""

    model: nn.Module
    floating: SpikingNetwork
    whole: SpikingNetwork
    pixels: Tensor
    images: Tensor

    def save(self, folder: Path) -> None:
        torch.save((self.model.state_dict(), self.pixels), folder / "model.pt")
        self.floating.save(folder / "float.nir")
        self.whole.save(folder / "whole.nir")

    @staticmethod
    def load(subject: Subject, folder: Path) -> Networks:
        state, pixels = torch.load(folder / "model.pt")
        model = subject.make().eval()
        model.load_state_dict(state)
        floating, whole = bridge.load(folder / "float.nir"), bridge.load(folder / "whole.nir")
        return Networks(model, floating, whole, pixels, pixels / 255)


def networks(subject: Subject, batch: int) -> Networks:
    """The network with random weights, settled, converted and quantized; `batch` images to run it on."""
    torch.manual_seed(0)
    model = subject.make()
    pixels = torch.randint(0, 256, (max(batch, subject.images), *subject.shape)).float()
    few = pixels[: subject.images] / 255
    settle(model, few)
    channels = subject.shape[0]
    floating = bridge.convert(model, few[:1])
    whole = floating.quantize(
        8, calibration=few, scheme="per_channel", normalisation=([0.0] * channels, [1.0] * channels)
    )
    return Networks(model, floating, whole, pixels, pixels / 255)


def settle(model: nn.Module, x: Tensor) -> None:
    """Scale the weights of `model` so that signals keep their size, and set batch norm's statistics on images `x`.

    Without it they die out on the way, and a network in which nothing fires is simulated in no time.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spread = 1.4 / math.sqrt(module.weight[0].numel())
                module.weight.copy_(torch.randn(module.weight.shape) * spread)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all passes
        model.train()
        for _ in range(3):
            model(x)
    model.eval()


# --- contenders


def engine_int8(subject: Networks) -> Run:
    return lambda steps, batch: subject.whole.simulate(subject.pixels[:batch], steps).outputs[-1]


def engine_float32(subject: Networks) -> Run:
    return lambda steps, batch: subject.floating.simulate(subject.images[:batch], steps).outputs[-1]


def spikingjelly_single(subject: Networks) -> Run:
    native = _exported("spikingjelly", subject.floating)
    from spikingjelly.activation_based import functional

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        functional.reset_net(native)
        return sum(native(x) for _ in range(steps)) / steps

    return run


def spikingjelly_multi(subject: Networks) -> Run:
    native = _exported("spikingjelly", subject.floating)
    from spikingjelly.activation_based import functional

    functional.set_step_mode(native, "m")

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        functional.reset_net(native)
        return native(x.unsqueeze(0).repeat(steps, *[1] * x.dim())).mean(dim=0)

    return run


def snntorch(subject: Networks) -> Run:
    try:
        import snntorch as framework
        from snntorch import utils
    except ImportError as error:
        raise MissingError("not installed") from error
    # utils.reset resets every neuron of the process: without this, those of networks measured before, too
    framework.SpikingNeuron.instances.clear()
    native = _exported("snntorch", subject.floating)

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        x = subject.images[:batch]
        utils.reset(native)
        return sum(native(x) for _ in range(steps)) / steps

    return run


def sinabs(subject: Networks) -> Run:
    """Sinabs' own neuron, which fires once a step and takes off more than its threshold: no state to begin with."""
    try:
        import sinabs as framework
        from sinabs import activation, layers
    except ImportError as error:
        raise MissingError("not installed") from error
    from exporters.torch_module import build

    def neuron(layer: IntegrateFire, rank: int) -> nn.Module:
        return layers.IAFSqueeze(
            batch_size=1,
            spike_threshold=torch.tensor(float(layer.level[0])),
            spike_fn=activation.SingleSpike,
            reset_fn=activation.MembraneSubtract(subtract_value=float(layer.threshold[0])),
            min_v_mem=None,
        )

    native = build(subject.floating.graph, nn, neuron, "SinabsNetwork")

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        framework.set_batch_size(native, batch)
        framework.reset_states(native)
        rows = native(subject.images[:batch].repeat_interleave(steps, dim=0))
        return rows.reshape(batch, steps, -1).mean(dim=1)

    return run


def onnx_runtime(subject: Networks) -> Run:
    native, x = _exported("onnxruntime", subject.floating), subject.images.numpy()
    return lambda steps, batch: native(x[:batch], steps)


def lava_fixed(subject: Networks) -> Run:
    try:
        registry.usable("lava-fixed")
    except BackendError as error:
        raise MissingError("not installed") from error
    from exporters.lava import LavaFixed

    backend = LavaFixed(synapses="stock")
    native = backend.export(subject.whole.to_nir())
    x = subject.pixels.numpy()
    return lambda steps, batch: backend.run(native, x[:batch], steps).outputs()[-1]


def one_pass(subject: Networks) -> Run:
    """One pass of the ANN, to be multiplied by T."""

    @torch.inference_mode()
    def run(steps: int, batch: int) -> Tensor:
        return subject.model(subject.images[:batch])

    return run


def _exported(name: str, network: SpikingNetwork) -> Any:
    try:
        return registry.usable(name).export(network.to_nir())
    except BackendError as error:
        raise MissingError("not installed") from error


CONTENDERS: dict[str, Callable[[Networks], Run]] = {
    INT8: engine_int8,
    FLOAT32: engine_float32,
    "SpikingJelly, single-step": spikingjelly_single,
    "SpikingJelly, multi-step": spikingjelly_multi,
    "snnTorch": snntorch,
    "Sinabs": sinabs,
    "ONNX Runtime": onnx_runtime,
    "lava-fixed": lava_fixed,
    ANN: one_pass,
}


def contenders(subject: Networks, *, lava: bool) -> tuple[dict[str, Run], dict[str, str]]:
    """Those that can take part, made ready, and why each of the others cannot."""
    runs: dict[str, Run] = {}
    skipped: dict[str, str] = {}
    for name, make in CONTENDERS.items():
        if name == "lava-fixed" and not lava:
            skipped[name] = "runs with --lava only"
            continue
        try:
            runs[name] = make(subject)
        except MissingError as error:
            skipped[name] = str(error)
    return runs, skipped


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


def short(value: float) -> str:
    """`value` to three digits, and all before the point."""
    decimals = 0 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def speed_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images a second, a row a contender, a column a T, of cases with the same batch."""
    cases = sorted(cases, key=lambda case: case["steps"])
    rows = []
    for name in CONTENDERS:
        if any(name in case["seconds"] or name in case["left_out"] for case in cases):
            rows.append([name, *(_speed_cell(case["images_per_second"].get(name)) for case in cases)])
    return grid(["images/s", *(f"T = {case['steps']}" for case in cases)], rows)


def _speed_cell(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "—"
    return f"{short(figures['median'])} ({short(figures['low'])}–{short(figures['high'])})"


def ratio_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many times as fast the engine is as each other, int8 and float32, of cases with the same batch."""
    cases = sorted(cases, key=lambda case: case["steps"])
    rows = []
    for name in CONTENDERS:
        if any(name in found for case in cases for found in case["ratios"].values()):
            rows.append([name, *(_ratio_cell(case, engine, name) for case in cases for engine in (INT8, FLOAT32))])
    head = ["faster than", *(f"T = {case['steps']}, {kind}" for case in cases for kind in ("int8", "float32"))]
    return grid(head, rows)


def _ratio_cell(case: Mapping[str, Any], engine: str, other: str) -> str:
    if engine == other:
        return ""
    ratio = case["ratios"].get(engine, {}).get(other)
    return "—" if ratio is None else f"{short(ratio)} ×"


def memory_table(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """MiB of one run of `MEMORY_BATCH` images, a row a contender, a column a T."""
    steps = sorted({int(step) for row in figures.values() for step in row})
    rows = [
        [name, *(short(row[str(step)]) if str(step) in row else "—" for step in steps)] for name, row in figures.items()
    ]
    return grid(["MiB", *(f"T = {step}" for step in steps)], rows)


def conversion_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Seconds by network and by what is done."""
    measured = {key: row for key, row in results.items() if row.get("conversion_seconds")}
    jobs = dict.fromkeys(job for row in measured.values() for job in row["conversion_seconds"])
    rows = []
    for row in measured.values():
        times = row["conversion_seconds"]
        cells = [
            f"{short(statistics.median(times[job]))} ({short(min(times[job]))}–{short(max(times[job]))})"
            if job in times
            else "—"
            for job in jobs
        ]
        rows.append([row["title"], *cells])
    return grid(["seconds", *jobs], rows)


def page(results: Mapping[str, Any]) -> str:
    """All results as Markdown."""
    facts, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        "Made by `benchmarks/simulation.py`: random weights, float32 and 8-bit whole numbers. Median and lowest to",
        f"highest of {settings['rounds']} rounds, in each of which all were timed in turn. {facts['date']}, "
        f"{facts['threads']} threads,",
        f"{facts['cpu capability']}, int8 operators {'used' if facts['int8 operators'] else 'missing'}, numba "
        f"{'used' if facts['numba'] else 'missing'}. {versions}.",
        "",
    ]
    for row in results["networks"].values():
        lines += [f"## {row['title']}", "", check_line(row), ""]
        for batch in sorted({case["batch"] for case in row["cases"]}):
            cases = [case for case in row["cases"] if case["batch"] == batch]
            plural = "image" if batch == 1 else "images"
            lines += [f"### {batch} {plural} at a time", "", *speed_table(cases), ""]
            lines += ["How many times as fast the engine is, in int8 and in float32:", "", *ratio_table(cases), ""]
        if row.get("memory_mib"):
            lines += [f"### Peak memory of one run of {MEMORY_BATCH} images", "", *memory_table(row["memory_mib"]), ""]
    if any(row.get("conversion_seconds") for row in results["networks"].values()):
        lines += ["## Conversion", "", *conversion_table(results["networks"]), ""]
    return "\n".join([*lines, *footnotes(results)]) + "\n"


def check_line(row: Mapping[str, Any]) -> str:
    """What was compared before anything was timed."""
    done = row["check"]
    ties = ""
    if done["of these by themselves"]:
        ties = (
            f", which follow from {done['of these by themselves']} at most "
            f"{done['largest distance from the level']:.1g} from the level"
        )
    return (
        f"{row['parameters'] / 1e6:.2f} M weights, {row['neurons']:,} neurons, mean rate {done['mean rate']:.3f}. Of "
        f"{done['spikes compared']:,} spikes and silences, {done['int8 spikes that differ']:,} differ from the "
        f"reference's in int8 and {done['float spikes that differ']:,} in float32{ties}."
    )


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """What the marks mean, and who is not there."""
    rows = results["networks"].values()
    taking_part = {name for row in rows for case in row["cases"] for name in case["seconds"]}
    lines = []
    if any(case["left_out"] for row in rows for case in row["cases"]):
        lines.append(
            f"- —: left out, since one run takes, or would take, more than {results['settings']['limit']:g} s."
        )
    for name in VIA_BACKEND:
        if name in taking_part:
            lines.append(f"- {name} runs through its backend's `run`, which records every spike.")
    if ANN in taking_part:
        lines.append(f"- {ANN}: T times the time of one pass of the torch model.")
    skipped = {name: reason for row in rows for name, reason in row["skipped"].items() if name not in taking_part}
    skipped |= results["missing"]
    lines += [f"- {name} is not in the tables: {reason}." for name, reason in skipped.items()]
    if any(row.get("memory_mib") for row in rows):
        lines.append(
            "- Memory: beyond what the process held after a first run of one image, so without weights and programs."
        )
    if any(row.get("conversion_seconds") for row in rows):
        lines.append("- ann2snn (SpikingJelly) takes no QCFS: it converts the same network with ReLU in its place.")
    return lines


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
        "--out", type=Path, nargs="?", const=DOCS / "results" / "speed.json", help="write JSON; by default to docs/results/speed.json"
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
