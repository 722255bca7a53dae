"""How many images a network gets right, measured in the same way whatever it learnt in."""

from __future__ import annotations

import torch
from torch import nn

from bridge.prepare.inference import at_inference
from bridge.zoo.data import Dataset, Images

EVALUATED_AT_ONCE = 250


def accuracy(model: nn.Module, images: Images, dataset: Dataset) -> float:
    """The share of `images` that `model` puts in the right class, in float32, which a GPU would round to tf32."""
    device = next(model.parameters()).device
    cudnn = torch.backends.cudnn
    correct = 0
    with at_inference(model), torch.no_grad(), cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
        for x, y in zip(images.x.split(EVALUATED_AT_ONCE), images.y.split(EVALUATED_AT_ONCE), strict=True):
            batch = dataset.normalise(x).to(device).contiguous(memory_format=torch.channels_last)
            correct += int((model(batch).argmax(1).cpu() == y).sum())
    return correct / len(images.y)
