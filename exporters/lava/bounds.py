"""Whether a whole-number network keeps within Loihi's registers, found out before anything runs.

What holds for every image is checked by interval arithmetic when the network is exported. The potential grows with the
steps, and its worst case is rarely near the truth: where that does not settle it, the very images decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.errors import GraphError, InputError
from bridge.graph import Affine, EachLevel, IntegrateFire, Layer, LayerGraph, Scale
from bridge.graph.loihi_registers import (
    LARGEST_BIAS_EXPONENT,
    LARGEST_BIAS_MANTISSA,
    LARGEST_INPUT,
    LARGEST_STATE,
    LARGEST_THRESHOLD,
    SHIFT,
    WEIGHT_BITS,
)
from bridge.graph.ranges import LARGEST_PIXEL, potentials, ranges
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.ops import tensor
from bridge.simulate.reference import simulate
from exporters.lava.plan import LavaPlan

LARGEST_EXPONENT = 7  # of a synapse's weights
LARGEST_MANTISSA = 2 ** (WEIGHT_BITS - 1) - 1
LARGEST_HELD_CURRENT = np.iinfo(np.int16).max  # Lava's type of a bias's mantissa
EXACT = 2**24  # below it float32 holds every whole number
VALUES = 2**24  # of membrane potentials, recorded at once
REMEDY = "quantize to fewer bits or lower scales"


def check_network(network: LavaPlan) -> None:
    """Raise `GraphError`, naming the layer, unless `network` fits Loihi's registers whatever the images."""
    graph = network.graph
    if network.recorded.latency is not None:
        check_counting(graph)
        return
    _expect_integers(graph)
    for name in network.synapses:
        if name in network.depths:
            _check_weights(graph[name])
    for layer in graph:
        if isinstance(layer, IntegrateFire):
            _check_neuron(network, layer)
    _check_synaptic_input(network)


def check_counting(graph: LayerGraph) -> None:
    """Raise `GraphError`, naming the layer, unless the staged or grouped `graph` fits Loihi's registers.

    Its potentials are not shifted, and are bounded until the window's end, whatever the images: they have 24 bits.
    """
    _expect_integers(graph)
    for layer in graph:
        _check_weights(layer.layer if isinstance(layer, EachLevel) else layer)
    bounds = ranges(graph)
    sizes = {name: bound.partial for name, bound in bounds.items()} | potentials(graph)
    for name, size in sizes.items():
        if size.max() > LARGEST_STATE:
            raise GraphError(
                f"layer {name!r}: its sums reach {size.max():.0f}; the register holds up to ±{LARGEST_STATE}: {REMEDY}"
            )


def _expect_integers(graph: LayerGraph) -> None:
    if not graph.integer:
        raise GraphError("the fixed-point backend runs networks in whole numbers only: make one with `quantize`")


def check_images(network: LavaPlan, x: NDArray[np.floating], steps: int) -> None:
    """Raise `InputError`, naming the layer, unless `network` fits Loihi's registers for `steps` steps of images `x`."""
    check_pixels(x)
    if network.parts.neuron == "atrlif":
        _check_held_currents(network, x)
    if network.recorded.latency is not None:
        return  # what images there are, their sums are bounded
    neurons = [layer for layer in network.graph if isinstance(layer, IntegrateFire)]
    bounds = ranges(network.graph)
    worst = [steps * bounds[neuron.inputs[0]].size.max() + neuron.threshold.max() for neuron in neurons]
    if any(value > largest_potential(network, neuron) for value, neuron in zip(worst, neurons, strict=True)):
        exact = max(*worst, *(bound.partial.max() for bound in bounds.values())) < EXACT
        if exact and network.parts.neuron == "integrate_fire" and _engine_finds_none(network, neurons, x, steps):
            return
        images = x.astype(np.float32) if exact else x.astype(np.float64)
        for neuron, what, value, step, image in _extremes(network, neurons, images, steps):
            if abs(value) > largest_potential(network, neuron):
                raise InputError(
                    f"layer {neuron.name!r}: its {what} comes to {value:.0f} at step {step} of image {image}; the "
                    f"register holds up to ±{largest_potential(network, neuron)}: run fewer steps than {steps}, "
                    f"or {REMEDY}"
                )


def _engine_finds_none(network: LavaPlan, neurons: list[IntegrateFire], x: NDArray[np.floating], steps: int) -> bool:
    """Whether no potential leaves its register: the engine is fast, but does not say where one does."""
    limits = {neuron.name: float(largest_potential(network, neuron)) for neuron in neurons}
    try:
        Engine(network.graph, limits=limits).run(tensor(x), steps, memory=MEMORY)
    except InputError:
        return False
    return True


def check_pixels(x: NDArray[np.floating]) -> None:
    """Raise `InputError` unless images `x` are in whole numbers that 8 bits hold."""
    if not ((x == np.rint(x)) & (x >= 0) & (x <= LARGEST_PIXEL)).all():
        raise InputError(
            f"expected images in whole numbers from 0 to {LARGEST_PIXEL}, got values from {x.min()} to {x.max()}: "
            "pass pixels as they are stored"
        )


def _check_weights(layer: Layer) -> None:
    """That the weights are held in 8 bits; those of a `Scale`, which stand for themselves, with an exponent."""
    if isinstance(layer, Affine):
        weight = layer.weight
        low, high = weight.min(), weight.max()
        if low < -LARGEST_MANTISSA - 1 or high > LARGEST_MANTISSA:
            raise GraphError(
                f"layer {layer.name!r}: its weights go from {low:.0f} to {high:.0f}, a synapse holds "
                f"{-LARGEST_MANTISSA - 1} to {LARGEST_MANTISSA}: quantize to {WEIGHT_BITS} bits"
            )
    elif isinstance(layer, Scale):
        factors = np.abs(layer.scale.astype(np.int64))
        exponents = np.ceil(np.log2(np.maximum(factors / LARGEST_MANTISSA, 1))).astype(np.int64)
        wrong = (exponents > LARGEST_EXPONENT) | (factors % 2**exponents != 0)
        if wrong.any():
            raise GraphError(
                f"layer {layer.name!r}: its factor {layer.scale[wrong][0]:.0f} is not one of {WEIGHT_BITS} bits times "
                f"2^0 to 2^{LARGEST_EXPONENT}, which is what a synapse holds: {REMEDY}"
            )


def _check_neuron(network: LavaPlan, neuron: IntegrateFire) -> None:
    """That thresholds and biases fit, and with Lava's own neuron, that it can be this one."""
    name, shift = neuron.name, network.shift(neuron)
    largest = LARGEST_THRESHOLD << SHIFT >> shift
    for what, values in (("threshold", neuron.threshold), ("firing level", neuron.level)):
        if np.abs(values).max() > largest:
            raise GraphError(
                f"layer {name!r}: its {what} of {np.abs(values).max():.0f} is over {largest}, the largest that the "
                f"register holds: {REMEDY}"
            )
    if network.parts.neuron == "atrlif":
        if len(np.unique(neuron.threshold)) > 1 or (2 * neuron.level != neuron.threshold).any():
            raise GraphError(
                f"layer {name!r}: ATRLIF has one threshold a layer and fires at half of it, got thresholds from "
                f"{neuron.threshold.min():.0f} to {neuron.threshold.max():.0f} and levels from "
                f"{neuron.level.min():.0f} to {neuron.level.max():.0f}: quantize with scheme='per_layer', or use "
                "neuron='integrate_fire'"
            )
        return  # its biases come in as currents
    mantissa, exponent = network.bias(neuron)
    if np.abs(mantissa).max() > LARGEST_BIAS_MANTISSA or (mantissa != np.rint(mantissa)).any():
        bias = mantissa * 2 ** (exponent - SHIFT)
        raise GraphError(
            f"layer {name!r}: biases from {bias.min():.0f} to {bias.max():.0f} are not within "
            f"±{LARGEST_BIAS_MANTISSA}, nor all even and within twice that, which is what mantissa and exponent (up to "
            f"{LARGEST_BIAS_EXPONENT}, {SHIFT} of which are the unit's) hold: {REMEDY}"
        )


def _check_synaptic_input(network: LavaPlan) -> None:
    """That no sum of synapses leaves its current's 24 bits."""
    graph = network.graph
    everything, synaptic = ranges(graph), ranges(_synapses_only(network))
    for layer in graph:
        if isinstance(layer, IntegrateFire):
            # Lava's own neuron gets its bias, too, by that way, unless it can hold it.
            held = network.parts.neuron == "integrate_fire" or network.depths[layer.name] == 0
            bound, what, largest = (synaptic if held else everything)[layer.inputs[0]], "synaptic input", LARGEST_INPUT
        elif layer.name in network.depths:
            bound, what, largest = synaptic[layer.name], "output", LARGEST_STATE
        else:
            continue
        if bound.size.max() > largest:
            other = ", or use inputs='currents'" if network.parts.inputs == "graded" else ""
            raise GraphError(
                f"layer {layer.name!r}: its {what} can come to {bound.low.min():.0f} … {bound.high.max():.0f}, beyond "
                f"±{largest}, where Lava's wraps: {REMEDY}{other}"
            )


def _synapses_only(network: LavaPlan) -> LayerGraph:
    """The graph as the synapses have it: without biases, and without images where those come as currents."""
    graph = network.graph
    changes: dict[str, list[Layer]] = {
        layer.name: [replace(layer, bias=np.zeros_like(layer.bias))] for layer in graph if isinstance(layer, Affine)
    }
    if network.parts.inputs == "currents":
        first = graph.input
        nothing = Scale(name=graph.free("nothing"), inputs=(first.name,), scale=np.zeros(first.shape[0]))
        changes[first.name] = [first, nothing]
    return graph.rewrite(changes)


def _check_held_currents(network: LavaPlan, x: NDArray[np.floating]) -> None:
    """That Lava's own neuron can hold what the images give it as its bias."""
    for name, current in network.feed(x).items():
        held = name in network.graph.spiking and network.depths[name] == 0
        largest = LARGEST_HELD_CURRENT if held else LARGEST_INPUT
        if np.abs(current).max() > largest:
            raise InputError(
                f"layer {name!r}: these images give it currents from {current.min():.0f} to {current.max():.0f}, "
                f"ATRLIF takes up to ±{largest}: {REMEDY}, or use neuron='integrate_fire'"
            )


def largest_potential(network: LavaPlan, neuron: IntegrateFire) -> int:
    """The largest potential that the register of `neuron` holds, in the network's units."""
    return int(LARGEST_STATE >> network.shift(neuron))


def _extremes(
    network: LavaPlan, neurons: list[IntegrateFire], x: NDArray[np.floating], steps: int
) -> Iterator[tuple[IntegrateFire, str, float, int, int]]:
    """Per neuron layer, some images at a time, from the reference: what is largest, its value, step and image."""
    graph = network.graph
    batch = max(1, VALUES // (steps * graph.neurons))
    for start in range(0, len(x), batch):
        record = simulate(graph, torch.from_numpy(x[start : start + batch]), steps, membranes=True)
        for neuron in neurons:
            values = {"potential": record.membranes[neuron.name]}
            if network.parts.neuron == "atrlif":  # whose potential a spike does not reduce: it refracts instead
                refractory = neuron.threshold[0] * record.spikes(neuron.name).cumsum(axis=0, dtype=np.float64)
                before = np.concatenate([np.zeros_like(refractory[:1]), refractory[:-1]])
                values = {"potential": values["potential"] + before, "refractory state": refractory}
            for what, array in values.items():
                at = np.unravel_index(np.abs(array).argmax(), array.shape)
                yield neuron, what, float(array[at]), int(at[0]) + 1, start + int(at[1])
