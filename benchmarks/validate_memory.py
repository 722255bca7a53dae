"""What `validate` takes for a large data set: time, and the peak of memory, which must not grow with the images.

    python benchmarks/validate_memory.py --images 1000 10000     # ResNet-20 of CIFAR's size, T = 8

Reference and SpikingJelly, against each other and against the ANN. Each number of images runs in a process of its own;
images are made as they are needed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from bridge import convert
from bridge.zoo import resnet20

STEPS = 8


def measure(count: int) -> dict[str, float]:
    """Seconds and peak memory in MiB for `count` images, in this process."""
    torch.manual_seed(0)
    model = resnet20(levels=4)
    with torch.no_grad():
        for _ in range(10):  # so that batch normalisation knows its inputs
            model.train()(torch.rand(64, 3, 32, 32))
    network = convert(model.eval(), torch.rand(1, 3, 32, 32))
    x = torch.rand(count, 3, 32, 32)  # the data set itself, 12 kB an image, is the caller's
    own = x.numel() * x.element_size() / 2**20
    start = time.perf_counter()
    agreement = network.validate(x, STEPS, ["spikingjelly"])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert agreement.agreed
    return {"images": count, "seconds": seconds, "peak_mib": peak, "of_which_images_mib": own}


def main() -> None:
    """Run each in a fresh process and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.images[0])))
        return
    rows = []
    print("| images | seconds | peak MiB | without the images |\n|---|---|---|---|")
    for count in arguments.images:
        command = [sys.executable, __file__, "--here", "--images", str(count)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append(row)
        rest = row["peak_mib"] - row["of_which_images_mib"]
        print(f"| {count} | {row['seconds']:.0f} | {row['peak_mib']:.0f} | {rest:.0f} |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
