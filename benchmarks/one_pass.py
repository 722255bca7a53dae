"""How long a staged or grouped network takes, beside one pass of its ANN: the table of docs/exact.md.

    python benchmarks/one_pass.py

In each round every contender is timed, one after the other; ratios are taken within a round, and their medians
reported. 32 images, all threads. SpikingJelly runs the plain network at T = 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import SUBJECTS, networks
from pages import renew

import bridge
from bridge._util.environment import environment
from bridge._util.files import replacing

DOCS = Path(__file__).parent.parent / "docs"
MARK = "<!-- one pass -->"
NAMES = ("resnet20", "vgg16")
STEPS, BATCH, ROUNDS, REST = 8, 32, 7, 0.1
LEAST = 0.2
"""Seconds that a contender is timed for in a round, as often as it then runs: clocks and caches are noisy."""


def contenders(name: str) -> dict[str, Callable[[], Any]]:
    """By name, what is timed for the network called `name`."""
    subject = networks(SUBJECTS[name], BATCH)
    model, x = subject.model, subject.images[:BATCH]
    channels_last, nhwc = _channels_last(name), x.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], Any]] = {
        "ANN, float32": lambda: model(x),
        "ANN, float32, channels last": lambda: channels_last(nhwc),
    }
    for schedule in ("staged", "grouped"):
        network = bridge.convert(model, x, schedule=schedule, steps=STEPS)
        whole = network.quantize(8, subject.images)
        pixels = whole.pixels(x)
        runs[f"{schedule}, float32"] = partial(network.simulate, x)
        runs[f"{schedule}, int8"] = partial(whole.simulate, pixels)
    plain = subject.floating
    runs[f"plain, T = {STEPS}, float32"] = lambda: plain.simulate(x, STEPS)
    runs[f"plain, T = {STEPS}, int8"] = lambda: subject.whole.simulate(subject.pixels[:BATCH], STEPS)
    backend = bridge.registry.get("spikingjelly")
    if backend.available().usable:
        from spikingjelly.activation_based import functional

        native = backend.export(plain.to_nir())
        functional.set_step_mode(native, "m")
        rows = x.unsqueeze(0).expand(STEPS, *x.shape).contiguous()

        def spikingjelly() -> Any:
            functional.reset_net(native)
            return native(rows)

        runs[f"SpikingJelly, plain, T = {STEPS}"] = spikingjelly
    return runs


def _channels_last(name: str) -> torch.nn.Module:
    model = networks(SUBJECTS[name], BATCH).model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@torch.no_grad()
def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """By contender, the median of its seconds, and of how many passes of the ANN (the faster of both) it takes."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    times = dict.fromkeys(runs, 1)
    for number in range(rounds + 2):
        for name, run in runs.items():
            time.sleep(REST)
            start = time.perf_counter()
            for _ in range(times[name]):
                run()
            taken = time.perf_counter() - start
            if number == 1:  # the first round is for warming up, the second tells how often to run
                times[name] = max(1, round(LEAST / taken))
            elif number > 1:
                seconds[name].append(taken / times[name])
    passes = [min(pair) for pair in zip(seconds["ANN, float32"], seconds["ANN, float32, channels last"], strict=True)]
    return {
        name: {
            "seconds": statistics.median(found),
            "passes": statistics.median(one / ann for one, ann in zip(found, passes, strict=True)),
        }
        for name, found in seconds.items()
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a contender, its passes of the ANN by network."""
    names = [name for name in NAMES if name in results]
    lines = [f"| {BATCH} images | " + " | ".join(SUBJECTS[name].title for name in names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for contender in results[names[0]]:
        cells = [results[name].get(contender) for name in names]
        shown = [f"{1000 * c['seconds']:.0f} ms, {c['passes']:.2f}" if c else "—" for c in cells]
        lines.append(f"| {contender} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time everything, save it, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "one_pass.json")
    parser.add_argument("--page", type=Path, default=DOCS / "exact.md")
    chosen = parser.parse_args(arguments)
    results: dict[str, Any] = {name: timed(contenders(name), chosen.rounds) for name in chosen.networks}
    made = {name: value for name, value in environment().items() if name != "command"}
    with replacing(chosen.out) as file:
        file.write((json.dumps({**results, "made": made}, indent=1) + "\n").encode())
    renew(chosen.page, MARK, table(results))


if __name__ == "__main__":
    main()
