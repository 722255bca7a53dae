"""A layer graph as a module of Flax's NNX that keeps to Spyx's contract for layers with state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spyx
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.errors import GraphError
from bridge.graph import IntegrateFire, Layer, LayerGraph, Shape, aligned
from bridge.graph.ranges import largest_drives
from exporters.spyx import grouped, staged
from exporters.spyx.neuron import SoftResetIF

Module = Any
"""A module of NNX's, or a function."""
State = dict[str, Any]
"""By name, the state of every layer that has one. Neurons: potentials u after reset, ``[B, H, W, C]`` or ``[B, F]``.

In a staged network ``(u, step)``, and the step of the other layers that count (`exporters.spyx.staged`).
"""
STATEFUL = IntegrateFire | layers.WindowFire | layers.Impulse | layers.BiasOnce
GROUPED = layers.GroupFire | layers.EachLevel


class SpyxNetwork(nnx.Module):  # type: ignore[misc]
    """One time step of the network: images ``[B, C, H, W]`` and the state in, the step's readout and the state out.

    That is the contract of Spyx's own layers (``spyx.nn.StatefulLayer``), which a network with residual connections
    can keep while ``spyx.nn.Sequential`` cannot. ``spyx.nn.run(network, x)`` runs it over ``x`` ``[T, B, C, H, W]``.

    Images and readout have their channels first, as they have in NIR. Inside they come last, as in all of Spyx and
    NNX: ``[B, H, W, C]`` between the layers and in the state.

    Attributes:
        layers: the modules, in order. names: what they are called in the graph. spiking: those of the neurons.
        stateful: those with a state. grouped: those whose values are ``[B, L, ..., C]``, of L levels.
        drives: pairs of a layer and the largest drive of a step, in whole numbers.
        summed: whether the output is the sum of the readout, as in a staged network, or its mean.
        integer: whether it is a network in integers.
    """

    def __init__(self, graph: LayerGraph) -> None:
        """Build `graph`. Raises `GraphError` for a kind of layer that has no module here."""
        self.input_shape = graph.input.shape
        self.names = tuple(layer.name for layer in graph)
        self.sources = tuple(layer.inputs for layer in graph)
        self.spiking, self.summed, self.integer = graph.spiking, graph.staged, graph.integer
        self.drives = tuple(largest_drives(graph).items())
        self.stateful = tuple(layer.name for layer in graph if isinstance(layer, STATEFUL))
        self.grouped = tuple(layer.name for layer in graph if isinstance(layer, GROUPED))
        self.layers = nnx.List([_module(layer, graph.shapes[layer.name]) for layer in graph])

    def initial_state(self, batch_size: int) -> State:
        """All potentials at 0, and the first time step to come."""
        named = zip(self.names, self.layers, strict=True)
        return {name: layer.initial_state(batch_size) for name, layer in named if name in self.stateful}

    def __call__(self, x: Array, state: Mapping[str, Any]) -> tuple[Array, State]:
        readout, *_, after = self.step(x, state)
        return readout, after

    def step(self, x: Array, state: Mapping[str, Any]) -> tuple[Array, dict[str, Array], dict[str, Array], State]:
        """The readout of one time step ``[B, ...]``, the spikes and the potentials before reset, and the next state.

        Spikes and potentials are by layer, channels first.
        """
        values: dict[str, Array] = {}
        potentials: dict[str, Array] = {}
        after: State = {}
        for name, sources, layer in zip(self.names, self.sources, self.layers, strict=True):
            inputs = [values[source] for source in sources] or [x]
            if name in self.stateful:
                values[name], after[name] = layer(*inputs, state[name])
            else:
                values[name] = layer(*inputs)
            if name in self.spiking:
                membrane = layer.membrane(*inputs, values[name], after.get(name))
                potentials[name] = self._channels_first(name, membrane)
        spikes = {name: self._channels_first(name, values[name]) for name in self.spiking}
        return self._channels_first(self.names[-1], values[self.names[-1]]), spikes, potentials, after

    def _channels_first(self, name: str, values: Array) -> Array:
        return jnp.moveaxis(values, -1, 2 if name in self.grouped else 1)


@partial(jax.jit, static_argnums=0)
def advance(
    definition: Any, parameters: Any, x: NDArray[np.float32], state: State
) -> tuple[Array, dict[str, Array], dict[str, Array], State]:
    """`SpyxNetwork.step`, compiled, of a network in two parts, from ``nnx.split``."""
    return nnx.merge(definition, parameters).step(x, state)  # type: ignore[no-any-return]


def channels_first(values: Array) -> Array:
    """``[B, ..., C]`` as ``[B, C, ...]``."""
    return jnp.moveaxis(values, -1, 1)


def channels_last(values: Array) -> Array:
    """``[B, C, ...]`` as ``[B, ..., C]``."""
    return jnp.moveaxis(values, 1, -1)


class Flatten(spyx.nn.Flatten):  # type: ignore[misc]
    """``[B, H, W, C]`` to ``[B, C·H·W]``: the order that the next layer's weights have in NIR, channels first."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(channels_first(x))


class AvgPool(nnx.Module):  # type: ignore[misc]
    """Average pooling. A module, since what is compiled is told from other networks by what it is made of: two equal
    ones are compiled once, which two functions of the same arguments would not be.
    """

    def __init__(self, window: tuple[int, int], strides: tuple[int, int], padding: Any) -> None:
        self.window, self.strides, self.padding = window, strides, padding

    def __call__(self, x: Array) -> Array:
        return nnx.avg_pool(x, window_shape=self.window, strides=self.strides, padding=self.padding)


class SumPool(spyx.nn.SumPool):  # type: ignore[misc]
    """Spyx's sum pooling behind any padding; its own is "SAME" or "VALID"."""

    def __init__(self, layer: layers.SumPool2d) -> None:
        super().__init__(layer.kernel, layer.stride, "VALID")
        self.widths = ((0, 0), *_both_sides(layer.padding), (0, 0))

    def __call__(self, value: Array) -> Array:
        return super().__call__(jnp.pad(value, self.widths))


class Scaling(nnx.Module):  # type: ignore[misc]
    """``y = scale · x`` for signals ``[B, ..., C]``; `scale` is ``[C]``, or one factor per position ``[C, ...]``."""

    def __init__(self, scale: NDArray[np.floating]) -> None:
        self.scale = jnp.asarray(np.moveaxis(scale, 0, -1))

    def __call__(self, x: Array) -> Array:
        return x * self.scale


@singledispatch
def _module(layer: Layer, shape: Shape) -> Module:
    """What computes `layer`, whose output has `shape`, channels first and without batch."""
    raise GraphError(f"layer {layer.name!r}: there is no Spyx module for a {type(layer).__name__} yet")


@_module.register
def _(layer: layers.Input, shape: Shape) -> Module:
    return channels_last


@_module.register
def _(layer: layers.Add, shape: Shape) -> Module:
    return jnp.add


@_module.register
def _(layer: layers.Flatten, shape: Shape) -> Module:
    return Flatten()


@_module.register
def _(layer: layers.Scale, shape: Shape) -> Module:
    return Scaling(layer.scale)


@_module.register
def _(layer: layers.Impulse, shape: Shape) -> Module:
    return staged.Impulse(len(shape))


@_module.register
def _(layer: layers.BiasOnce, shape: Shape) -> Module:
    return staged.BiasOnce(np.moveaxis(layer.bias, 0, -1))


@_module.register
def _(layer: layers.AtLeast, shape: Shape) -> Module:
    return grouped.Threshold(np.moveaxis(layer.level, 0, -1))


@_module.register
def _(layer: layers.EachLevel, shape: Shape) -> Module:
    return grouped.EachLevel(_module(layer.layer, shape[1:]))


@_module.register
def _(layer: layers.GroupSum, shape: Shape) -> Module:
    return grouped.group_sum


@_module.register
def _(layer: layers.AvgPool2d, shape: Shape) -> Module:
    padding = _both_sides(layer.padding)
    return AvgPool(layer.kernel, layer.stride, padding)


@_module.register
def _(layer: layers.SumPool2d, shape: Shape) -> Module:
    return SumPool(layer)


@_module.register
def _(layer: layers.Linear, shape: Shape) -> Module:
    out_features, in_features = layer.weight.shape
    return nnx.Linear(in_features, out_features, **_parameters(layer))


@_module.register
def _(layer: layers.Conv1d | layers.Conv2d, shape: Shape) -> Module:
    out_channels, per_group, *kernel = layer.weight.shape
    return nnx.Conv(
        per_group * layer.groups,
        out_channels,
        kernel,
        layer.stride,
        padding=_both_sides(np.atleast_1d(layer.padding)),
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
        **_parameters(layer),
    )


@_module.register
def _(layer: IntegrateFire, shape: Shape) -> Module:
    return SoftResetIF((*shape[1:], shape[0]), layer.level, layer.threshold)


@_module.register
def _(layer: layers.WindowFire, shape: Shape) -> Module:
    level = np.moveaxis(layer.level, 0, -1)
    return staged.WindowIF(level.shape, level, layer.threshold, layer.opens, layer.steps)


@_module.register
def _(layer: layers.GroupFire, shape: Shape) -> Module:
    levels = [np.moveaxis(aligned(level, len(shape) - 1), 0, -1) for level in layer.level]
    return grouped.ThresholdGroup(np.stack(levels))


def _parameters(layer: layers.Affine) -> dict[str, Any]:
    """Weights in NNX's order, ``[..., C_in, C_out]``, and products in full float32 on every device."""
    weight = np.moveaxis(layer.weight, (1, 0), (-2, -1))
    return {
        "kernel_init": lambda key, shape, dtype: jnp.asarray(weight, dtype),
        "bias_init": lambda key, shape, dtype: jnp.asarray(layer.bias, dtype),
        "precision": jax.lax.Precision.HIGHEST,
        "rngs": nnx.Rngs(0),
    }


def _both_sides(padding: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(width), int(width)) for width in padding)
