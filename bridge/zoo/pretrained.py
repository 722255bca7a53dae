"""The trained networks that come with the package: weights and model cards lie in the folder ``trained``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bridge.errors import InputError
from bridge.zoo.models import load_weights

FOLDER = Path(__file__).parent / "trained"
DATA = {"digits": "digits", "mnist": "mnist", "resnet20-cifar10": "cifar10"}
"""By network, the data set it was trained on, as `bridge.zoo.data.dataset` calls it."""


def pretrained(name: str) -> nn.Module:
    """The trained network of that name, in eval mode: ``"digits"``, ``"mnist"`` or ``"resnet20-cifar10"``.

    It takes float32 images ``[B, C, H, W]`` that its `Dataset.normalise` made: of 8×8, 28×28 and 32×32 pixels. The card
    beside its weights, ``bridge/zoo/trained/<name>.md``, says how it was trained and how good it is.

    Raises:
        InputError: there is no network of that name.
        BridgeError: safetensors is not installed.

    Example:
        >>> model = pretrained("digits")
        >>> network = bridge.convert(model, torch.rand(1, 1, 8, 8))
    """
    if name not in DATA:
        raise InputError(f"no trained network is called {name!r}: there are {', '.join(DATA)}")
    return load_weights(FOLDER / f"{name}.safetensors")
