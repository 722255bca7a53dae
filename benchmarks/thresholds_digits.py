"""The table of docs/thresholds.md: a ReLU network on handwritten digits, converted without training.

python benchmarks/thresholds_digits.py        # about two minutes on two cores; prints Markdown
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge import QCFS, convert, replace_activations
from bridge.prepare.thresholds import fit_thresholds
from bridge.zoo.digits import digits_model, load_digits, train

SEEDS = 3
STEPS = (1, 2, 4, 8, 16, 32)
LEVELS = (4, 8, 16)
FITTED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mse": (LEVELS, {"method": "mse"}),
    "mse, λ per channel": (LEVELS, {"method": "mse"}),
    "percentile 99.9": ((8,), {"method": "percentile"}),  # these do not depend on L, and nor do spikes
    "percentile 99": ((8,), {"method": "percentile", "percentile": 99}),
    "max": ((8,), {"method": "max"}),
}
TRAINED = "trained with QCFS from the start"


def relu_model() -> nn.Sequential:
    """`bridge.zoo.digits`'s network with ReLU in the place of QCFS."""
    model = digits_model()
    for name, module in list(model.named_children()):
        if isinstance(module, QCFS):
            setattr(model, name, nn.ReLU())
    return model


def accuracy(outputs: NDArray[np.floating], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of right answers in percent, over the last two axes' images and classes."""
    right: NDArray[np.float64] = (outputs.argmax(axis=-1) == y).mean(axis=-1) * 100
    return right


def measure(model: nn.Module, x: Tensor, y: NDArray[np.int64]) -> list[float]:
    """Accuracy of the QCFS network, then of its spiking twin at each of `STEPS`."""
    with torch.no_grad():
        ann = accuracy(model(x).numpy(), y)
    over_time = accuracy(convert(model, x[:1]).run(x, max(STEPS)).outputs(), y)
    return [float(ann), *(float(over_time[step - 1]) for step in STEPS)]


def main() -> None:
    """Train, convert, print."""
    began = time.perf_counter()
    x, y, x_test, y_test = load_digits()
    results: dict[tuple[int, str], list[list[float]]] = {}
    relu_accuracy = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        relu = train(relu_model(), x, y, epochs=12, learning_rate=5e-3)
        with torch.no_grad():
            relu_accuracy.append(float(accuracy(relu(x_test).numpy(), y_test)))
        for title, (choices, arguments) in FITTED.items():
            for levels in choices:
                model = replace_activations(copy.deepcopy(relu), levels, per_channel="channel" in title)
                fit_thresholds(model, x, **arguments)
                results.setdefault((levels, title), []).append(measure(model, x_test, y_test))
        model = train(replace_activations(relu_model(), 8), x, y, epochs=12, learning_rate=5e-3)
        results.setdefault((8, TRAINED), []).append(measure(model, x_test, y_test))
    print(f"ReLU network: {np.mean(relu_accuracy):.1f} % (mean of {SEEDS} seeds, {len(x_test)} test images)\n")
    print("| L | λ from | QCFS | " + " | ".join(f"T = {step}" for step in STEPS) + " |")
    print("|---|---|---|" + "---|" * len(STEPS))
    for (levels, title), rows in results.items():
        print(f"| {levels} | {title} | " + " | ".join(f"{value:.1f}" for value in np.mean(rows, axis=0)) + " |")
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
