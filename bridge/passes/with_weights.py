"""A spiking network takes the weights back that a framework's own module of it has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bridge.errors import InputError
from bridge.graph import Affine, Array, IntegrateFire, Layer, LayerGraph, Scale

PREFIXES = ("module.", "_orig_mod.")
"""What torch puts before every name of a model that was compiled, or runs on several devices."""
THRESHOLDS = ("v_threshold", "threshold", "v_th", "theta", "spike_threshold")
"""What frameworks call a neuron's threshold."""


CONSTANTS = (
    "beta", "below", "graded_spikes_factor", "min_v_mem", "reset_mechanism_val", "spike_threshold", "threshold",
    "v_offset", "v_reset", "v_th", "v_threshold",
)  # fmt: skip
"""What frameworks' neurons call their constants, on which the spiking network depends and which training must leave."""


def constants(module: nn.Module) -> dict[str, Array]:
    """The constants of a framework's model, by the names of its parts: `exporters` keep those of a new one."""
    found = {}
    for name, part in module.named_modules():
        for constant in CONSTANTS:
            value = getattr(part, constant, None)
            if isinstance(value, Tensor | int | float) and not isinstance(value, bool):
                found[f"{name}.{constant}"] = _array(value)
    return found


def changed(module: nn.Module, before: Mapping[str, Array]) -> list[str]:
    """Which constants of `module` are no longer those that it was made with."""
    now = constants(module)
    return [
        f"{name}: this constant of the exact neuron was {old.ravel()[:3]}, and is {now[name].ravel()[:3]}; set it back"
        for name, old in before.items()
        if name in now and not np.array_equal(now[name], old)
    ]


def with_weights(graph: LayerGraph, state: Mapping[str, Any]) -> LayerGraph:
    """The plain `graph` with the weights, biases and factors in the state dict `state`, by the names of its layers.

    Raises:
        InputError: the network is in integers, or staged or grouped; or the names, shapes or values do not fit: the
            message lists every one. A neuron's threshold has changed.
    """
    if graph.integer or graph.latency is not None:
        kind = "in whole numbers" if graph.integer else "staged or grouped"
        raise InputError(
            f"with_weights: this network is {kind}, and its levels follow from its weights; train the plain network in "
            "floating point, and then quantize it, or convert the trained ANN"
        )
    values = {_bare(name): value for name, value in state.items()}
    problems: list[str] = []
    changes: dict[str, list[Layer]] = {}
    for layer in graph:
        if isinstance(layer, Affine):
            weight = _taken(values, f"{layer.name}.weight", layer.weight, problems)
            bias = _taken(values, f"{layer.name}.bias", layer.bias, problems)
            changes[layer.name] = [replace(layer, weight=weight, bias=bias)]
        elif isinstance(layer, Scale) and f"{layer.name}.scale" in values:
            changes[layer.name] = [
                replace(layer, scale=_taken(values, f"{layer.name}.scale", layer.scale, problems, squeezed=True))
            ]
        elif isinstance(layer, IntegrateFire):
            problems += _changed_thresholds(layer, values)
    known = {layer.name for layer in graph}
    strange = sorted(name for name in values if name.split(".")[0] not in known)
    problems += [f"{name}: no layer of that name" for name in strange]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"with_weights: these are not the weights of this network:\n{listed}")
    return graph.rewrite(changes)


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _taken(values: Mapping[str, Any], name: str, old: Array, problems: list[str], *, squeezed: bool = False) -> Array:
    """The array called `name`, in the shape of `old`; `old` itself, and a problem more, if there is none that fits.

    Of a factor for each channel (`squeezed`), frameworks keep the dimensions behind the channels.
    """
    if name not in values:
        problems.append(f"{name}: missing")
        return old
    new = _array(values[name])
    if squeezed and new.size == old.size:
        new = new.reshape(old.shape)
    if new.shape != old.shape:
        problems.append(f"{name}: expected shape {list(old.shape)}, got {list(new.shape)}")
        return old
    if not np.isfinite(new).all():
        problems.append(f"{name}: holds {int((~np.isfinite(new)).sum())} values that are NaN or infinite")
        return old
    return new


def _array(value: Any) -> Array:
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    copied: Array = tensor.to(device="cpu", dtype=torch.float32, copy=True).numpy()
    return copied


def _changed_thresholds(layer: IntegrateFire, values: Mapping[str, Any]) -> list[str]:
    """Whether training has moved the neuron's threshold, which weights are in units of.

    Frameworks keep the threshold or, where potentials begin at 0, the level, or the float32 below it.
    """
    names = [name for name in values if name.startswith(f"{layer.name}.") and name.split(".")[-1] in THRESHOLDS]
    level = layer.level.astype(np.float32)
    right = np.concatenate([layer.threshold.astype(np.float32), level, np.nextafter(level, np.float32(-np.inf))])
    return [
        f"{name}: the threshold of this neuron is {layer.threshold.max():g}, got {_array(values[name]).ravel()[:3]}; "
        "train weights alone, or multiply the layer's weights and bias by the inverse and set the threshold back"
        for name in names
        if not np.isin(_array(values[name]), right).all()
    ]
