"""The backend: a NIR graph as a network of Nengo's, and what its ensembles spike in Nengo's simulator."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, probe
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord

if TYPE_CHECKING:
    from exporters.nengo.network import NengoNetwork

Float64 = NDArray[np.float64]


class Nengo:
    """Native object: an `exporters.nengo.network.NengoNetwork`, a ``nengo.Network`` to be simulated with ``dt=1``.

    >>> network = Nengo().export(nir.read("net.nir", type_check=False))
    >>> with nengo.Network() as model:  # one in which it is a part; `with network:` would do as well
    ...     model.add(network)
    ...     image = nengo.Node(images[0].ravel())
    ...     nengo.Connection(image, network.input, synapse=None)
    ...     readout = nengo.Probe(network.output)
    ...     spikes = nengo.Probe(network.neurons["act1"])
    >>> with nengo.Simulator(model, dt=1) as simulator:
    ...     simulator.run_steps(8)
    >>> prediction = simulator.data[readout].mean(axis=0).argmax()

    The output of a staged network is the sum of the readout, not its mean; a grouped one's is there at each step.
    """

    name = "nengo"

    def available(self) -> Availability:
        with warnings.catch_warnings():
            # Nengo 4.1.0 takes a function from there, and gets it
            warnings.filterwarnings("ignore", r"numpy\.core is deprecated", DeprecationWarning)
            return probe({"nengo": "nengo"}, 'pip install "nengo>=4.1"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> NengoNetwork:
        from exporters.nengo.network import NengoNetwork

        return NengoNetwork(from_nir(graph))

    @neutral()
    def run(self, native: NengoNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """As `Backend.run` says. Nengo knows no batches: the images are simulated one after the other."""
        import nengo
        from nengo.builder import Model

        x = check_input(native.input_shape, x, steps, integer=native.integer)
        image = np.zeros(native.input.size_in)
        with nengo.Network(add_to_container=False) as network:
            network.add(native)
            screen = nengo.Node(lambda t: image, size_out=len(image))
            nengo.Connection(screen, native.input, synapse=None)
            fired = {name: nengo.Probe(neurons) for name, neurons in native.neurons.items()}
            left = {
                name: nengo.Probe(neurons, neurons.ensemble.neuron_type.potential)
                for name, neurons in native.neurons.items()
                if membranes
            }
            readout = nengo.Probe(native.output)
        records = []
        # a simulator's own model would come with a cache on disk of decoders, of which there are none here
        with nengo.Simulator(network, model=Model(dt=1.0), progress_bar=False) as simulator:
            for values in x:
                image[...] = values.ravel()
                simulator.reset()
                simulator.run_steps(steps, progress_bar=False)
                spikes = {name: simulator.data[probe] for name, probe in fired.items()}
                potentials = {name: simulator.data[probe] for name, probe in left.items()}
                records.append(self._record(native, spikes, potentials, simulator.data[readout]))
        return SpikeRecord.concatenate(records)

    def _record(
        self, native: NengoNetwork, spikes: dict[str, Float64], potentials: dict[str, Float64], readout: Float64
    ) -> SpikeRecord:
        """The record of one image; all arrays are ``[T, N]``, `potentials` as the neurons' probes have them."""
        recorder = Recorder(self.name, {name: native.shapes[name] for name in spikes}, summed=native.summed)
        for t, values in enumerate(readout):
            for name, fired in spikes.items():
                shape, potential = (1, *native.shapes[name]), None
                if name in potentials:
                    neuron = native.neurons[name].ensemble.neuron_type
                    potential = neuron.before_reset(potentials[name][t], fired[t]).reshape(shape)
                recorder.spikes(name, fired[t].reshape(shape), potential)
            recorder.readout(values.reshape(1, *native.output_shape))
        return recorder.finish()
