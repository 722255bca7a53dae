"""What the torch-based backends share: a layer graph as a torch module, and running one step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    Shape,
    SumPool2d,
    WindowFire,
    aligned,
)
from bridge.graph.ranges import EXACT, beyond_exact, largest_drives
from bridge.passes.with_weights import constants
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
    """``y = [x ≥ level]`` for signals ``[..., C, H, W]``, `level` ``[C, 1, 1]`` or ``[C, H, W]``.

    Gradients pass it as they would a sigmoid: else none would reach what stands before a maximum.
    """

    level: Tensor

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.register_buffer("level", level)

    def forward(self, x: Tensor) -> Tensor:
        smooth = (x - self.level).sigmoid()
        return (x >= self.level).to(x.dtype) + (smooth - smooth.detach())


class Group(nn.Module):
    """``s_k = [x ≥ level_k]``, k = 1…L: of a signal ``[..., C, H, W]`` the spikes ``[..., L, C, H, W]``. No state.

    `level` is ``[L, C, 1, 1]``, or ``[L, C, H, W]`` with one for each neuron. A framework's subclass says in `fire` how
    the test is done and which surrogate gradient passes it.
    """

    level: Tensor

    def __init__(self, level: Tensor) -> None:
        super().__init__()
        self.register_buffer("level", level)

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(self.drive(x))

    def drive(self, x: Tensor) -> Tensor:
        """The potential of each neuron, ``[..., L, C, H, W]``: `x`, the same at each level."""
        each = x.unsqueeze(-self.level.dim())
        sizes = list(each.shape)
        sizes[-self.level.dim()] = len(self.level)
        return each.expand(sizes)

    def fire(self, drive: Tensor) -> Tensor:
        """Spikes 0/1 of what `drive` gives."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"levels={len(self.level)}"


class AtEachLevel(nn.Module):
    """What `layer` does to maps ``[..., B, C, H, W]``, done to each level of spikes ``[..., B, L, C, H, W]``.

    `rank` is the number of dimensions of a map: 3 for ``[C, H, W]``. The levels are further images to `layer`.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.shape[-self.rank - 2 : -self.rank]
        each: Tensor = self.layer(x.flatten(-self.rank - 2, -self.rank - 1))
        levels: Tensor = each.unflatten(-self.rank - 1, sizes)
        return levels


class LevelSum(nn.Module):
    """How many of each group fire: ``[..., L, C, H, W]`` to ``[..., C, H, W]``, whose `rank` is 3."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=-self.rank - 1)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def just_below(level: Tensor, integer: bool) -> Tensor:
    """What a potential exceeds if it reaches `level`, for frameworks that fire above a threshold and not at it.

    That is the float32 before it. In an `integer` network it is half a unit less, as far as float32 has that: before 0
    there are subnormal numbers alone, which a processor may be set to take for 0.
    """
    below = torch.nextafter(level, level.new_tensor(-torch.inf))
    return torch.minimum(below, level - 0.5) if integer else below


def clock(x: Tensor) -> Tensor:
    """The number of the first time step, 0, for each image of `x` ``[B, ...]``, to broadcast over it."""
    return x.new_zeros(len(x), *[1] * (x.dim() - 1))


def build(
    graph: LayerGraph,
    library: Any,
    neuron: Callable[[IntegrateFire, int], nn.Module],
    name: str,
    staged: Callable[[WindowFire | Impulse | BiasOnce], nn.Module] | None = None,
    group: Callable[[Tensor], Group] | None = None,
) -> fx.GraphModule:
    """A torch module with one child a layer, called by the layer's name; ``print(module.code)`` shows its forward.

    Maps one time step's input ``[B, *input]`` to that step's readout ``[B, ...]``.

    Args:
        graph: the spiking network.
        library: where Conv2d, Linear, AvgPool2d and Flatten come from, such as `torch.nn`.
        neuron: makes the framework's neuron of an `IntegrateFire` layer and its rank, the dimensions of its signal.
        name: of the module's class.
        staged: makes the framework's module of a layer of a staged network that counts steps; None: there are none.
        group: makes the framework's `Group` of its levels; None: there are none.

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
        shape = graph.shapes[layer.name]
        if staged is not None and isinstance(layer, WindowFire | Impulse | BiasOnce):
            modules[layer.name] = staged(layer)
        elif group is not None and isinstance(layer, GroupFire):
            modules[layer.name] = group(per_channel(layer.level, len(shape)))
        elif isinstance(layer, IntegrateFire):
            modules[layer.name] = neuron(layer, len(shape))
        else:
            modules[layer.name] = _module(layer, library, shape)
        nodes[layer.name] = calls.call_module(layer.name, inputs)
    calls.output(nodes[graph.output.name])
    module = fx.GraphModule(modules, calls, name)
    module.meta["input_shape"], module.meta["integer"] = graph.input.shape, graph.integer
    module.meta["staged"] = graph.staged
    module.meta["constants"] = constants(module)
    module.meta["drives"] = largest_drives(graph)
    return module


@singledispatch
def _module(layer: Layer, library: Any, shape: Shape) -> nn.Module:
    """The module of a `layer` without state, whose output has that `shape` without batch."""
    raise GraphError(f"layer {layer.name!r}: there is no torch module for a {type(layer).__name__} yet")


@_module.register
def _(layer: Conv1d | Conv2d, library: Any, shape: Shape) -> nn.Module:
    kind = library.Conv2d if isinstance(layer, Conv2d) else library.Conv1d
    out_channels, per_group, *kernel = layer.weight.shape
    channels = (per_group * layer.groups, out_channels)
    module = kind(*channels, tuple(kernel), layer.stride, layer.padding, layer.dilation, layer.groups)
    return _with_parameters(module, layer)


@_module.register
def _(layer: Linear, library: Any, shape: Shape) -> nn.Module:
    return _with_parameters(library.Linear(layer.weight.shape[1], layer.weight.shape[0]), layer)


@_module.register
def _(layer: AvgPool2d, library: Any, shape: Shape) -> nn.Module:
    return cast(nn.Module, library.AvgPool2d(layer.kernel, layer.stride, layer.padding))


@_module.register
def _(layer: SumPool2d, library: Any, shape: Shape) -> nn.Module:
    return cast(nn.Module, library.AvgPool2d(layer.kernel, layer.stride, layer.padding, divisor_override=1))


@_module.register
def _(layer: Flatten, library: Any, shape: Shape) -> nn.Module:
    return cast(nn.Module, library.Flatten())


@_module.register
def _(layer: Scale, library: Any, shape: Shape) -> nn.Module:
    return Scaling(per_channel(layer.scale, len(shape)))


@_module.register
def _(layer: AtLeast, library: Any, shape: Shape) -> nn.Module:
    return Threshold(per_channel(layer.level, len(shape)))


@_module.register
def _(layer: EachLevel, library: Any, shape: Shape) -> nn.Module:
    part = _module(layer.layer, library, shape[1:]).requires_grad_(False)  # a pool's ones are no weights to train
    return AtEachLevel(part, len(shape) - 1)


@_module.register
def _(layer: GroupSum, library: Any, shape: Shape) -> nn.Module:
    return LevelSum(len(shape))


def per_channel(values: Array, rank: int) -> Tensor:
    """`values`, one per channel or one per position, as a tensor of its own that broadcasts over signals of `rank`."""
    return tensor(aligned(values, rank)).clone()


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
    A `Group` tells it itself.

    Raises `InputError` if a potential of a network in integers passes 2^24, beyond which float32 is not exact.
    """
    images = tensor(check_input(native.meta["input_shape"], x, steps, integer=native.meta["integer"]))
    parameter = next(native.parameters(), images)
    images = images.to(device=parameter.device, dtype=parameter.dtype)
    recorder = None
    with torch.no_grad(), watched(neurons) as seen:
        for t in range(steps):
            readout = native(images)
            shapes = {name: tuple(spikes.shape[1:]) for name, (_, spikes) in seen.items()}
            recorder = recorder or Recorder(backend, shapes, summed=native.meta["staged"])
            for name, (given, spikes) in seen.items():
                neuron, membrane = neurons[name], None
                if membranes:
                    u = neuron.drive(given) if isinstance(neuron, Group) else potential(neuron, spikes)
                    membrane = u.cpu().numpy()
                expect_exact(native, name, t, lambda: potential(neuron, spikes))  # noqa: B023  (it is called at once)
                recorder.spikes(name, spikes.cpu().numpy(), membrane)
            recorder.readout(readout.cpu().numpy())
    assert recorder is not None  # there is at least one step
    return recorder.finish()


def expect_exact(native: fx.GraphModule, name: str, t: int, potential: Callable[[], Tensor]) -> None:
    """Raise `InputError` if the layer `name` of a network in integers has a potential beyond 2^24 at step `t`."""
    if (t + 1) * native.meta["drives"].get(name, 0.0) <= EXACT:  # then it cannot have
        return
    largest = float(potential().abs().max())
    if largest > EXACT:
        raise beyond_exact(name, t + 1, largest)


@contextmanager
def watched(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Any]]]:
    """By name, what each of `modules` was given last and what it made of it, while the context lasts."""
    seen: dict[str, tuple[Tensor, Any]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            seen[name] = (inputs[0], output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
