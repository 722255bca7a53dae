"""A few neurons and images kept for pictures: activation against rate, and rasters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import LayerGraph
from bridge.records import SpikeRecord
from bridge.validation.rates import rates

POINTS = 400
"""Neurons (of any image) in a layer's scatter plot."""
IMAGES, NEURONS = 4, 64
"""Images that have a raster, and neurons in each layer's."""


def samples(graph: LayerGraph, record: SpikeRecord, activations: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Of the first batch, whose reference is `record`: by layer, evenly spread over its neurons,

    * ``scatter``: a/λ and φ(T) of some neurons, pairs;
    * ``raster``: by image, by neuron, the steps at which it fired; ``neurons`` are their numbers in C order.
    """
    result: dict[str, Any] = {"scatter": {}, "raster": {}, "neurons": {}}
    images = min(IMAGES, record.images)
    first = record.window(0, images, record.steps)
    for name in record.layers:
        spikes = first.spikes(name).reshape(record.steps, images, -1)
        chosen = _spread(spikes.shape[-1], NEURONS)
        result["neurons"][name] = chosen.tolist()
        result["raster"][name] = [
            [(np.flatnonzero(spikes[:, image, neuron]) + 1).tolist() for neuron in chosen]
            for image in range(spikes.shape[1])
        ]
        if activations is not None:
            *_, rate = rates(graph, record, name)
            target, rate = activations[name].numpy().ravel(), rate.ravel()
            some = _spread(target.size, POINTS)
            result["scatter"][name] = np.stack([target[some], rate[some]], axis=1).round(6).tolist()
    return result


def _spread(count: int, wanted: int) -> NDArray[np.integer]:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))
