"""scikit-learn's handwritten digits, and a small network that learns them in seconds: real data for demo and tests."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bridge._util.progress import progress
from bridge.errors import BridgeError
from bridge.prepare.replace import replace_activations

LEVELS = 8
"""L of every QCFS of `digits_model`."""


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
