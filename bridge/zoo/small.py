"""A small convolutional network for 28×28 images, such as MNIST's."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from bridge.prepare.qcfs import QCFS

STAGES = ((32, 32), (64, 64))
"""Output channels of the convolutions, one tuple a stage; a stage ends in a pool."""
HIDDEN = 128


def small_cnn(
    num_classes: int = 10, levels: int = 8, threshold: float = 2.0, channels: int = 1, image_size: int = 28
) -> nn.Sequential:
    """Two stages of two 3×3 convolutions, each halving the image, and two linear layers; 0.47 million weights.

    Shapes: ``[B, channels, image_size, image_size]`` in, ``[B, num_classes]`` out.

    Args:
        num_classes: 10 for MNIST.
        levels: L of every QCFS.
        threshold: λ of every QCFS at the start.
        channels: of the images.
        image_size: height and width of the images, a multiple of 4. It sets the size of the first linear layer.

    Raises:
        ValueError: `image_size` does not fit.
    """
    if image_size < 4 or image_size % 4:
        raise ValueError(f"small_cnn: image_size must be a multiple of 4, got {image_size}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, number = channels, 0
    for stage, widths in enumerate(STAGES, start=1):
        for width in widths:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"act{number}"] = QCFS(levels, threshold)
            before = width
        layers[f"pool{stage}"] = nn.AvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["hidden"] = nn.Linear(before * (image_size // 4) ** 2, HIDDEN, bias=False)
    layers["norm5"] = nn.BatchNorm1d(HIDDEN)
    layers["act5"] = QCFS(levels, threshold)
    layers["readout"] = nn.Linear(HIDDEN, num_classes)
    return nn.Sequential(layers)
