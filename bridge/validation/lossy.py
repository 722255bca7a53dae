"""What a network loses when its neurons are written as ``nir.IF``, in words and, on images, in numbers."""

from __future__ import annotations

import nir
from torch import Tensor

from bridge.converters.nir_graphs.third_party import parse
from bridge.graph import LayerGraph
from bridge.records import differing
from bridge.simulate import nir_reference, reference

STEPS = 8
"""T of what is measured."""


def loss_as_if(graph: LayerGraph, written: nir.NIRGraph, x: Tensor | None) -> str:
    """What the spiking `graph` loses as `written`, its neurons ``nir.IF``; on images `x` also how much."""
    message = (
        "nir.IF starts at 0 and resets to 0, where this network's neurons start part full and keep what exceeds "
        "their threshold: its spikes differ, and no number of time steps makes up for it"
    )
    if x is None:
        return f'{message}. How much, to_nir(neuron="if", measured_on=images) measures'
    exact = reference.run(graph, x, STEPS)
    lossy = nir_reference.run(parse(written, 1.0), x.expand(STEPS, *x.shape))
    wrong = sum(int(counts.sum()) for counts in differing(exact, lossy).values())
    spikes = exact.images * STEPS * graph.neurons
    top1 = [record.outputs()[-1].reshape(record.images, -1).argmax(axis=-1) for record in (exact, lossy)]
    return (
        f"{message}. On these {exact.images} images at T = {STEPS}, {wrong / spikes:.1%} of all spikes "
        f"are wrong, and {float((top1[0] == top1[1]).mean()):.1%} of the images keep their largest output"
    )
