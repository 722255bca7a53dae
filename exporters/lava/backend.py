"""The backend: NIR in, Lava Processes out, spikes back. Lava is imported only when a method is called."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
from numpy.typing import NDArray

from bridge.errors import BackendError
from bridge.graph import Conv2d, LayerGraph
from bridge.records import Recorder, SpikeRecord
from exporters.base import Availability, check_input, probe
from exporters.lava import compat

if TYPE_CHECKING:
    from exporters.lava.network import LavaNetwork, Layout, Processes

PACKAGES = {"lava.proc.dense.models": "lava-nc", "networkx": "networkx", "scipy": "scipy", "asteval": "asteval"}
INSTALL = (
    "pip install asteval networkx scikit-learn scipy && pip install --no-deps --ignore-requires-python lava-nc==0.10.0"
)
_ONE_AT_A_TIME = threading.Lock()
"""Lava keeps its processes in global registers and forks: two runs in one program get in each other's way."""

# For the time limit, per step, on a slow machine: a Process, a pair of channels in Conv, a multiplication.
PROCESS_SECONDS, PAIR_SECONDS, PRODUCT_SECONDS = 1e-3, 3e-5, 5e-9
LEAST_LIMIT, GENEROSITY = 120.0, 20.0


@dataclass(frozen=True)
class Lava:
    """Lava (lava-nc) on the CPU in floating point: stock Dense and Conv, and our `IntegrateFire` between them.

    All images run through the network in one stream, each layer working on its own image; where branches of different
    depth meet, a `Delay` holds the shorter one back. `time_limit` is in seconds for one `run`, start-up included; by
    default it grows with the network, the images and the steps.
    """

    time_limit: float | None = None
    name = "lava"
    integer_only = False

    def available(self) -> Availability:
        """Whether Lava can be imported with `exporters.lava.compat`'s fixes."""
        try:
            compat.apply()
        except Exception as error:
            reason = f"import lava failed: {type(error).__name__}: {error}"
            return Availability(usable=False, reason=reason, install=INSTALL)
        return probe(PACKAGES, INSTALL)

    def export(self, graph: nir.NIRGraph) -> LavaNetwork:
        """The network of Lava Processes for `graph`. Raises `GraphError` for a layer that Lava cannot run."""
        from bridge.nir_graph import from_nir

        return build_network(from_nir(graph))

    def run(self, native: LavaNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """Run `native` on images `x` ``[B, *input]`` for `steps` steps each, in fresh Processes.

        Raises `InputError` if `x` does not fit and `BackendError`, with Lava's own traceback, if Lava fails or takes
        longer than the time limit. No process outlives the call.
        """
        from exporters.lava.runtime import forget, quiet, run_to_end

        check_input(native.graph.input.shape, x, steps)
        with _ONE_AT_A_TIME:
            with quiet():
                processes = native.build(x, steps)
                taps = _Taps(native, processes, len(x) * steps, membranes)
            members = [*processes.all, *taps.sinks]
            limit = self.time_limit if self.time_limit is not None else _limit(native, processes, len(members))
            try:
                run_to_end(processes.readout, processes.steps, limit)
            finally:
                forget(members)
        return taps.record(self.name, len(x), steps)


def build_network(graph: LayerGraph) -> LavaNetwork:
    """Lava's network for a layer graph. Raises `BackendError` without Lava, `GraphError` for what it cannot run."""
    try:
        from exporters.lava.network import LavaNetwork
    except ImportError as error:
        raise BackendError(f"the Lava backend needs Lava ({error}): {INSTALL}") from error
    return LavaNetwork(graph)


class _Taps:
    """The Sinks of one run, and the record made of what they hold: ``[B · T, *lava_shape]`` each."""

    def __init__(self, network: LavaNetwork, processes: Processes, rows: int, membranes: bool) -> None:
        self.network = network
        self.rows = rows
        self.sinks: list[Any] = []
        self.spikes = {}
        self.membranes = {}
        for name, layout in network.layouts.items():
            neuron, offset = processes.layers[name], processes.offsets[name]
            self.spikes[name] = self._tap(neuron.s_out, layout, offset, np.bool_)
            if membranes:
                self.membranes[name] = self._tap(neuron.u_out, layout, offset, np.float64)
        self.readout = self._tap(processes.readout.y_out, network.readout_layout, processes.delay, np.float64)

    def _tap(self, port: Any, layout: Layout, offset: int, dtype: type[np.generic]) -> NDArray[Any]:
        from exporters.lava.processes import Sink, shared_array

        buffer = shared_array((self.rows, *layout.lava_shape), dtype)
        sink = Sink(buffer=buffer, offset=offset)
        port.connect(sink.a_in)
        self.sinks.append(sink)
        return buffer

    def record(self, backend: str, images: int, steps: int) -> SpikeRecord:
        """The record, step t of image b being the network's own step t."""
        layouts = self.network.layouts
        recorder = Recorder(backend, {name: layout.shape for name, layout in layouts.items()})

        def at(step: int, buffer: NDArray[Any], layout: Layout) -> NDArray[Any]:
            return layout.from_lava(buffer.reshape(images, steps, *layout.lava_shape)[:, step])

        for step in range(steps):
            for name, layout in layouts.items():
                # A copy, since what comes back is a view of memory shared with Lava.
                membrane = at(step, self.membranes[name], layout).copy() if name in self.membranes else None
                recorder.spikes(name, at(step, self.spikes[name], layout), membrane)
            recorder.readout(at(step, self.readout, self.network.readout_layout))
        return recorder.finish()


def _limit(network: LavaNetwork, processes: Processes, members: int) -> float:
    """Seconds that a run may take, generously: by the steps and by what one step costs."""
    seconds = members * PROCESS_SECONDS
    for layer in network.synapses.values():
        size = int(np.prod(network.graph.shapes[layer.name][1:]))  # 1 for a Linear's vector
        seconds += layer.weight.size * size * PRODUCT_SECONDS
        if isinstance(layer, Conv2d):
            seconds += layer.weight.shape[0] * layer.weight.shape[1] * PAIR_SECONDS
    return LEAST_LIMIT + GENEROSITY * processes.steps * seconds
