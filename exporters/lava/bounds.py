"""Whether a whole-number network keeps within Loihi's registers, found out before anything runs.

What holds for every image is checked when the network is exported (`bridge.simulate.registers`). The potential grows
with the steps, and its worst case is rarely near the truth: where that does not settle it, the very images decide.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.errors import GraphError, InputError
from bridge.graph import IntegrateFire
from bridge.graph.loihi_registers import LARGEST_INPUT, LARGEST_STATE
from bridge.graph.ranges import EXACT, ranges
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.ops import tensor
from bridge.simulate.reference import simulate
from bridge.simulate.registers import REMEDY, expect_registers
from exporters.lava.plan import LavaPlan

LARGEST_HELD_CURRENT = np.iinfo(np.int16).max  # Lava's type of a bias's mantissa
VALUES = 2**24  # of membrane potentials, recorded at once


def check_network(network: LavaPlan) -> None:
    """Raise `GraphError`, naming the layer, unless `network` fits Loihi's registers whatever the images."""
    stock = network.parts.neuron == "atrlif"
    neurons = [layer for layer in network.graph if isinstance(layer, IntegrateFire)]
    # Lava's own neuron gets its bias by way of its synapses, unless it can hold it.
    unheld = {neuron.name for neuron in neurons if stock and network.depths[neuron.name] > 0}
    expect_registers(network.graph, currents=network.parts.inputs == "currents", unheld=unheld)
    for neuron in neurons if stock else ():
        if len(np.unique(neuron.threshold)) > 1 or (2 * neuron.level != neuron.threshold).any():
            raise GraphError(
                f"layer {neuron.name!r}: ATRLIF has one threshold a layer and fires at half of it, got thresholds from "
                f"{neuron.threshold.min():.0f} to {neuron.threshold.max():.0f} and levels from "
                f"{neuron.level.min():.0f} to {neuron.level.max():.0f}: quantize with scheme='per_layer', or use "
                "neuron='integrate_fire'"
            )


def check_images(network: LavaPlan, x: NDArray[np.floating], steps: int) -> None:
    """Raise `InputError`, naming the layer, unless `network` fits Loihi's registers for `steps` steps of images `x`."""
    if network.parts.neuron == "atrlif":
        _check_held_currents(network, x)
    if network.recorded.latency is not None:
        return  # what images there are, their sums are bounded
    neurons = [layer for layer in network.graph if isinstance(layer, IntegrateFire)]
    bounds = ranges(network.graph)
    worst = [steps * bounds[neuron.inputs[0]].size.max() + neuron.threshold.max() for neuron in neurons]
    if any(value > largest_potential(network, neuron) for value, neuron in zip(worst, neurons, strict=True)):
        exact = max(*worst, *(bound.partial.max() for bound in bounds.values())) < EXACT
        if exact and network.parts.neuron == "integrate_fire" and _engine_finds_none(network, x, steps):
            return
        images = x.astype(np.float32) if exact else x.astype(np.float64)
        for neuron, what, value, step, image in _extremes(network, neurons, images, steps):
            if abs(value) > largest_potential(network, neuron):
                raise InputError(
                    f"layer {neuron.name!r}: its {what} comes to {value:.0f} at step {step} of image {image}; the "
                    f"register holds up to ±{largest_potential(network, neuron)}: run fewer steps than {steps}, "
                    f"or {REMEDY}"
                )


def _engine_finds_none(network: LavaPlan, x: NDArray[np.floating], steps: int) -> bool:
    """Whether no potential leaves its register: the engine is fast, but does not say where one does."""
    try:
        Engine(network.graph, limits=limits(network)).run(tensor(x), steps, memory=MEMORY)
    except InputError:
        return False
    return True


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


def limits(network: LavaPlan) -> dict[str, float]:
    """By layer of neurons of a plain network: what the engine is to hold potentials to, to run within the registers."""
    neurons = [layer for layer in network.graph if isinstance(layer, IntegrateFire)]
    return {neuron.name: float(largest_potential(network, neuron)) for neuron in neurons}


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
