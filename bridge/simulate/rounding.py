"""How far float32 rounding can move a membrane potential, so that a tie can be told from a mistake."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from bridge.graph import Add, Affine, AvgPool2d, IntegrateFire, Layer, LayerGraph, Scale
from bridge.records import SpikeRecord
from bridge.simulate.ops import evaluate, tensor

UNIT_ROUNDOFF = 2.0**-24  # of float32, rounding to nearest


@torch.inference_mode()
def membrane_bounds(graph: LayerGraph, x: Tensor, record: SpikeRecord) -> dict[str, np.ndarray]:
    """Bound on the rounding error of every membrane potential, given the spikes that each layer heard in `record`.

    A sum of n float32 terms, added in any order, errs by at most ``γ_n Σ|terms|`` with ``γ_n = n·ε / (1 − n·ε)`` and
    ``ε = 2⁻²⁴`` (Higham, Accuracy and Stability of Numerical Algorithms, 2002, §4.2). Here the terms are every
    product ``w·x`` and bias that went into the potential since the first step, and the resets.

    Returns:
        Per spiking layer float32 ``[T, B, *shape]``, by name.
    """
    magnitudes: dict[str, Tensor] = {}
    terms: dict[str, int] = {}
    sums: dict[str, Tensor] = {}
    bounds: dict[str, list[np.ndarray]] = {name: [] for name in graph.spiking}
    spikes = {name: record.spikes(name) for name in graph.spiking}
    for t in range(record.steps):
        for layer in graph:
            if isinstance(layer, IntegrateFire):
                own = tensor(spikes[layer.name][t])
                sums[layer.name] = sums.get(layer.name, torch.zeros(())) + magnitudes[layer.inputs[0]] + own
                n = (terms[layer.inputs[0]] + 2) * (t + 1)
                bounds[layer.name].append((n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF) * sums[layer.name]).numpy())
                magnitudes[layer.name], terms[layer.name] = own, 0
            elif layer.inputs:
                magnitudes[layer.name] = evaluate(_absolute(layer), *(magnitudes[name] for name in layer.inputs))
                terms[layer.name] = sum(terms[name] for name in layer.inputs) + _terms(layer)
            else:
                magnitudes[layer.name], terms[layer.name] = x.abs(), 0
    return {name: np.stack(rows) for name, rows in bounds.items()}


def _absolute(layer: Layer) -> Layer:
    """`layer` with the absolute values of its parameters."""
    if isinstance(layer, Affine):
        return replace(layer, weight=np.abs(layer.weight), bias=np.abs(layer.bias))
    if isinstance(layer, Scale):
        return replace(layer, scale=np.abs(layer.scale))
    return layer


@singledispatch
def _terms(layer: Layer) -> int:
    """How many roundings one output value of `layer` goes through, at most."""
    return 0


@_terms.register
def _(layer: Affine) -> int:
    return int(np.prod(layer.weight.shape[1:])) + 1


@_terms.register
def _(layer: AvgPool2d) -> int:
    return int(np.prod(layer.kernel)) + 1


@_terms.register
def _(layer: Scale | Add) -> int:
    return 1
