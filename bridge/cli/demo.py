"""The main job on real data: train on scikit-learn's handwritten digits, convert, run everywhere, compare. Twice: in
floating point, and in the whole numbers that Loihi computes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from bridge import loihi
from bridge._util.progress import progress
from bridge.backends import registry
from bridge.errors import BridgeError, InputError
from bridge.network import SpikingNetwork, convert
from bridge.prepare.qcfs import QCFS
from bridge.prepare.replace import replace_activations
from bridge.report import html, table
from bridge.report.plot import plot_rate_error

LEVELS = STEPS = 8
BACKENDS = ("spikingjelly", "snntorch", "onnxruntime", "lava")
WHOLE_BACKENDS = ("spikingjelly", "snntorch", "onnxruntime", "lava-fixed")
LAVA_IMAGES = 60
"""Lava's process per layer makes it slow; these images stream through one run."""


def load_digits() -> tuple[Tensor, NDArray[np.int64], Tensor, NDArray[np.int64]]:
    """scikit-learn's 1797 handwritten digits (UCI; 8×8, values 0…1): train and test images and labels, 3 to 1.

    Images are float32 ``[B, 1, 8, 8]``. Raises `BridgeError` if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise BridgeError('the digits come with scikit-learn: pip install "scikit-learn>=1.5"') from error
    data = datasets.load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    x, x_test, y, y_test = model_selection.train_test_split(
        images, data.target.astype(np.int64), test_size=0.25, random_state=0, stratify=data.target
    )
    return torch.from_numpy(x), y, torch.from_numpy(x_test), y_test


def digits_model() -> nn.Sequential:
    """A small CNN for 8×8 images with QCFS where its ReLUs were."""
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(1, 16, 3, padding=1, bias=False))
    model.add_module("norm1", nn.BatchNorm2d(16))
    model.add_module("act1", nn.ReLU())
    model.add_module("conv2", nn.Conv2d(16, 32, 3, padding=1, bias=False))
    model.add_module("norm2", nn.BatchNorm2d(32))
    model.add_module("act2", nn.ReLU())
    model.add_module("pool", nn.AvgPool2d(2))
    model.add_module("flatten", nn.Flatten())
    model.add_module("hidden", nn.Linear(32 * 4 * 4, 64))
    model.add_module("act3", nn.ReLU())
    model.add_module("dropout", nn.Dropout(0.2))
    model.add_module("readout", nn.Linear(64, 10))
    replace_activations(model, levels=LEVELS)
    return model


def train_digits(x: Tensor, y: NDArray[np.int64], epochs: int = 12) -> nn.Sequential:
    """Train `digits_model` on images `x` ``[B, 1, 8, 8]`` and labels `y`; the same weights for the same torch."""
    with torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
        torch.manual_seed(0)
        return train(digits_model(), x, y, epochs)


def train(
    model: nn.Sequential, x: Tensor, y: NDArray[np.int64], epochs: int, learning_rate: float = 5e-3
) -> nn.Sequential:
    """Train `model` in place with AdamW in one cycle, in batches of 64; return it in eval mode."""
    labels = torch.from_numpy(y)
    batches = -(-len(x) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=learning_rate, total_steps=epochs * batches)
    model.train()
    for _ in progress(range(epochs), "training"):
        for chosen in torch.randperm(len(x)).tensor_split(batches):
            loss = nn.functional.cross_entropy(model(x[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def run(out: Path, console: Console) -> bool:
    """Do it all, write the results under `out`, and say whether all backends agreed.

    Raises:
        BackendError: a backend is not usable; before anything is trained.
        InputError: `out` cannot be written; likewise.
    """
    for name in {*BACKENDS, *WHOLE_BACKENDS}:
        registry.usable(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: results cannot be written there: {error.strerror}") from error
    x, y, x_test, y_test = load_digits()
    model = train_digits(x, y)
    thresholds = [round(module.threshold.item(), 3) for module in model if isinstance(module, QCFS)]
    console.print(f"trained on {len(x)} digits; thresholds λ = {thresholds}")
    network = convert(model, x_test[:1])
    agreed = _compare(network, x_test, y_test, BACKENDS, {"lava": LAVA_IMAGES}, out, "", console)
    whole = network.quantize(8, calibration=x)
    pixels = whole.pixels(x_test)
    agreed_too = _compare(whole, pixels, y_test, WHOLE_BACKENDS, {}, out, "_8bit", console)
    report = loihi.report(whole, whole.run(pixels, STEPS))
    report.save(out / "loihi.json")
    console.print(
        f"an inference on Loihi: {report.synaptic_operations or 0:,.0f} synaptic operations, where the ANN has "
        f"{report.ann_macs:,} multiplications; wrote {out / 'loihi.json'}"
    )
    return agreed and agreed_too


def _compare(
    network: SpikingNetwork,
    x: Tensor,
    y: NDArray[np.int64],
    backends: tuple[str, ...],
    images: dict[str, int],
    out: Path,
    suffix: str,
    console: Console,
) -> bool:
    """Write `network`, run it on all `backends`, write and print what differs; say whether they agreed."""
    console.print(f"{network}")
    network.save(out / f"digits{suffix}.nir")
    agreement = network.validate(x, STEPS, backends, labels=y, images=images)
    console.print(table(agreement))
    agreement.save(out / f"agreement{suffix}.json")
    html.write(agreement, out / f"report{suffix}.html")
    plot_rate_error(agreement, out / f"rate_error{suffix}.png")
    console.print(
        f"wrote {out / f'digits{suffix}.nir'}, agreement{suffix}.json, report{suffix}.html, rate_error{suffix}.png"
    )
    return agreement.agreed
