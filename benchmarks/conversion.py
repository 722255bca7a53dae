"""How long a conversion takes and how much memory it needs beyond the model: ResNet-18 and VGG-16.

    python benchmarks/conversion.py

Each model in a process of its own, five conversions; the median time, and the peak memory over what the process held
before, in multiples of the model's weights.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import bridge
from bridge.zoo import resnet18

CASES = {"resnet18, 32×32": 32, "vgg16, 224×224": 224}


def measure(name: str) -> dict[str, float]:
    """Times and memory of one case, in this process."""
    size = CASES[name]
    if size == 32:
        model = resnet18(levels=4).eval()
    else:
        from torchvision_table import make

        model = bridge.replace_activations(make("vgg16")[0].eval(), levels=4, max_pool="avg")
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        model(x)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = []
    for _ in range(5):
        start = time.perf_counter()
        network = bridge.convert(model, x)
        times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if len(times) == 1:
            extra = (peak - before) / weights
        del network
    network = bridge.convert(model, x)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        start = time.perf_counter()
        network.save(path)
        written = time.perf_counter() - start
        start = time.perf_counter()
        bridge.load(path)
        read = time.perf_counter() - start
        size_on_disk = path.stat().st_size / weights
    return {
        "seconds": statistics.median(times),
        "spread": max(times) - min(times),
        "memory": extra,
        "write": written,
        "read": read,
        "file": size_on_disk,
    }


def main() -> None:
    print("| model | converts in | spread of 5 | peak memory beyond the model | `.nir` written in | read in | file |")
    print("|---|---|---|---|---|---|---|")
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        got = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {got['seconds']:.2f} s | {got['spread']:.2f} s | {got['memory']:.1f} × weights "
            f"| {got['write']:.1f} s | {got['read']:.1f} s | {got['file']:.2f} × weights |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
