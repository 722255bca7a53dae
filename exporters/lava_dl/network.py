"""A layer graph as a torch module of SLAYER's layers, which take all time steps in one call."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from torch import fx, nn

from bridge.graph import LayerGraph
from exporters.lava_dl.neuron import neuron_of
from exporters.lava_dl.thresholds import layer_thresholds
from exporters.torch_module import Scaling, build


def build_network(graph: LayerGraph) -> fx.GraphModule:
    """The module of `graph`, ``x [B, C, H, W, T] → readout [B, F, T]``; ``meta["neurons"]`` names its spiking layers.

    `exporters.lava_dl.compat.apply` must have been called. Raises `GraphError` unless `graph` is in whole numbers, with
    one threshold a layer.
    """
    thresholds = layer_thresholds(graph)
    module = build(graph, nn, lambda layer, rank: neuron_of(thresholds[layer.name]), "SlayerNetwork")
    for name, child in list(module.named_children()):
        if name not in thresholds:
            setattr(module, name, over_time(child))
    module.meta["neurons"] = graph.spiking
    return module


@singledispatch
def over_time(layer: nn.Module) -> nn.Module:
    """SLAYER's layer for all time steps ``[B, ..., T]`` that computes what `layer` does for one, ``[B, ...]``.

    It takes over the parameters of `layer`. Where SLAYER's own cannot do it, it is one of torch's.
    """
    raise NotImplementedError(f"no layer over time for a {type(layer).__name__}")


@over_time.register
def _(layer: nn.Conv2d) -> nn.Module:
    from lava.lib.dl.slayer import synapse

    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    conv: nn.Module = synapse.Conv(layer.in_channels, layer.out_channels, *sizes, layer.groups)
    return _with_parameters(conv, layer)


@over_time.register
def _(layer: nn.Linear) -> nn.Module:
    from lava.lib.dl.slayer import synapse

    dense: nn.Module = synapse.Dense(layer.in_features, layer.out_features)
    return _with_parameters(dense, layer)


@over_time.register
def _(layer: nn.Conv1d) -> nn.Module:
    kernel, stride, dilation = (_and_time(size, 1) for size in (layer.kernel_size, layer.stride, layer.dilation))
    sizes = (kernel, stride, _and_time(layer.padding, 0), dilation)
    return _with_parameters(nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, layer.groups), layer)


@over_time.register
def _(layer: nn.AvgPool2d) -> nn.Module:
    # SLAYER's Pool rounds odd sizes up, where NIR's and torch's round them down.
    kernel, stride, padding = _and_time(layer.kernel_size, 1), _and_time(layer.stride, 1), _and_time(layer.padding, 0)
    return nn.AvgPool3d(kernel, stride, padding, divisor_override=layer.divisor_override)


@over_time.register
def _(layer: nn.Flatten) -> nn.Module:
    return nn.Flatten(1, -2)


@over_time.register
def _(layer: Scaling) -> nn.Module:
    return Scaling(layer.scale.unsqueeze(-1))


def _and_time(sizes: Any, time: int) -> Any:
    """`sizes` of a window, one a dimension of a signal, with that of the time axis behind them."""
    return (*sizes, time)


def _with_parameters(module: nn.Module, layer: nn.Module) -> nn.Module:
    """`module` with the weight and the bias of `layer`; SLAYER's synapses have none, but the place for one."""
    weight = layer.get_parameter("weight")
    module.weight = nn.Parameter(weight.detach().reshape(module.get_parameter("weight").shape))
    module.bias = nn.Parameter(layer.get_parameter("bias").detach())
    return module
