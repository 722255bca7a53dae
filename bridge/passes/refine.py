"""Fit all layers of a spiking network together, by gradient, to what its ANN says at the output.

Fitting each layer to the ANN's rates (`bridge.passes.calibrate`) treats all errors of a layer alike. But some cancel
and some change the answer. So, after it, the same two numbers a channel, gain and bias, take small steps down the
gradient of the output's error, with the neurons simulated as they are; where a neuron fires or not, its gradient is
taken to be that of a ramp one threshold wide (a surrogate gradient: Neftci, Mostafa and Zenke, IEEE Signal Processing
Magazine 2019). No label is needed, and weights stay but for the channels' gains: too few numbers to learn images by
heart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridge.graph import Affine, IntegrateFire, Layer, LayerGraph
from bridge.passes.calibrate import Correction, corrected, feeding
from bridge.progress import progress
from bridge.simulate.layerwise import layer_by_layer

STEPS_OF_ADAM = 200
RATE = 0.02
"""Of Adam, at the start; it falls to 0 in a line. In thresholds, as a bias is."""
ROWS = 128
"""Images of one step, times T."""


class _Spike(torch.autograd.Function):
    """1 where the membrane potential has reached the level, else 0; backwards, a ramp one threshold wide round it."""

    @staticmethod
    def forward(context: Any, above: Tensor) -> Tensor:
        context.save_for_backward(above)
        spikes: Tensor = (above >= 0).to(above.dtype)
        return spikes

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        above: Tensor = context.saved_tensors[0]
        return gradients[0] * (above.abs() < 0.5)


def _spike(above: Tensor) -> Tensor:
    spikes: Tensor = _Spike.apply(above)  # type: ignore[no-untyped-call]
    return spikes


def refine(
    graph: LayerGraph, x: Tensor, wanted: Tensor, steps: int, kinds: Iterable[str] = ("bias", "gain")
) -> LayerGraph:
    """The spiking `graph` with gains and biases fitted so that its output is `wanted` at `steps` steps.

    Args:
        graph: with neurons of unit threshold.
        x: images ``[B, *input]``.
        wanted: the ANN's output for them, ``[B, ...]``.
        steps: T.
        kinds: "bias" and "gain", or one of them; anything else is left as it is.
    """
    gains: dict[str, nn.Parameter] = {}
    biases: dict[str, nn.Parameter] = {}
    for layer in graph:
        if isinstance(layer, IntegrateFire) and (weighted := feeding(graph, layer.inputs[0])):
            if "gain" in kinds:
                gains[layer.name] = nn.Parameter(torch.ones(len(layer.level)))
            if "bias" in kinds and any(isinstance(one, Affine) for one in weighted):
                biases[layer.name] = nn.Parameter(torch.zeros(len(layer.level)))
    if not gains and not biases:
        return graph

    def fire(layer: IntegrateFire, drive: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (drive.dim() - 3))
        gain, bias = (of.get(layer.name) for of in (gains, biases))
        drive = drive if gain is None else drive * gain.reshape(shape)
        drive = drive if bias is None else drive + bias.reshape(shape)
        level = torch.from_numpy(layer.level).reshape(shape)
        potential, spikes = torch.zeros_like(drive[0]), []
        for now in drive:
            potential = potential + now
            spikes.append(_spike(potential - level))
            potential = potential - spikes[-1]
        return torch.stack(spikes)

    optimiser = torch.optim.Adam([*gains.values(), *biases.values()], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    size = max(1, min(len(x), ROWS // steps))
    for done in progress(range(STEPS_OF_ADAM), f"fitting all layers together, T = {steps}"):
        optimiser.param_groups[0]["lr"] = RATE * (1 - done / STEPS_OF_ADAM)
        some = torch.randperm(len(x), generator=generator)[:size]
        output = layer_by_layer(graph, x[some], steps, fire).mean(dim=0)
        optimiser.zero_grad()
        output_error(output, wanted[some]).backward()
        optimiser.step()

    changed: dict[str, Layer] = {}
    for layer in graph:
        if isinstance(layer, IntegrateFire) and (layer.name in gains or layer.name in biases):
            found = Correction.none(layer)
            gain = gains.get(layer.name, found.gain).detach()
            bias = biases.get(layer.name, found.bias).detach()
            changed.update(corrected(layer, feeding(graph, layer.inputs[0]), Correction(gain, bias, found.potential)))
    return LayerGraph(tuple(changed.get(layer.name, layer) for layer in graph))


def output_error(output: Tensor, wanted: Tensor) -> Tensor:
    """How far an output ``[B, ...]`` is from the `wanted` one: of class scores, in nats."""
    if wanted.dim() == 2 and wanted.shape[1] > 1:
        return F.kl_div(output.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
    return F.mse_loss(output, wanted)
