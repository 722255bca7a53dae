"""The spiking network as a ``TorchModule`` of Rockpool, and the modules that it takes beside Rockpool's own.

All of them map ``[B, T, N_in]`` to ``[B, T, N_out]``, every time step by itself but for the neurons. They register
weights and biases as Rockpool's ``Parameter``. (A torch layer as a child would not do: Rockpool 3.1.0 patches it so
that in a deep copy of the network the original's layer is still the one that is called.)
"""

from __future__ import annotations

import operator
from functools import reduce, singledispatch
from math import prod
from typing import Any

import numpy as np
import rockpool.parameters as rp
import torch.nn.functional as F
from rockpool.nn.modules import LinearTorch, TorchModule
from torch import Tensor

from bridge.errors import GraphError
from bridge.graph import (
    NEURONS,
    Add,
    Array,
    AtLeast,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    EachLevel,
    Flatten,
    GroupFire,
    GroupSum,
    Impulse,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    WindowFire,
    spread,
)
from bridge.graph.ranges import largest_drives
from bridge.simulate.ops import tensor
from exporters.rockpool import grouped, staged
from exporters.rockpool.neuron import SoftResetIF

NEURON_MODULES = SoftResetIF | staged.WindowIF | grouped.ThresholdGroup


class RockpoolNetwork(TorchModule):  # type: ignore[misc]
    """A spiking network with one child a layer, called by the layer's name; only sums have none.

    Args:
        graph: the spiking network.

    Raises:
        GraphError: there is no module for a layer, or none can have its name.
    """

    def __init__(self, graph: LayerGraph) -> None:
        shapes = graph.shapes
        spiking = isinstance(graph.output, NEURONS)
        size = (prod(graph.input.shape), prod(shapes[graph.output.name]))
        super().__init__(shape=size, spiking_input=False, spiking_output=spiking)
        self.shapes = shapes
        self.summed, self.integer = graph.staged, graph.integer
        self.drives = largest_drives(graph)
        self.sources = {layer.name: layer.inputs for layer in graph}
        last_readers = {source: layer.name for layer in graph for source in layer.inputs}
        self.read_last_by = {
            layer.name: [source for source in set(layer.inputs) if last_readers[source] == layer.name]
            for layer in graph
        }
        self._record_dict: dict[str, dict[str, Tensor]] = {}
        for layer in graph:
            if isinstance(layer, Input | Add | Flatten):
                continue  # between modules, all signals are flat
            if not layer.name.isidentifier() or hasattr(self, layer.name):
                raise GraphError(
                    f"layer {layer.name!r}: a Rockpool module cannot have a child of this name; rename the node"
                )
            setattr(self, layer.name, _module(layer, shapes[layer.inputs[0]]))

    def forward(self, data: Tensor) -> Tensor:
        """The readouts ``[B, T, N_out]`` for inputs ``[B, T, N_in]``."""
        data, _ = self._auto_batch(data)
        signals: dict[str, Tensor] = {}
        self._record_dict = {}
        for name, sources in self.sources.items():
            given = [signals[source] for source in sources]
            if name in self._submodulenames:
                module = getattr(self, name)
                signals[name], _, record = module(*given, record=self._record)
                if isinstance(module, NEURON_MODULES):
                    self._record_dict[name] = record
            else:
                signals[name] = reduce(operator.add, given) if given else data
            for source in self.read_last_by[name]:
                del signals[source]
        return signals[name]

    def evolve(self, input_data: Tensor, record: bool = False) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """``(output, state, record)``: with `record`, every layer's ``{"spikes", "vmem"}``, each ``[B, T, N]``."""
        output, state, kept = super().evolve(input_data, record)
        self._record_dict = {}  # nothing of this call stays with the network
        return output, state, kept


class Convolution(TorchModule):  # type: ignore[misc]
    """``Conv1d`` or ``Conv2d`` of feature maps of the shape `maps`, at every time step."""

    def __init__(self, layer: Conv1d | Conv2d, maps: Shape) -> None:
        super().__init__(shape=(prod(maps), prod(layer.output_shape(maps))))
        self.weight = rp.Parameter(tensor(layer.weight).clone(), family="weights")
        self.bias = rp.Parameter(tensor(layer.bias).clone(), family="biases")
        self.maps = maps
        self.options = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        convolve = F.conv1d if len(self.maps) == 2 else F.conv2d
        y = convolve(x.reshape(-1, *self.maps), self.weight, self.bias, *self.options)
        return y.reshape(*x.shape[:2], -1)


class Pooling(TorchModule):  # type: ignore[misc]
    """The mean over windows of feature maps of the shape `maps`, at every time step, or the sum over them."""

    def __init__(self, layer: AvgPool2d, maps: Shape) -> None:
        super().__init__(shape=(prod(maps), prod(layer.output_shape(maps))))
        self.maps = maps
        self.windows = (layer.kernel, layer.stride, layer.padding)
        self.divisor = 1 if isinstance(layer, SumPool2d) else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x.reshape(-1, *self.maps), *self.windows, divisor_override=self.divisor)
        return y.reshape(*x.shape[:2], -1)


class Scaling(TorchModule):  # type: ignore[misc]
    """``y_i = scale_i x_i``, scale ``[N]``."""

    scale: Tensor

    def __init__(self, scale: Array) -> None:
        super().__init__(shape=(len(scale), len(scale)))
        self.scale = rp.SimulationParameter(tensor(scale).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@singledispatch
def _module(layer: Layer, shape: Shape) -> TorchModule:
    """The module of `layer` for inputs of this shape."""
    raise GraphError(f"layer {layer.name!r}: there is no Rockpool module for a {type(layer).__name__} yet")


@_module.register
def _(layer: IntegrateFire, shape: Shape) -> TorchModule:
    layer.expect(bool((layer.level > 0).all()), "levels > 0 (Rockpool divides by them)", layer.level.min())
    return SoftResetIF(_spread(layer.level, shape), _spread(layer.threshold, shape))


@_module.register
def _(layer: Linear, shape: Shape) -> TorchModule:
    size = layer.weight.shape[::-1]
    return LinearTorch(size, weight=tensor(layer.weight).T.clone(), bias=tensor(layer.bias).clone(), has_bias=True)


@_module.register
def _(layer: Conv1d | Conv2d, shape: Shape) -> TorchModule:
    return Convolution(layer, shape)


@_module.register
def _(layer: AvgPool2d, shape: Shape) -> TorchModule:
    return Pooling(layer, shape)


@_module.register
def _(layer: Scale, shape: Shape) -> TorchModule:
    return Scaling(_spread(layer.scale, shape))


@_module.register
def _(layer: WindowFire, shape: Shape) -> TorchModule:
    return staged.WindowIF(layer.level.ravel(), _spread(layer.threshold, shape), layer.opens, layer.steps)


@_module.register
def _(layer: Impulse, shape: Shape) -> TorchModule:
    return staged.Impulse(prod(shape))


@_module.register
def _(layer: BiasOnce, shape: Shape) -> TorchModule:
    return staged.BiasOnce(layer.bias.ravel())


@_module.register
def _(layer: AtLeast, shape: Shape) -> TorchModule:
    return grouped.Threshold(_spread(layer.level, shape))


@_module.register
def _(layer: GroupFire, shape: Shape) -> TorchModule:
    return grouped.ThresholdGroup(np.stack([_spread(level, shape) for level in layer.level]))


@_module.register
def _(layer: EachLevel, shape: Shape) -> TorchModule:
    return grouped.EachLevel(_module(layer.layer, shape[1:]), shape[0])


@_module.register
def _(layer: GroupSum, shape: Shape) -> TorchModule:
    return grouped.GroupSum(prod(shape[1:]), shape[0])


def _spread(values: Array, shape: Shape) -> Array:
    """One value per channel, or one per position, as one for every element of ``[C, ...]``."""
    return spread(values, shape).ravel()
