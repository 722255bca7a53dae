"""What the torch-based backends share: a layer graph as a torch module, and running one step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import singledispatch
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bridge.backends.protocol import check_input
from bridge.errors import GraphError
from bridge.graph import (
    Add,
    Affine,
    AtLeast,
    AvgPool2d,
    BiasOnce,
    Conv1d,
    Conv2d,
    Flatten,
    Impulse,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    SumPool2d,
    WindowFire,
    aligned,
)
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.ops import tensor


class Scaling(nn.Module):
    """``y = scale · x`` for signals ``[..., C, H, W]``, whatever stands before the channels.

    `scale` has as many dimensions as a signal: ``[C, 1, 1]`` with one factor per channel, ``[C, H, W]`` with one per
    position.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Threshold(nn.Module):
    """``y = [x ≥ level]`` for signals ``[..., C, H, W]``, `level` ``[C, 1, 1]``.

    Gradients pass it as they would a sigmoid: else none would reach what stands before a maximum.
    """

    level: Tensor

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.register_buffer("level", level)

    def forward(self, x: Tensor) -> Tensor:
        smooth = (x - self.level).sigmoid()
        return (x >= self.level).to(x.dtype) + (smooth - smooth.detach())


def clock(x: Tensor) -> Tensor:
    """The number of the first time step, 0, for each image of `x` ``[B, ...]``, to broadcast over it."""
    return x.new_zeros(len(x), *[1] * (x.dim() - 1))


def build(
    graph: LayerGraph,
    library: Any,
    neuron: Callable[[IntegrateFire, int], nn.Module],
    name: str,
    staged: Callable[[WindowFire | Impulse | BiasOnce], nn.Module] | None = None,
) -> fx.GraphModule:
    """A torch module with one child a layer, called by the layer's name; ``print(module.code)`` shows its forward.

    Maps one time step's input ``[B, *input]`` to that step's readout ``[B, ...]``.

    Args:
        graph: the spiking network.
        library: where Conv2d, Linear, AvgPool2d and Flatten come from, such as `torch.nn`.
        neuron: makes the framework's neuron of an `IntegrateFire` layer and its rank, the dimensions of its signal.
        name: of the module's class.
        staged: makes the framework's module of a layer of a staged network that counts steps; None: there are none.

    Raises:
        GraphError: there is no rule for a kind of layer.
    """
    modules: dict[str, nn.Module] = {}
    nodes: dict[str, fx.Node] = {}
    calls = fx.Graph()
    for layer in graph:
        if not layer.inputs:
            nodes[layer.name] = calls.placeholder("x")
            continue
        inputs = tuple(nodes[source] for source in layer.inputs)
        if isinstance(layer, Add):
            nodes[layer.name] = calls.call_function(operator.add, inputs)
            continue
        if not layer.name.isidentifier() or hasattr(fx.GraphModule, layer.name):
            raise GraphError(f"layer {layer.name!r}: a torch module cannot have a child of this name; rename the node")
        if isinstance(layer, Scale):
            modules[layer.name] = Scaling(tensor(aligned(layer.scale, len(graph.shapes[layer.name]))).clone())
        elif isinstance(layer, AtLeast):
            modules[layer.name] = Threshold(tensor(aligned(layer.level, len(graph.shapes[layer.name]))).clone())
        elif staged is not None and isinstance(layer, WindowFire | Impulse | BiasOnce):
            modules[layer.name] = staged(layer)
        elif isinstance(layer, IntegrateFire):
            modules[layer.name] = neuron(layer, len(graph.shapes[layer.name]))
        else:
            modules[layer.name] = _module(layer, library)
        nodes[layer.name] = calls.call_module(layer.name, inputs)
    calls.output(nodes[graph.output.name])
    module = fx.GraphModule(modules, calls, name)
    module.meta["input_shape"] = graph.input.shape
    module.meta["staged"] = graph.staged
    return module


@singledispatch
def _module(layer: Layer, library: Any) -> nn.Module:
    raise GraphError(f"layer {layer.name!r}: there is no torch module for a {type(layer).__name__} yet")


@_module.register
def _(layer: Conv1d | Conv2d, library: Any) -> nn.Module:
    kind = library.Conv2d if isinstance(layer, Conv2d) else library.Conv1d
    out_channels, per_group, *kernel = layer.weight.shape
    channels = (per_group * layer.groups, out_channels)
    module = kind(*channels, tuple(kernel), layer.stride, layer.padding, layer.dilation, layer.groups)
    return _with_parameters(module, layer)


@_module.register
def _(layer: Linear, library: Any) -> nn.Module:
    return _with_parameters(library.Linear(layer.weight.shape[1], layer.weight.shape[0]), layer)


@_module.register
def _(layer: AvgPool2d, library: Any) -> nn.Module:
    return cast(nn.Module, library.AvgPool2d(layer.kernel, layer.stride, layer.padding))


@_module.register
def _(layer: SumPool2d, library: Any) -> nn.Module:
    return cast(nn.Module, library.AvgPool2d(layer.kernel, layer.stride, layer.padding, divisor_override=1))


@_module.register
def _(layer: Flatten, library: Any) -> nn.Module:
    return cast(nn.Module, library.Flatten())


def _with_parameters(module: nn.Module, layer: Affine) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("weight").copy_(tensor(layer.weight))
        module.get_parameter("bias").copy_(tensor(layer.bias))
    return module


def run(
    backend: str,
    native: fx.GraphModule,
    neurons: dict[str, nn.Module],
    potential: Callable[[nn.Module, Tensor], Tensor],
    x: NDArray[np.float32],
    steps: int,
    membranes: bool,
) -> SpikeRecord:
    """Feed `x` to `native` at every step and record what its `neurons`, reset by the caller, fire.

    `potential` gives what a neuron's potential was before its reset, from what it is and the spikes it fired. Adding
    the threshold back is exact where it matters: so is the subtraction of 1 between 1/2 and 2, and of whole numbers.
    """
    check_input(native.meta["input_shape"], x, steps)
    images = tensor(x)
    parameter = next(native.parameters(), images)
    images = images.to(device=parameter.device, dtype=parameter.dtype)
    fired: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            fired[name] = output

        return hook

    recorder = None
    handles = [neuron.register_forward_hook(keep(name)) for name, neuron in neurons.items()]
    try:
        with torch.no_grad():
            for _ in range(steps):
                readout = native(images)
                shapes = {name: tuple(s.shape[1:]) for name, s in fired.items()}
                recorder = recorder or Recorder(backend, shapes, summed=native.meta["staged"])
                for name, spikes in fired.items():
                    membrane = potential(neurons[name], spikes).cpu().numpy() if membranes else None
                    recorder.spikes(name, spikes.cpu().numpy(), membrane)
                recorder.readout(readout.cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    assert recorder is not None  # there is at least one step
    return recorder.finish()
