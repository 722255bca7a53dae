"""Batch normalisation becomes part of an affine layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import Affine, BatchNorm, Conv1d, Conv2d, Layer, LayerGraph, Linear
from bridge.passes.scaling import scaled


def fold_batch_norm(graph: LayerGraph) -> LayerGraph:
    """Fold every `BatchNorm` into the affine layer right before it, ``W' = scale·W``, ``b' = scale·b + shift``.

    Where there is none, or other layers read it too, the normalisation becomes an affine layer of its own: a 1×1
    depthwise convolution on feature maps, a diagonal matrix on vectors. (Moving it *forward* into a padded
    convolution would be wrong at the border, where the zeros are not normalised.)
    """
    changes: dict[str, list[Layer]] = {}
    for layer in graph:
        if not isinstance(layer, BatchNorm):
            continue
        source = changes.get(layer.inputs[0], [graph[layer.inputs[0]]])[-1:]
        before = source[0] if source else None
        if isinstance(before, Affine) and len(graph.consumers(layer.inputs[0])) == 1:
            scale = layer.scale.astype(np.float64)
            rows = scale.reshape(-1, *[1] * (before.weight.ndim - 1))
            folded = replace(before, weight=scaled(before.weight, rows), bias=scale * before.bias + layer.shift)
            changes[layer.inputs[0]] = [folded]
            changes[layer.name] = []
        else:
            changes[layer.name] = [as_affine(layer, len(graph.shapes[layer.name]))]
    return graph.rewrite(changes)


def as_affine(layer: BatchNorm, rank: int) -> Affine:
    """`layer`, on arrays with `rank` dimensions, as an affine layer of its own."""
    if rank == 1:
        return Linear(name=layer.name, inputs=layer.inputs, weight=np.diag(layer.scale), bias=layer.shift)
    kind = Conv2d if rank == 3 else Conv1d
    weight = layer.scale.reshape(-1, *[1] * rank)
    return kind(name=layer.name, inputs=layer.inputs, weight=weight, bias=layer.shift, groups=len(weight))
