"""How fast the fixed-point Lava backend and its twin run, and what their parts contribute: a digits CNN, a ResNet-20.

    python benchmarks/lava_speed.py --out docs/results/lava_speed.json

Networks of random whole numbers, T = 8. Times are of whole runs, from images to spike record: the check that no
register overflows is included, and Lava's start-up, which the difference between a shorter and a longer run leaves out.
Every time is the median of several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bridge.graph import Add, Conv2d, Flatten, Input, IntegrateFire, Layer, LayerGraph, Linear, Scale, Shape, SumPool2d
from bridge.nir_graph import to_nir
from exporters.lava import LavaFixed, LavaTwin

STEPS, RUNS = 8, 3
WAYS = {
    "Lava's own Dense and Conv": LavaFixed(synapses="stock"),
    "TorchDense and TorchConv": LavaFixed(lanes=1),
    "…, images side by side": LavaFixed(),
    "the twin, without Lava": LavaTwin(),
}
STREAM = 100


class Net:
    """Layers of random weights in a row, with thresholds of about the size of what their neurons hear."""

    def __init__(self, shape: Shape) -> None:
        self.rng = np.random.default_rng(0)
        self.layers: list[Layer] = [Input(name="x", shape=shape)]

    def conv(self, channels: int, inputs: int, stride: int = 1, source: str = "", kernel: int = 3) -> str:
        name = f"conv{len(self.layers)}"
        sizes = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
        weight, bias = self.whole(channels, inputs, kernel, kernel), self.whole(channels)
        self.layers.append(Conv2d(name=name, inputs=(source or self.last,), weight=weight, bias=bias, **sizes))
        return name

    def spike(self, channels: int, threshold: int) -> str:
        name = f"act{len(self.layers)}"
        values = np.full(channels, threshold, np.float32)
        self.layers.append(IntegrateFire(name=name, inputs=(self.last,), level=values / 2, threshold=values))
        return name

    def head(self, channels: int, size: int, pool: int, classes: int = 10) -> LayerGraph:
        pooled = SumPool2d(name="pool", inputs=(self.last,), kernel=(pool, pool), stride=(pool, pool))
        weight = self.whole(classes, channels * (size // pool) ** 2)
        fc = Linear(name="fc", inputs=("flat",), weight=weight, bias=self.whole(classes))
        return LayerGraph((*self.layers, pooled, Flatten(name="flat", inputs=("pool",)), fc))

    def whole(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.float32)

    @property
    def last(self) -> str:
        return self.layers[-1].name


def digits() -> LayerGraph:
    net = Net((1, 8, 8))
    for channels, inputs, threshold in ((16, 1, 25600), (32, 16, 600)):
        net.conv(channels, inputs)
        net.spike(channels, threshold)
    return net.head(32, 8, 2)


def resnet20() -> LayerGraph:
    net = Net((3, 32, 32))
    net.conv(16, 3)
    last, inputs = net.spike(16, 51200), 16
    for channels in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and channels > 16 else 1
            net.conv(channels, inputs, stride, last)
            net.spike(channels, 2 * int(40 * inputs**0.5))
            body = net.conv(channels, channels)
            if inputs == channels:
                skip = f"skip{len(net.layers)}"
                net.layers.append(Scale(name=skip, inputs=(last,), scale=np.full(channels, 400.0)))
            else:
                skip = net.conv(channels, inputs, stride, last, kernel=1)
            net.layers.append(Add(name=f"add{len(net.layers)}", inputs=(body, skip)))
            last, inputs = net.spike(channels, 2 * int(40 * channels**0.5)), channels
    return net.head(64, 8, 8)


def seconds(work: Callable[[], object]) -> float:
    """Median wall time of `work`, which has run before."""
    work()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ways(graph: LayerGraph, counts: tuple[tuple[int, int], ...]) -> dict[str, dict[str, float]]:
    """Images a second, each way on as few and as many images as `counts` says; in steady state by the difference."""
    result = {}
    for (way, backend), (few, many) in zip(WAYS.items(), counts, strict=True):
        native, took = backend.export(to_nir(graph)), []
        for count in (few, many):
            x = images(graph, count)
            took.append(seconds(lambda native=native, x=x, backend=backend: backend.run(native, x, STEPS)))
        result[way] = {
            "images": many,
            "seconds": took[1],
            "images_per_second": many / took[1],
            "steady_images_per_second": (many - few) / (took[1] - took[0]),
        }
    return result


def streaming(graph: LayerGraph) -> dict[str, float]:
    """Seconds for `STREAM` images, one after the other in one run, and each in a run of its own."""
    backend = LavaFixed(lanes=1)
    native, x = backend.export(to_nir(graph)), images(graph, STREAM)
    one = seconds(lambda: backend.run(native, x, STEPS))
    alone = seconds(lambda: [backend.run(native, x[at : at + 1], STEPS) for at in range(STREAM)])
    return {"images": STREAM, "one_run": one, "a_run_each": alone}


def images(graph: LayerGraph, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *graph.input.shape)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    out = parser.parse_args().out
    cases = {
        "digits CNN, 8×8": (digits(), ((8, 40), (8, 136), (128, 2176), (2176, 21760))),
        "ResNet-20, 32×32": (resnet20(), ((1, 5), (9, 65), (64, 448), (64, 512))),
    }
    results: dict[str, object] = {"steps": STEPS, "runs": RUNS, "cores": os.cpu_count()}
    print("| network | synapses | images | seconds | images/s | without start-up | ratio |\n" + "|---" * 7 + "|")
    for name, (graph, counts) in cases.items():
        results[name] = rows = ways(graph, counts)
        slowest = next(iter(rows.values()))["steady_images_per_second"]
        for way, row in rows.items():
            speed, steady = row["images_per_second"], row["steady_images_per_second"]
            counts = f"{row['images']} | {row['seconds']:.2f} | {speed:.2f} | {steady:.2f}"
            print(f"| {name} | {way} | {counts} | {steady / slowest:.0f} |")
    results["streaming"] = stream = streaming(digits())
    print(
        f"\n{STREAM} images of digits size, one lane: {stream['one_run']:.2f} s in one run, "
        f"{stream['a_run_each']:.1f} s in a run each, {stream['a_run_each'] / stream['one_run']:.1f} times as long"
    )
    if out is not None:
        out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
