"""Batch normalisation becomes part of an affine layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import Affine, BatchNorm, Conv2d, Layer, LayerGraph, Linear


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
            rows = layer.scale.reshape(-1, *[1] * (before.weight.ndim - 1))
            folded = replace(before, weight=rows * before.weight, bias=layer.scale * before.bias + layer.shift)
            changes[layer.inputs[0]] = [folded]
            changes[layer.name] = []
        elif len(graph.shapes[layer.name]) == 3:
            kernels = layer.scale.reshape(-1, 1, 1, 1)
            changes[layer.name] = [
                Conv2d(name=layer.name, inputs=layer.inputs, weight=kernels, bias=layer.shift, groups=len(kernels))
            ]
        else:
            weight = np.diag(layer.scale)
            changes[layer.name] = [Linear(name=layer.name, inputs=layer.inputs, weight=weight, bias=layer.shift)]
    return graph.rewrite(changes)
