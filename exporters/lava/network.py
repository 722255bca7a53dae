"""The native object: a planned network that makes its hierarchical Process when asked to. Only then Lava is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bridge.errors import InputError
from exporters.lava.lowering import Float64
from exporters.lava.plan import LavaPlan

if TYPE_CHECKING:
    from exporters.lava.hierarchy import NetworkProcess


class LavaNetwork(LavaPlan):
    """A spiking network for Lava: what `Lava.export` and `LavaFixed.export` return.

    A Lava Process is made for a fixed number of time steps an image, so this object holds what it takes and makes one
    on demand, to be used like any other Process in a Lava program::

        network = LavaFixed().export(graph)
        process = network.process(steps=8)  # a hierarchical Process, for one image after the other
        for name, values in network.feed(images).items():  # what goes into its in-ports: [images, *port.shape]
            source = CurrentSource(currents=values, interval=8, offset=network.offsets[name])
            source.a_out.connect(process.inputs[name])
        duration = 8 * len(images) + network.delay
        monitor = Monitor()
        monitor.probe(process.states["act1"], duration)
        process.run(RunSteps(duration), Loihi2SimCfg(select_tag="fixed_pt"))
        potentials = monitor.get_data()[process.name]["act1_u"]  # [duration, *port.shape]
        process.stop()

    A feed named ``name`` begins at Lava step ``offsets[name]``, counted from 0, and so do a spiking layer's spikes; the
    readout begins at step ``delay``. A staged network takes an image every ``interval(steps)`` steps, whatever `steps`:
    its sources are to be made with that interval and with ``once=True``. Neurons are in Lava's order;
    ``layouts[name].from_lava`` puts recorded values back into the graph's. Its attributes are those of its plan,
    `exporters.lava.plan.LavaPlan`.
    """

    def process(self, steps: int, lanes: int = 1, currents: Mapping[str, Float64] | None = None) -> NetworkProcess:
        """The network as one hierarchical Process, for `steps` time steps an image and `lanes` images side by side.

        Those of a staged network are its own, ``interval(steps)`` from one image to the next.

        Several lanes need our own synapses. With Lava's own neuron, which holds its input current as its bias, the
        Process is for one image, and `currents` is one image's part of what `feed` gives.
        """
        from exporters.lava.hierarchy import NetworkProcess

        stock = self.parts.neuron == "atrlif"
        if lanes < 1:
            raise InputError(f"expected at least one lane, got {lanes}")
        if lanes > 1 and (stock or self.parts.synapses == "stock"):
            raise InputError(f"expected one lane, since Lava's own Processes take one image at a time, got {lanes}")
        held = {name: self.fed[name] for name in self.graph.spiking if name in self.fed} if stock else {}
        missing = sorted(held.keys() - (currents or {}).keys())
        if missing:
            raise InputError(f"expected the currents of {missing} for one image, from `feed`: ATRLIF holds them")
        given = {name: (currents or {})[name] for name in held}
        return NetworkProcess(plan=self, interval=self.interval(steps), lanes=lanes, currents=given)
