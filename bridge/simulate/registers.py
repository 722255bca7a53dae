"""Whether an integer network keeps within Loihi's registers, whatever the images: one check for all who have to know.

`quantize` asks it of what it gives with up to 8 bits, the exporters of what they are given. What holds for every image
is settled by interval arithmetic. The potential of a plain network grows with the steps, and is no matter of this.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bridge.errors import GraphError
from bridge.graph import Affine, AvgPool2d, EachLevel, IntegrateFire, Layer, LayerGraph, Scale, SpikeCount
from bridge.graph.loihi_registers import (
    LARGEST_BIAS_EXPONENT,
    LARGEST_BIAS_MANTISSA,
    LARGEST_INPUT,
    LARGEST_STATE,
    LARGEST_THRESHOLD,
    LARGEST_WEIGHT,
    SHIFT,
    SMALLEST_WEIGHT,
    UNIT,
    WEIGHT_BITS,
)
from bridge.graph.ranges import potentials, ranges
from bridge.simulate.at_rest import at_rest

LARGEST_EXPONENT = 7  # of a synapse's weights
REMEDY = "quantize to fewer bits or lower scales"


def expect_registers(graph: LayerGraph, *, currents: bool = True, unheld: Container[str] = ()) -> None:
    """Raise `GraphError`, naming the layer, unless `graph` fits Loihi's registers whatever the images.

    Args:
        graph: in integers; its pools folded into weights, where that can be.
        currents: what the images give to the first neurons is computed by the host; else pixels come through synapses.
        unheld: neurons that hold no bias: theirs comes in as synaptic input does.
    """
    if not graph.integer:
        raise GraphError("the fixed-point backend runs networks in whole numbers only: make one with `quantize`")
    if graph.latency is not None or any(isinstance(layer, SpikeCount) for layer in graph):
        _expect_counting(graph)
        return
    on_host = _on_host(graph) if currents else set()
    for layer in graph:
        if layer.name not in graph.constant or not currents:
            _expect_weights(layer)
    quiet = at_rest(graph)
    for layer in graph:
        if isinstance(layer, IntegrateFire):
            _expect_thresholds(graph, layer, currents=currents)
            if layer.name not in unheld and layer.inputs[0] not in on_host:
                _expect_bias(layer, quiet[layer.inputs[0]])
    everything, synaptic = ranges(graph), ranges(_synapses_only(graph, currents=currents))
    for layer in graph:
        if isinstance(layer, IntegrateFire):
            held = layer.name not in unheld
            bound, what, largest = (synaptic if held else everything)[layer.inputs[0]], "synaptic input", LARGEST_INPUT
        elif isinstance(layer, Affine | Scale | AvgPool2d) and (layer.name not in graph.constant or not currents):
            bound, what, largest = synaptic[layer.name], "output", LARGEST_STATE
        else:
            continue
        if bound.size.max() > largest:
            other = "" if currents else ", or use inputs='currents'"
            raise GraphError(
                f"layer {layer.name!r}: its {what} can come to {bound.low.min():.0f} … {bound.high.max():.0f}, beyond "
                f"±{largest}, where Lava's wraps: {REMEDY}{other}"
            )


def register_shift(graph: LayerGraph, neuron: IntegrateFire, *, currents: bool = True) -> int:
    """By how many bits the units of `neuron` are shifted in its registers.

    None if it gets nothing but currents and its threshold and level, which the chip shifts in any case, allow it.
    """
    whole = bool((neuron.level % UNIT == 0).all() and (neuron.threshold % UNIT == 0).all())
    return 0 if currents and whole and neuron.inputs[0] in graph.constant else SHIFT


def held_bias(bias: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """The biases of a neuron layer as mantissa and exponent, ``bias = mantissa · 2^(exponent − SHIFT)``.

    The exponent is the shift unless that makes a mantissa too large, and one more then, for all.
    """
    if np.abs(bias).max() > LARGEST_BIAS_MANTISSA:
        return bias / 2, SHIFT + 1
    return bias, SHIFT


def _expect_counting(graph: LayerGraph) -> None:
    """Of a staged, grouped or counting network: potentials are not shifted, and bounded until the window's end."""
    for layer in graph:
        _expect_weights(layer.layer if isinstance(layer, EachLevel) else layer)
    sizes = {name: bound.partial for name, bound in ranges(graph).items()} | potentials(graph)
    for name, size in sizes.items():
        if size.max() > LARGEST_STATE:
            raise GraphError(
                f"layer {name!r}: its sums reach {size.max():.0f}; the register holds up to ±{LARGEST_STATE}: {REMEDY}"
            )


def _on_host(graph: LayerGraph) -> set[str]:
    """Layers that images reach without passing a neuron: what they give while nothing spikes comes as a current."""
    found = {graph.input.name}
    for layer in graph.layers[1:]:
        if not isinstance(layer, IntegrateFire) and not found.isdisjoint(layer.inputs):
            found.add(layer.name)
    return found


def _expect_weights(layer: Layer) -> None:
    """That the weights are held in 8 bits; those of a `Scale`, which stand for themselves, with an exponent."""
    if isinstance(layer, Affine):
        low, high = layer.weight.min(), layer.weight.max()
        if low < SMALLEST_WEIGHT or high > LARGEST_WEIGHT:
            raise GraphError(
                f"layer {layer.name!r}: its weights go from {low:.0f} to {high:.0f}, a synapse holds "
                f"{SMALLEST_WEIGHT} to {LARGEST_WEIGHT}: quantize to {WEIGHT_BITS} bits"
            )
    elif isinstance(layer, Scale):
        factors = np.abs(layer.scale.astype(np.int64))
        exponents = np.ceil(np.log2(np.maximum(factors / LARGEST_WEIGHT, 1))).astype(np.int64)
        wrong = (exponents > LARGEST_EXPONENT) | (factors % 2**exponents != 0)
        if wrong.any():
            raise GraphError(
                f"layer {layer.name!r}: its factor {layer.scale[wrong][0]:.0f} is not one of {WEIGHT_BITS} bits times "
                f"2^0 to 2^{LARGEST_EXPONENT}, which is what a synapse holds: {REMEDY}"
            )


def _expect_thresholds(graph: LayerGraph, neuron: IntegrateFire, *, currents: bool) -> None:
    largest = LARGEST_THRESHOLD << SHIFT >> register_shift(graph, neuron, currents=currents)
    for what, values in (("threshold", neuron.threshold), ("firing level", neuron.level)):
        if np.abs(values).max() > largest:
            raise GraphError(
                f"layer {neuron.name!r}: its {what} of {np.abs(values).max():.0f} is over {largest}, the largest that "
                f"the register holds: {REMEDY}"
            )


def _expect_bias(neuron: IntegrateFire, bias: NDArray[np.float64]) -> None:
    mantissa, _ = held_bias(bias)
    if np.abs(mantissa).max() > LARGEST_BIAS_MANTISSA or (mantissa != np.rint(mantissa)).any():
        raise GraphError(
            f"layer {neuron.name!r}: biases from {bias.min():.0f} to {bias.max():.0f} are not within "
            f"±{LARGEST_BIAS_MANTISSA}, nor all even and within twice that, which is what mantissa and exponent (up to "
            f"{LARGEST_BIAS_EXPONENT}, {SHIFT} of which are the unit's) hold: {REMEDY}"
        )


def _synapses_only(graph: LayerGraph, *, currents: bool) -> LayerGraph:
    """The graph as the synapses have it: without biases, and without images where those come as currents."""
    changes: dict[str, list[Layer]] = {
        layer.name: [replace(layer, bias=np.zeros_like(layer.bias))] for layer in graph if isinstance(layer, Affine)
    }
    if currents:
        first = graph.input
        nothing = Scale(name=graph.free("nothing"), inputs=(first.name,), scale=np.zeros(first.shape[0]))
        changes[first.name] = [first, nothing]
    return graph.rewrite(changes)
