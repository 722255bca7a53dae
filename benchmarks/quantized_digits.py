"""The table of docs/loihi.md: handwritten digits in whole numbers, by scheme and bits.

python benchmarks/quantized_digits.py --out docs/results/quantized_digits.json    # a minute; prints Markdown
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bridge import convert
from bridge.zoo.digits import digits_model, load_digits, train

SEEDS = 3
STEPS = (1, 2, 4, 8, 16)
CHOICES = [(bits, scheme) for bits in (8, 4) for scheme in ("per_channel", "per_layer")]


def main() -> None:
    """Train, convert, quantize, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the numbers there, as JSON")
    out = parser.parse_args().out
    x, y, x_test, y_test = load_digits()
    rows: dict[str, list[list[float]]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        network = convert(train(digits_model(), x, y, epochs=12), x[:1])
        variants = {"float": (network, x_test)}
        for bits, scheme in CHOICES:
            whole = network.quantize(bits, calibration=x, scheme=scheme)
            variants[f"{bits} bits, {scheme}"] = (whole, whole.pixels(x_test))
        for name, (variant, images) in variants.items():
            right = variant.run(images, max(STEPS)).outputs().argmax(axis=-1) == y_test
            rows.setdefault(name, []).append([100 * float(right[steps - 1].mean()) for steps in STEPS])
    means = {name: [sum(column) / SEEDS for column in zip(*runs, strict=True)] for name, runs in rows.items()}
    print("| network | " + " | ".join(f"T = {steps}" for steps in STEPS) + " |")
    print("|---|" + "---|" * len(STEPS))
    for name, values in means.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    if out:
        result = {"steps": STEPS, "seeds": SEEDS, "test images": len(y_test), "accuracy in percent": rows}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
