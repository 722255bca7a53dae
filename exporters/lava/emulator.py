"""The emulator of Lava's fixed-point run: the same arithmetic, at the speed of `bridge.simulate.engine.engine`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from bridge._util.neutral import neutral
from bridge._util.shown import Shown
from bridge.backends.protocol import Availability, check_input
from bridge.graph import LayerGraph
from bridge.graph.loihi_registers import LARGEST_WEIGHT
from bridge.nir_graph import from_nir
from bridge.passes.fold_pooling import fold_pooling
from bridge.records import SpikeRecord
from bridge.simulate.counts import CountSimulator
from bridge.simulate.engine.engine import MEMORY, Engine
from bridge.simulate.ops import tensor
from bridge.simulate.reference import simulate
from bridge.simulate.registers import expect_registers
from exporters.lava.bounds import check_network, limits
from exporters.lava.plan import LavaPlan, Parts


@dataclass(frozen=True, eq=False, repr=False)
class TwinNetwork(Shown):
    """What `LavaTwin.export` returns: the network, and the engine that runs it within Loihi's registers."""

    graph: LayerGraph
    engine: Engine | CountSimulator


class LavaTwin:
    """What `LavaFixed` computes, spike for spike and output for output, without Lava: for whole test sets.

    It refuses what does not fit Loihi's registers, as `LavaFixed` does, and so never needs to wrap or saturate. Let
    Lava itself run a sample beside it; the agreement then shows that both are the same there:

    >>> network.validate(x, 8, ["lava-fixed", "lava-twin"], images={"lava-fixed": 60})
    """

    name = "lava-twin"

    def available(self) -> Availability:
        """Always: it needs this package only."""
        return Availability(usable=True, versions={"qcfs-bridge": version("qcfs-bridge")}, engine=True)

    @neutral()
    def export(self, graph: nir.NIRGraph) -> TwinNetwork:
        """Raises `GraphError` if `graph` is not in whole numbers, or a layer does not fit Loihi's registers."""
        layers = from_nir(graph)
        if layers.latency is not None:
            expect_registers(layers)
            return TwinNetwork(layers, CountSimulator(layers, torch.device("cpu")))
        plan = LavaPlan(fold_pooling(layers, LARGEST_WEIGHT), Parts(synapses="torch", fixed=True))
        check_network(plan)
        return TwinNetwork(layers, Engine(layers, limits=limits(plan)))

    @neutral()
    def run(self, native: TwinNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """Run it. The membranes are those that the recorded spikes give by the neuron's equation.

        Raises `InputError` if `x` does not fit, or if on these images a neuron would leave its register.
        """
        x = check_input(native.graph.input.shape, x, steps, integer=True)
        record = native.engine.run(tensor(x), steps, record=True, memory=MEMORY).record
        assert record is not None  # it was asked for
        record = replace(record, backend=self.name)
        if not membranes:
            return record
        potentials = simulate(native.graph, tensor(x), steps, membranes=True, heard=record).membranes
        return replace(record, membranes=potentials)
