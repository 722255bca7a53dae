"""The network's input becomes pixels: what they stand for is folded into the layers that read them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bridge.graph import Affine, Array, BatchNorm, Layer, LayerGraph
from bridge.graph.pixel_grid import PixelGrid
from bridge.passes.fold_batch_norm import as_affine
from bridge.passes.scaling import scale_inputs


def ann_on_pixels(ann: LayerGraph, grid: PixelGrid) -> LayerGraph:
    """`ann`, its input in pixels of `grid`: a `BatchNorm` after the `Input` makes of them what it was trained on."""
    first = ann.input
    values = BatchNorm(
        name=ann.free(f"{first.name}_values"),
        inputs=(first.name,),
        scale=grid.step.astype(np.float32),
        shift=grid.low.astype(np.float32),
    )
    return LayerGraph((first, values, *(_reading(layer, first.name, values.name) for layer in ann.layers[1:])))


def on_pixels(graph: LayerGraph, grid: PixelGrid) -> LayerGraph:
    """`graph`, its input in pixels ``p`` of `grid`.

    An affine layer without padding takes all of ``x = low + step · p`` into its weights and bias. Where zeros are
    padded, which stand for x = 0 and not for p = 0, the pixels are first counted from the one nearest to x = 0, by a
    depthwise 1×1 convolution of weight 1; only the rest, less than half a step, goes into the bias. Other readers
    than affine layers get ``x`` from a depthwise 1×1 convolution of its own.
    """
    first, rank = graph.input, len(graph.input.shape)
    zero = np.rint(-grid.low / grid.step)
    rest = grid.low + grid.step * zero
    name = first.name
    values = BatchNorm(name=graph.free(f"{name}_values"), inputs=(name,), scale=grid.step, shift=grid.low)
    centred = BatchNorm(
        name=graph.free(f"{name}_centred"), inputs=(name,), scale=np.ones_like(zero), shift=np.where(zero, -zero, 0.0)
    )
    layers: list[Layer] = []
    needed: dict[str, BatchNorm] = {}
    for layer in graph.layers[1:]:
        if name in layer.inputs and not isinstance(layer, Affine):
            needed[values.name] = values
            layer = _reading(layer, name, values.name)
        elif isinstance(layer, Affine) and name in layer.inputs:
            if zero.any() and np.any(getattr(layer, "padding", 0)):
                needed[centred.name] = centred
                layer = _reading(_on(layer, grid.step, rest), name, centred.name)
            else:
                layer = _on(layer, grid.step, grid.low)
        layers.append(layer)
    return LayerGraph((first, *(as_affine(norm, rank) for norm in needed.values()), *layers))


def _on(layer: Affine, step: Array, shift: Array) -> Affine:
    """`layer` for an input ``p`` of which it used to get ``shift + step · p``."""
    shifted = scale_inputs(layer, shift).weight.astype(np.float64)
    bias = layer.bias + shifted.reshape(len(layer.bias), -1).sum(axis=1)
    return replace(scale_inputs(layer, step), bias=bias)


def _reading(layer: Layer, source: str, instead: str) -> Layer:
    """`layer`, taking `instead` where it took `source`."""
    return replace(layer, inputs=tuple(instead if name == source else name for name in layer.inputs))
