"""Fit each layer of neurons to what the ANN says there, at one number of steps, without changing what a neuron is.

The theory promises equality at long times or on average; at T steps what is left is a bias of each channel, from
spikes that come unevenly and rates that clip, and it adds up from layer to layer. It can be measured without labels.
Three numbers a channel take most of it away, all static and all within the neuron's own equation:

* ``bias``: added to the drive at every step;
* ``gain``: times the drive, which is a threshold of ``1 / gain``: batch norm's scale, as `bias` is its shift;
* ``potential``: v(0), so far 1/2, which makes the first spike come sooner or later.

Layer by layer, from the first to the last: a layer hears what the layers before it, fitted already, really fire.
Bias correction by layer is known from "A free lunch from ANN" (Li et al., ICML 2021), initial potentials from Bu et al.
(AAAI 2022), thresholds from Hao et al. and many others; here they are searched together, and judged by what the neurons
do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bridge.graph import Add, Affine, IntegrateFire, Layer, LayerGraph, Scale, aligned
from bridge.simulate.ann import activations
from bridge.simulate.layerwise import layer_by_layer

KINDS = ("bias", "gain", "potential")
IMAGES = 512
"""That layers are fitted to, at most: more do not help where a channel has so few numbers."""
DRIVES = 2**28
"""And at most so many that a layer's neurons get so many drives in T steps, 1 GiB: some three such arrays are held."""
SAMPLES = 2**18
"""Drives of one layer that are looked at, one each step, neuron and image: more do not change what is found."""
LEAST = 256
"""But at least so many a channel."""
JITTER = 1 / 64
"""Standard deviation of what is added to a drive, in thresholds: about what rounding to 8 bits does."""
ROUNDS = 3
PACES = (1.0, 1.0, 0.7, 0.7, 0.5, 0.5, 0.3, 0.3)
"""How much of the mean error a bias takes back, one try after the other: taking back all of it can overshoot."""
SHIFTS = (-0.1, -0.05, -0.025, 0.025, 0.05, 0.1)
GAINS = (0.85, 0.9, 0.95, 0.975, 1.025, 1.05, 1.1, 1.2)
POTENTIALS = tuple(k / 16 for k in range(9))
"""From 0 to 1/2, in steps that float32 holds exactly. A larger one does what a bias does, and SpikingJelly's neuron has
no offset for all of them."""


@dataclass(frozen=True, eq=False)
class Correction:
    """What is changed in a layer of neurons, ``[C]`` each."""

    gain: Tensor
    bias: Tensor
    potential: Tensor

    @staticmethod
    def none(layer: IntegrateFire) -> Correction:
        potential = torch.from_numpy(layer.threshold - layer.level)
        return Correction(torch.ones_like(potential), torch.zeros_like(potential), potential)

    def where(self, better: Tensor, other: Correction) -> Correction:
        """`other` in the channels that are `better`."""
        return Correction(
            torch.where(better, other.gain, self.gain),
            torch.where(better, other.bias, self.bias),
            torch.where(better, other.potential, self.potential),
        )


@torch.inference_mode()
def calibrate(
    graph: LayerGraph, ann: LayerGraph, x: Tensor, steps: int, kinds: Iterable[str] = KINDS, emphasis: float = 1.0
) -> LayerGraph:
    """The spiking `graph` fitted to `ann` at `steps` steps.

    Args:
        graph: with neurons of unit threshold.
        ann: the network it came from; its activations have the same names.
        x: images ``[B, *input]``, without labels; of many, the first.
        steps: T.
        kinds: which of `KINDS` may change; others mean nothing here. Bias and gain need layers with weights that feed
            these neurons alone.
        emphasis: how much the square of a channel's mean error counts, beside its mean square error.
    """
    kinds = tuple(kinds)
    neurons = max((math.prod(graph.shapes[name]) for name in graph.spiking), default=1)  # of the largest layer
    x = x[: max(1, min(IMAGES, DRIVES // (neurons * steps)))]
    targets, _, output = activations(ann, x)
    changed: dict[str, Layer] = {}
    generator = torch.Generator().manual_seed(0)

    def fit(layer: IntegrateFire, drive: Tensor) -> Tensor:
        weighted = feeding(graph, layer.inputs[0])
        possible = {"potential": True, "gain": weighted, "bias": any(isinstance(one, Affine) for one in weighted)}
        allowed = tuple(kind for kind in kinds if possible.get(kind))
        samples = _samples(drive, targets[layer.name], generator)
        correction = _fit(Correction.none(layer), *samples, allowed, emphasis)
        changed.update(corrected(layer, weighted, correction))
        return _fire(drive, correction)

    readout = layer_by_layer(graph, x, steps, fit, f"calibrating, T = {steps}")
    last = graph.output
    if isinstance(last, Affine) and "bias" in kinds and last.name not in graph.constant:
        error = readout.mean(dim=0) - output
        mean = error.transpose(0, 1).flatten(1).mean(dim=1).numpy()
        changed[last.name] = replace(last, bias=last.bias - mean)
    return LayerGraph(tuple(changed.get(layer.name, layer) for layer in graph))


def feeding(graph: LayerGraph, name: str) -> list[Affine | Scale]:
    """The layers with weights whose sum is the layer `name`, if all of them feed nothing else; else none."""
    layer = graph[name]
    if len(graph.consumers(name)) != 1:
        return []
    if isinstance(layer, Add):
        found = [feeding(graph, source) for source in layer.inputs]
        return [one for part in found for one in part] if all(found) else []
    return [layer] if isinstance(layer, Affine | Scale) else []


def _samples(drive: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drives ``[T, M, C]`` and the ANN's a/λ ``[M, C]`` of some neurons and images, drawn at random."""
    steps, _, size = drive.shape[:3]
    drives = drive.flatten(3) if drive.dim() > 3 else drive.unsqueeze(-1)
    drives = drives.transpose(2, 3).reshape(steps, -1, size)
    targets = target.reshape(*target.shape[:2], -1).transpose(1, 2).reshape(-1, size)
    count = max(LEAST, SAMPLES // (steps * size))
    some = torch.randperm(len(targets), generator=generator)[:count]
    # Where most inputs are silent, many neurons get the very same drive, and a fit could set it just so that they fire,
    # or do not: the first rounding would turn them all. So each drive is a little off, the same at every step.
    off = JITTER * torch.randn(len(some), size, generator=generator)
    return drives[:, some] + off, targets[some]


def _fit(start: Correction, drive: Tensor, target: Tensor, kinds: tuple[str, ...], emphasis: float) -> Correction:
    """The best correction found for drives ``[T, M, C]`` and targets ``[M, C]``, each channel by itself.

    Its neurons are run for every candidate: what is least is the error that there will be.
    """
    best = start
    least = torch.full((target.shape[1],), torch.inf)

    def attempt(candidate: Correction) -> Tensor:
        nonlocal best, least
        error = _fire(drive, candidate).mean(dim=0) - target
        mean = error.mean(dim=0)
        loss = error.square().mean(dim=0) + emphasis * mean.square()
        better = loss < least * (1 - 1e-6)
        best, least = best.where(better, candidate), torch.minimum(least, loss)
        return mean

    attempt(start)
    for _ in range(ROUNDS):
        if "bias" in kinds:
            candidate = best
            for pace in PACES:
                candidate = replace(candidate, bias=candidate.bias - pace * attempt(candidate))
            for shift in SHIFTS:
                attempt(replace(best, bias=best.bias + shift * min(1.0, 4 / len(drive))))
        if "potential" in kinds:
            for potential in POTENTIALS:
                attempt(replace(best, potential=torch.full_like(best.potential, potential)))
        if "gain" in kinds:
            for factor in GAINS:
                attempt(replace(best, gain=best.gain * factor))
    return best


def _fire(drive: Tensor, correction: Correction) -> Tensor:
    """Spikes ``[T, ..., C, ...]`` for `drive` of that shape: channels last with three dimensions, else third."""
    shape = (-1,) if drive.dim() == 3 else (1, -1, *[1] * (drive.dim() - 3))
    gain, bias = correction.gain.reshape(shape), correction.bias.reshape(shape)
    level = 1 - correction.potential.reshape(shape)
    potential = torch.zeros_like(drive[0])
    spikes = torch.empty_like(drive)
    for t, now in enumerate(drive):
        potential = potential + now * gain + bias
        torch.ge(potential, level, out=spikes[t])
        potential -= spikes[t]
    return spikes


def corrected(layer: IntegrateFire, weighted: list[Affine | Scale], correction: Correction) -> Mapping[str, Layer]:
    """The layer and those that feed it, with the correction in them."""
    gain, bias = correction.gain.numpy(), correction.bias.numpy()
    level = (1 - correction.potential).numpy()
    changed: dict[str, Layer] = {layer.name: replace(layer, level=level)}
    for one in weighted:
        if isinstance(one, Scale):
            changed[one.name] = replace(one, scale=one.scale * aligned(gain, one.scale.ndim))
            continue
        rows = gain.reshape(-1, *[1] * (one.weight.ndim - 1))
        changed[one.name] = replace(one, weight=one.weight * rows, bias=one.bias * gain + bias)
        bias = np.zeros_like(bias)  # once
    return changed
