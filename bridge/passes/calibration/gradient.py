"""Fit all layers of a spiking network together, by gradient, to what its ANN says at the output.

Fitting each layer to the ANN's rates (`bridge.passes.calibration.layerwise`) treats all errors of a layer alike. But
some cancel and some change the answer. So, after it, weights, gains and biases take small steps down the gradient of
the output's error, with the neurons simulated as they are; where a neuron fires or not, its gradient is taken to be
that of a ramp (a surrogate gradient: Neftci, Mostafa and Zenke, IEEE Signal Processing Magazine 2019). No label is
needed. Weights are many, and could learn the images by heart: so their steps are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridge._util.memory_format import while_learning
from bridge._util.progress import progress
from bridge.graph import Affine, Conv2d, IntegrateFire, Layer, LayerGraph, Scale
from bridge.passes.calibration.layerwise import feeding
from bridge.passes.calibration.losses import divergence
from bridge.passes.calibration.muon import Muon
from bridge.simulate.layerwise import layer_by_layer
from bridge.simulate.ops import affine, evaluate, tensor

FEWEST_STEPS, MOST_STEPS = 200, 800
"""Between these, as many as there are images."""
RATE = 0.005
"""Of Adam for gains and biases, at the start; it falls to 0 in a line. In thresholds, as a bias is."""
WEIGHT_RATE = 2e-3
"""Of Muon for weights, in root mean squares of their layer's; it falls likewise."""
ROWS = 256
"""Images of one step, times T."""
DRIVES = 2**29
"""Or fewer: images times T times all neurons of the network are at most so many. Each drive is held for its gradient,
with what belongs to it some 5 GiB."""


class _Neurons(torch.autograd.Function):
    """`spikes_with_gradients`, as torch wants it."""

    @staticmethod
    def forward(context: Any, drive: Tensor, level: Tensor) -> Tensor:
        above, spikes = torch.empty_like(drive), torch.empty_like(drive)
        potential = torch.zeros_like(drive[0])
        for now, excess, fired in zip(drive, above, spikes, strict=True):
            potential += now
            torch.sub(potential, level, out=excess)
            torch.ge(excess, 0, out=fired)
            potential -= fired
        context.save_for_backward(above)
        return spikes

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        above: Tensor = context.saved_tensors[0]
        near = above.abs() < 0.5
        found = torch.empty_like(above)
        of_potential = torch.zeros_like(above[0])  # after the step: a spike lowers it by 1
        for t in reversed(range(len(near))):
            of_potential = torch.where(near[t], gradients[0][t], of_potential, out=found[t])
        return found, None


def spikes_with_gradients(drive: Tensor, level: Tensor) -> Tensor:
    """Spikes 0/1 ``[T, ...]`` of neurons of unit threshold that are driven by ``[T, ...]`` and fire at `level`.

    Backwards through all steps, as if each spike rose evenly from 0, half a threshold below the level, to 1, half one
    above: as the mean of many steps does.
    """
    spikes: Tensor = _Neurons.apply(drive, level)  # type: ignore[no-untyped-call]
    return spikes


class _Adjustable(nn.Module):
    """A layer with weights, an `Affine` or a `Scale`, whose constants can move.

    `gain` and `bias` ``[C]`` are those of the neurons it feeds, which layers may share; `change` is of its weights, in
    root mean squares. What is None stays.
    """

    def __init__(
        self, layer: Affine | Scale, gain: nn.Parameter | None, bias: nn.Parameter | None, change: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.layer, self.gain, self.bias, self.change = layer, gain, bias, change

    def constants(self) -> dict[str, Tensor]:
        """The layer's arrays as they are now."""
        if isinstance(self.layer, Scale):
            scale = tensor(self.layer.scale)
            return {"scale": scale if self.gain is None else scale * _over(self.gain, scale)}
        weight, bias = tensor(self.layer.weight), tensor(self.layer.bias)
        if self.change is not None:
            weight = weight + weight.square().mean().sqrt() * self.change
        if self.gain is not None:
            weight, bias = weight * _over(self.gain, weight), bias * self.gain
        return {"weight": weight, "bias": bias if self.bias is None else bias + self.bias}

    def forward(self, x: Tensor) -> Tensor:
        constants = self.constants()
        if isinstance(self.layer, Scale):
            return x * _over(constants["scale"], x[0])
        return affine(self.layer, x, constants["weight"], constants["bias"])

    def moved(self) -> Affine | Scale:
        """The layer with these constants."""
        arrays: dict[str, Any] = {name: value.detach().numpy() for name, value in self.constants().items()}
        return replace(self.layer, **arrays)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """`values` of the first dimensions of `like`, shaped to broadcast over all of them."""
    return values.reshape(*values.shape, *[1] * (like.dim() - values.dim()))


@torch.inference_mode(False)
@torch.enable_grad()
def refine(
    graph: LayerGraph, x: Tensor, wanted: Tensor, steps: int, kinds: Iterable[str] = ("bias", "gain", "weight")
) -> LayerGraph:
    """The spiking `graph` with weights, gains and biases fitted so that its output is `wanted` at `steps` steps.

    Args:
        graph: with neurons of unit threshold.
        x: images ``[B, *input]``.
        wanted: the ANN's output for them, ``[B, ...]``.
        steps: T.
        kinds: some of "bias", "gain" and "weight"; anything else is left as it is.
    """
    x, wanted = (one.clone() if one.is_inference() else one for one in (x, wanted))  # the caller's mode made them
    kinds = tuple(kinds)
    adjustable = _adjustable(graph, kinds)
    movable = nn.ModuleList(adjustable.values())
    changes = [one.change for one in adjustable.values() if one.change is not None]
    others = [one for one in movable.parameters() if not any(one is change for change in changes)]
    if not changes and not others:
        return graph

    def compute(layer: Layer, *inputs: Tensor) -> Tensor:
        return adjustable.get(layer.name, partial(evaluate, layer))(*inputs)

    def fire(layer: IntegrateFire, drive: Tensor) -> Tensor:
        return spikes_with_gradients(drive, torch.from_numpy(layer.level).reshape(1, -1, *[1] * (drive.dim() - 3)))

    optimisers: list[torch.optim.Optimizer] = []
    if others:
        optimisers.append(torch.optim.Adam(others, lr=RATE))
    if changes:
        optimisers.append(Muon(changes, lr=WEIGHT_RATE))
    count = min(max(FEWEST_STEPS, len(x)), MOST_STEPS)
    schedules = [torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, count) for optimiser in optimisers]
    rows = min(ROWS, DRIVES // max(1, graph.neurons))
    batches = _batches(len(x), max(1, min(len(x), rows // steps)))
    if x.dim() == 4:
        x = x.contiguous(memory_format=_memory_format(graph))
    for _ in progress(range(count), f"fitting all layers together, T = {steps}"):
        some = next(batches)
        output = layer_by_layer(graph, x[some], steps, fire, compute=compute).mean(dim=0)
        movable.zero_grad()
        output_error(output, wanted[some]).backward()
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
    return LayerGraph(tuple(adjustable[layer.name].moved() if layer.name in adjustable else layer for layer in graph))


def _adjustable(graph: LayerGraph, kinds: tuple[str, ...]) -> dict[str, _Adjustable]:
    """The layers with weights that feed neurons alone, and the last one, by name, with what `kinds` lets move."""

    def parameter(kind: str, start: Tensor) -> nn.Parameter | None:
        return nn.Parameter(start) if kind in kinds else None

    found: dict[str, _Adjustable] = {}
    for layer in graph:
        weighted: list[Affine | Scale] = []
        gain = bias = None
        if isinstance(layer, IntegrateFire):
            weighted, channels = feeding(graph, layer.inputs[0]), graph.shapes[layer.name][0]
            gain, bias = parameter("gain", torch.ones(channels)), parameter("bias", torch.zeros(channels))
        elif layer is graph.output and isinstance(layer, Affine):
            weighted, bias = [layer], parameter("bias", torch.zeros(len(layer.bias)))
        for one in weighted:
            if isinstance(one, Affine):
                change = parameter("weight", torch.zeros(one.weight.shape))
                found[one.name] = _Adjustable(one, gain, bias, change)
                bias = None  # once
            else:
                found[one.name] = _Adjustable(one, gain, None, None)
    return found


def _memory_format(graph: LayerGraph) -> torch.memory_format:
    """What its images have while it learns."""
    convolutions = (layer for layer in graph if isinstance(layer, Conv2d))
    return while_learning((one.weight.shape[2:], one.stride, one.weight.shape[1] * one.groups) for one in convolutions)


def _batches(images: int, size: int) -> Iterator[Tensor]:
    """`size` of the numbers of `images`, each as often as the others, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(images, generator=generator).split(size)


def output_error(output: Tensor, wanted: Tensor) -> Tensor:
    """How far an output ``[B, ...]`` is from the `wanted` one: of class scores, in nats, softened."""
    if wanted.dim() == 2 and wanted.shape[1] > 1:
        return divergence(output, wanted)
    return F.mse_loss(output, wanted)
