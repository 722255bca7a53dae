"""The backend: a NIR graph as a module of NNX's and Spyx's layers, and what its neurons spike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, exact, may_leave_exact, probe
from bridge.nir_graph import from_nir
from bridge.records import Recorder, SpikeRecord

if TYPE_CHECKING:
    from exporters.spyx.network import SpyxNetwork


class Spyx:
    """Native object: an `exporters.spyx.network.SpyxNetwork`, which ``spyx.nn.run`` takes like any layer of Spyx's.

    >>> network = Spyx().export(nir.read("net.nir", type_check=False))
    >>> readout, state = spyx.nn.run(network, jnp.broadcast_to(images, (8, *images.shape)))  # [T, B, ...], here T = 8
    >>> prediction = readout.mean(axis=0).argmax(axis=1)
    >>> readout, state = network(images, state)  # one more step
    >>> gradients = nnx.grad(lambda net: spyx.nn.run(net, x)[0].mean())(network)  # of Spyx's surrogate

    The output of a staged network is the sum of the readout, not its mean; a grouped one's is there at each step.
    """

    name = "spyx"

    def available(self) -> Availability:
        return probe({"spyx": "spyx", "jax": "jax", "flax": "flax"}, 'pip install "spyx>=1.0.0"')

    @neutral()
    def export(self, graph: nir.NIRGraph) -> SpyxNetwork:
        from exporters.spyx.network import SpyxNetwork

        return SpyxNetwork(from_nir(graph))

    @neutral()
    def run(self, native: SpyxNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        from flax import nnx

        from exporters.spyx.network import advance

        x = check_input(native.input_shape, x, steps, integer=native.integer)
        definition, parameters = nnx.split(native)
        images, state = x, native.initial_state(len(x))
        watched = may_leave_exact(dict(native.drives), steps)
        recorder = None
        for _ in range(steps):
            readout, spikes, potentials, state = advance(definition, parameters, images, state)
            # in the network's order: what is compiled returns its names sorted
            shapes = {name: spikes[name].shape[1:] for name in native.spiking}
            recorder = recorder or Recorder(self.name, shapes, summed=native.summed)
            for name in native.spiking:
                recorder.spikes(
                    name, np.asarray(spikes[name]), np.asarray(potentials[name]) if membranes or watched else None
                )
            recorder.readout(np.asarray(readout))
        assert recorder is not None  # there is at least one step
        record = recorder.finish()
        return exact(record, membranes=membranes) if watched else record
