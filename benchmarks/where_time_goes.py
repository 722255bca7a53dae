"""What the engine spends its time on, and what this machine could do at best. Also: what ending early saves.

    python benchmarks/where_time_goes.py --out docs/results/where_time_goes.json

One thread, so that times can be told apart. Limits are measured here: the rate of the largest of some convolutions in
int8 and in float32, and the bandwidth of copying memory. Times are medians of several runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import SUBJECTS, networks
from lava_speed import seconds

import bridge.simulate.engine.engine
from bridge.graph import Affine, Conv1d, Conv2d, LayerGraph
from bridge.graph.ranges import Range
from bridge.network import SpikingNetwork, convert
from bridge.simulate.engine.engine import Engine
from bridge.simulate.engine.kernels import _convolution, has_int8, int8
from bridge.zoo.digits import load_digits, train_digits

STEPS, IMAGES = 8, 16
SIZES = ((16, 32), (64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and size of the feature maps of the convolutions that are tried."""


def rates() -> dict[str, float]:
    """Multiplications and additions a second, 10⁹, of convolutions by oneDNN; bytes a second, 10⁹, that are copied."""
    found: dict[str, float] = {}
    with torch.inference_mode():
        for channels, size in SIZES:
            weight = np.random.default_rng(0).integers(-127, 128, (channels, channels, 3, 3)).astype(np.float32)
            layer = Conv2d(name="c", inputs=("x",), weight=weight, bias=np.zeros(channels, np.float32), padding=(1, 1))
            spikes = torch.randint(0, 2, (STEPS, channels, size, size), dtype=torch.uint8)
            spikes = spikes.contiguous(memory_format=torch.channels_last)
            work = STEPS * channels * channels * 9 * size * size / 1e9
            bound = Range(*(np.array([value]) for value in (0.0, 1.0, 1.0)))
            ways = {"float32": _convolution(layer, (channels, size, size)), "int8": int8(layer, bound, bound)}
            for way, kernel in ways.items():
                if kernel is not None:
                    x = spikes if way == "int8" else spikes.float()
                    found[way] = max(found.get(way, 0.0), work / seconds(lambda kernel=kernel, x=x: kernel(x)))
        large = torch.empty(2**26)
        other = torch.empty_like(large)
        found["copy"] = 2 * 4 * len(large) / 1e9 / seconds(lambda: other.copy_(large))
    return found


def multiplications(graph: LayerGraph) -> int:
    """Of one image and step, in the layers that run at every step."""
    total = 0
    for layer in graph:
        if isinstance(layer, Affine) and layer.name not in graph.constant:
            places = np.prod(graph.shapes[layer.name][1:]) if isinstance(layer, Conv1d | Conv2d) else 1
            total += int(layer.weight.size * places)
    return total


def parts(network: SpikingNetwork, x: torch.Tensor) -> dict[str, float]:
    """Seconds of a run of `x` layer by layer: in all, in the layers without state, in the neurons' loop."""
    engine = Engine(network.graph)
    engine.events = None
    spent = {"layers": 0.0, "neurons": 0.0}

    def timed(kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments)
            spent[kind] += time.perf_counter() - start
            return result

        return run

    total = seconds(lambda: engine.run(x, STEPS))
    engine.kernels = {name: timed("layers", kernel) for name, kernel in engine.kernels.items()}
    own = bridge.simulate.engine.engine.integrate_fire
    bridge.simulate.engine.engine.integrate_fire = timed("neurons", own)
    try:
        engine.run(x, STEPS)
    finally:
        bridge.simulate.engine.engine.integrate_fire = own
    return {"seconds": total, **spent}


def account(name: str, limits: dict[str, float]) -> list[dict[str, Any]]:
    """One network in both arithmetics: where its time goes, beside what the machine's rates allow."""
    found = []
    case = networks(SUBJECTS[name], IMAGES)
    for way, network, x in (("int8", case.whole, case.pixels.float()), ("float32", case.floating, case.images)):
        count = min(IMAGES, 2) if x.shape[-1] > 32 else IMAGES
        x = x[:count]
        runs = {way: parts(network, x)}
        if (engine := Engine(network.graph)).events:
            runs[f"spikes, {way}"] = {
                "seconds": seconds(lambda engine=engine, x=x: engine.events.run(x.numpy(), STEPS))
            }
        work = count * STEPS * multiplications(network.graph) / 1e9
        # A neuron's drive is written and read, its spike written and read; potentials stay in the cache.
        moved = count * STEPS * network.graph.neurons * (4 + 4 + 1 + 1) / 1e9
        rate = limits.get(way, limits["float32"])
        found += [
            {
                "network": name,
                "arithmetic": how,
                "milliseconds": 1e3 * row["seconds"] / count,
                **{part: row[part] / row["seconds"] for part in ("layers", "neurons") if part in row},
                "multiplications": work / count / STEPS * 1e9,
                "at_full_rate": 1e3 * work / rate / count,
                "at_full_bandwidth": 1e3 * moved / limits["copy"] / count,
            }
            for how, row in runs.items()
        ]
    return found


def ending_early() -> list[dict[str, float]]:
    """Steps and accuracy on the digits' test images, by the number of steps that the largest output must last."""
    x, y, x_test, y_test = load_digits()
    network = convert(train_digits(x, y), x[:1])
    rows = []
    full = network.simulate(x_test, 32)
    for steps in (2, 4, 8, 16, 32):
        rows.append({"patience": 0, "steps": steps, "accuracy": float(full.accuracy(y_test)[steps - 1])})
    for patience in (1, 2, 3, 4, 6, 8):
        result = network.simulate(x_test, 32, until="stable", patience=patience)
        rows.append(
            {
                "patience": patience,
                "steps": float(result.steps.mean()),
                "accuracy": float(result.accuracy(y_test)[-1]),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--networks", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limits = rates()
    shown = ", ".join(f"{name} {value:.0f}" for name, value in limits.items())
    print(f"10⁹ multiplications with additions, or bytes, a second, one thread: {shown}; int8 exact: {has_int8()}\n")
    print(
        "| network | arithmetic | ms an image | in layers | in neurons | elsewhere | at full rate | at full bandwidth |"
    )
    print("|---" * 8 + "|")
    rows = []
    for name in arguments.networks:
        for row in account(name, limits):
            rows.append(row)
            shares = "— | — | —"
            if "layers" in row:
                rest = max(0.0, 1 - row["layers"] - row["neurons"])
                shares = f"{row['layers']:.0%} | {row['neurons']:.0%} | {rest:.0%}"
            print(
                f"| {name} | {row['arithmetic']} | {row['milliseconds']:.2f} | {shares} | {row['at_full_rate']:.2f} ms "
                f"| {row['at_full_bandwidth']:.2f} ms |",
                flush=True,
            )
    early = ending_early()
    print("\n| until | mean steps | accuracy |\n|---|---|---|")
    for row in early:
        what = f"the same {row['patience']:.0f} steps" if row["patience"] else "T"
        print(f"| {what} | {row['steps']:.2f} | {row['accuracy']:.2%} |")
    if arguments.out:
        figures = {"steps": STEPS, "threads": 1, "rates": limits, "networks": rows, "ending_early": early}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
