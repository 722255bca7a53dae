"""A layer graph as a network of Nengo's: an ensemble for each layer of neurons, nodes and connections for the rest."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import nengo
import numpy as np
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.errors import GraphError
from bridge.graph import IntegrateFire, Layer, LayerGraph, Shape, same_padding, spread
from exporters.nengo.neuron import SoftResetIF, Threshold
from exporters.nengo.staged import Impulse, WindowIF


class NengoNetwork(nengo.Network):  # type: ignore[misc]
    """To be simulated with ``dt=1``, on its own or as a part of another network, for one image after the other.

    Ensembles are labelled as the layers of neurons, nodes as the other layers; values are in C order of ``[C, H, W]``,
    and of ``[L, C, H, W]`` where neurons are groups of L thresholds. The threshold behind a pool is an ensemble, too.
    Nothing is delayed: Nengo computes all that is connected with ``synapse=None`` in the order in which it is heard, so
    that the spikes of a step reach the next layer in that step.

    Attributes:
        input: the node for the image. output: the node, or the neurons, of the last layer: the readout.
        neurons: of the spiking layers, by name.
        shapes: of the values of every layer, by name; input_shape, output_shape: of the image and of the readout.
        summed: whether the output is the sum of the readout, as in a staged network, or its mean.
    """

    def __init__(self, graph: LayerGraph) -> None:
        """Build `graph`. Raises `GraphError` for a kind of layer that has no form here."""
        super().__init__(label="spiking network")
        self.shapes, self.summed = graph.shapes, graph.staged
        self.integer = graph.integer
        self.input_shape, self.output_shape = graph.input.shape, graph.shapes[graph.output.name]
        values: dict[str, Any] = {}
        with self:
            for layer in graph:
                values[layer.name] = _values(layer, graph.shapes[layer.name])
                for source in layer.inputs:
                    _connect(layer, values[source], graph.shapes[source], values[layer.name])
        self.neurons = {name: values[name] for name in graph.spiking}
        self.input, self.output = values[graph.input.name], values[graph.output.name]


@singledispatch
def _values(layer: Layer, shape: Shape) -> Any:
    """The node or the neurons whose values, of this `shape`, are what `layer` gives."""
    return nengo.Node(size_in=math.prod(shape), label=layer.name)


@_values.register
def _(layer: IntegrateFire, shape: Shape) -> Any:
    values = {"level": _spread(layer.level, shape), "threshold": _spread(layer.threshold, shape)}
    return _ensemble(layer, SoftResetIF(initial_state=values), shape)


@_values.register
def _(layer: layers.WindowFire, shape: Shape) -> Any:
    values = {
        "level": _spread(layer.level, shape),
        "threshold": _spread(layer.threshold, shape),
        "opens": np.full(math.prod(shape), layer.opens),
        "shuts": np.full(math.prod(shape), layer.opens + layer.steps),
    }
    return _ensemble(layer, WindowIF(initial_state=values), shape)


@_values.register
def _(layer: layers.AtLeast, shape: Shape) -> Any:
    return _ensemble(layer, Threshold(initial_state={"level": _spread(layer.level, shape)}), shape)


@_values.register
def _(layer: layers.GroupFire, shape: Shape) -> Any:
    level = np.concatenate([_spread(level, shape[1:]) for level in layer.level])
    return _ensemble(layer, Threshold(initial_state={"level": level}), shape)


@_values.register
def _(layer: layers.EachLevel, shape: Shape) -> Any:
    if not isinstance(layer.layer, layers.AtLeast):
        return nengo.Node(size_in=math.prod(shape), label=layer.name)
    level = np.tile(_spread(layer.layer.level, shape[1:]), shape[0])
    return _ensemble(layer, Threshold(initial_state={"level": level}), shape)


@_values.register
def _(layer: layers.Impulse, shape: Shape) -> Any:
    return _impulse(math.prod(shape), layer.name)


def _impulse(size: int, label: str) -> Any:
    return nengo.Node(Impulse(), size_in=size, size_out=size, label=label)


def _ensemble(layer: Layer, neurons: nengo.neurons.NeuronType, shape: Shape) -> Any:
    size = math.prod(shape)
    return nengo.Ensemble(
        size, dimensions=1, neuron_type=neurons, gain=np.ones(size), bias=np.zeros(size), label=layer.name
    ).neurons


@singledispatch
def _connect(layer: Layer, source: Any, shape: Shape, target: Any) -> None:
    """Connect `source`, whose values have `shape`, to the node or the neurons `target` of `layer`."""
    raise GraphError(f"layer {layer.name!r}: there is no connection in Nengo for a {type(layer).__name__} yet")


AS_THEY_ARE = layers.Add | layers.Flatten | IntegrateFire | layers.WindowFire | layers.AtLeast | layers.Impulse


@_connect.register
def _(layer: AS_THEY_ARE, source: Any, shape: Shape, target: Any) -> None:
    nengo.Connection(source, target, synapse=None)


@_connect.register
def _(layer: layers.BiasOnce, source: Any, shape: Shape, target: Any) -> None:
    nengo.Connection(source, target, synapse=None)
    bias = nengo.Node(_spread(layer.bias, shape), label=f"{layer.name}_bias")
    once = _impulse(bias.size_out, f"{layer.name}_bias_once")
    nengo.Connection(bias, once, synapse=None)
    nengo.Connection(once, target, synapse=None)


@_connect.register
def _(layer: layers.GroupFire, source: Any, shape: Shape, target: Any) -> None:
    for part in _levels(target, layer.levels):
        nengo.Connection(source, part, synapse=None)


@_connect.register
def _(layer: layers.EachLevel, source: Any, shape: Shape, target: Any) -> None:
    for one, other in zip(_levels(source, shape[0]), _levels(target, shape[0]), strict=True):
        _connect(layer.layer, one, shape[1:], other)


@_connect.register
def _(layer: layers.GroupSum, source: Any, shape: Shape, target: Any) -> None:
    for part in _levels(source, shape[0]):
        nengo.Connection(part, target, synapse=None)


def _levels(values: Any, count: int) -> list[Any]:
    """The nodes' or neurons' `values` of each of `count` levels, which follow one another."""
    size = values.size_out // count
    return [values[at * size : (at + 1) * size] for at in range(count)]


@_connect.register
def _(layer: layers.Scale, source: Any, shape: Shape, target: Any) -> None:
    nengo.Connection(source, target, transform=_spread(layer.scale, shape), synapse=None)


@_connect.register
def _(layer: layers.Linear, source: Any, shape: Shape, target: Any) -> None:
    nengo.Connection(source, target, transform=layer.weight, synapse=None)
    _add_bias(layer, layer.output_shape(shape), target)


@_connect.register
def _(layer: layers.Conv1d | layers.Conv2d, source: Any, shape: Shape, target: Any) -> None:
    dilation, stride, padding = (
        tuple(int(size) for size in np.atleast_1d(sizes)) for sizes in (layer.dilation, layer.stride, layer.padding)
    )
    kernel = _dilated(layer.weight, dilation)
    _convolve(layer.name, source, shape, target, kernel, stride, padding, layer.groups)
    _add_bias(layer, layer.output_shape(shape), target)


@_connect.register
def _(layer: layers.AvgPool2d, source: Any, shape: Shape, target: Any) -> None:
    share = 1 if isinstance(layer, layers.SumPool2d) else 1 / math.prod(layer.kernel)
    kernel = np.full((shape[0], 1, *layer.kernel), share)
    _convolve(layer.name, source, shape, target, kernel, layer.stride, layer.padding, groups=shape[0])


def _convolve(
    name: str, source: Any, shape: Shape, target: Any, kernel: NDArray[Any], strides: Shape, padding: Shape, groups: int
) -> None:
    """Connect through Nengo's ``Convolution``, for the layer `name`, with `kernel` ``[C_out, C_in / groups, ...]``.

    Its padding is "valid", or "same", which like TensorFlow's is uneven behind strides. What neither of them says is a
    node with zeros around the values.
    """
    same = set(strides) == {1} and padding == same_padding(kernel.shape[2:], (1,) * len(padding))
    if any(padding) and not same:
        wide = (shape[0], *(size + 2 * width for size, width in zip(shape[1:], padding, strict=True)))
        window = tuple(slice(width, width + size) for size, width in zip(shape[1:], padding, strict=True))
        inside = np.arange(math.prod(wide)).reshape(wide)[(slice(None), *window)].ravel()
        padded = nengo.Node(size_in=math.prod(wide), label=f"{name}_padded")
        nengo.Connection(source, padded[inside], synapse=None)
        source, shape = padded, wide
    transform = nengo.Convolution(
        n_filters=len(kernel),
        input_shape=shape,
        kernel_size=kernel.shape[2:],
        strides=strides,
        padding="same" if same else "valid",
        channels_last=False,
        init=np.moveaxis(kernel, (1, 0), (-2, -1)),
        groups=groups,
    )
    nengo.Connection(source, target, transform=transform, synapse=None)


def _dilated(weight: NDArray[Any], dilation: Shape) -> NDArray[Any]:
    """`weight` ``[C_out, C_in, ...]`` with zeros between its values, which Nengo has no dilation for."""
    sizes = [d * (size - 1) + 1 for size, d in zip(weight.shape[2:], dilation, strict=True)]
    result = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    result[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return result


def _add_bias(layer: layers.Affine, shape: Shape, target: Any) -> None:
    if not layer.bias.any():
        return
    bias = nengo.Node(_spread(layer.bias, shape), label=f"{layer.name}_bias")
    nengo.Connection(bias, target, synapse=None)


def _spread(values: NDArray[Any], shape: Shape) -> NDArray[np.float64]:
    """One value per channel, or one per position, as one for every neuron of ``[C, ...]``."""
    return spread(np.asarray(values, np.float64), shape).ravel()
