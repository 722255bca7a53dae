"""How many neurocores a layer needs at least, and which of a core's limits says so. No placement is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from bridge.graph.loihi_registers import BIAS_EXPONENT_BITS, BIAS_MANTISSA_BITS, STATE_BITS, WEIGHT_BITS
from bridge.loihi.chips import Chip
from bridge.simulate.connections import Connections

BIAS_BITS = BIAS_MANTISSA_BITS + BIAS_EXPONENT_BITS


@dataclass(frozen=True)
class Cores:
    """At least so many neurocores, and the limit that comes closest: neurons, memory, input axons or output axons.

    ``bytes`` is what the layer's synapses take.
    """

    bytes: int
    cores: int
    limit: str


@dataclass(frozen=True)
class ChipCost:
    """What a layer asks of a chip: ``shared``, every weight stored once, as a convolution's can be; ``unshared``,
    every connection stored with a weight and the index of the neuron it leads to.
    """

    shared: Cores
    unshared: Cores


def shared(chip: Chip, neurons: int, stored: int, potentials: int) -> Cores:
    """The cores for `neurons` whose `stored` weights take 8 bits each, zeros included, without an index.

    Axons are not counted, since the neurons of a population can share them.
    """
    size = _bytes(stored * WEIGHT_BITS)
    return _least(size, _needs(chip, neurons, size, potentials))


def unshared(chip: Chip, connections: Mapping[str, Connections], potentials: int) -> dict[str, Cores]:
    """By layer, the cores if every connection of `connections`, in topological order, is stored by itself.

    A neuron that spikes needs an input axon in some core of each layer that hears it, and an output axon to each core
    it reaches: at least as many as its fan-out fills. So the layers that hear are settled before those that speak.
    """
    result: dict[str, Cores] = {}
    for name, heard in reversed(list(connections.items())):
        neurons = heard.fan_in.size
        size = _bytes(heard.total * (WEIGHT_BITS + ceil(log2(chip.neurons.value))))
        needs = _needs(chip, neurons, size, potentials)
        if chip.input_axons is not None:
            senders = sum(int(np.count_nonzero(counts)) for counts in heard.fan_out.values())
            needs["input axons"] = senders / chip.input_axons.value
        if chip.output_axons is not None:
            axons = 0
            for listener, cores in result.items():
                counts = connections[listener].fan_out.get(name)
                if counts is not None:
                    listeners = connections[listener].fan_in.size
                    a_core = -(-listeners // cores.cores)
                    axons += int((-(-np.minimum(counts, listeners) // a_core)).sum())
            needs["output axons"] = axons / chip.output_axons.value
        result[name] = _least(size, needs)
    return {name: result[name] for name in connections}


def state_bytes(neurons: int, potentials: int) -> int:
    """Bytes of the registers of `neurons`: synaptic input, bias, and so many membrane `potentials` each."""
    return _bytes(neurons * ((1 + potentials) * STATE_BITS + BIAS_BITS))


def _needs(chip: Chip, neurons: int, size: int, potentials: int) -> dict[str, float]:
    """By limit, how many cores' worth `neurons` with `size` bytes of synapses take up."""
    memory = size + (state_bytes(neurons, potentials) if chip.state_in_memory else 0)
    return {"neurons": neurons / chip.neurons.value, "memory": memory / chip.memory.value}


def _least(size: int, needs: Mapping[str, float]) -> Cores:
    limit = max(needs, key=lambda name: needs[name])
    return Cores(size, max(1, ceil(needs[limit])), limit)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
