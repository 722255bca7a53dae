"""One run of a network in Lava: what is around its Process, and the record of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.graph import IntegrateFire
from bridge.records import Recorder, SpikeRecord
from bridge.simulate.readouts import readouts
from exporters.lava.layout import Layout, side_by_side
from exporters.lava.network import LavaNetwork

if TYPE_CHECKING:
    from exporters.lava.hierarchy import NetworkProcess


class Run:
    """A network's Process among the sources and sinks of one run, and the record made of what the sinks hold.

    Sinks hold ``[rounds · T, *port shape]``: with L lanes, B images take ``⌈B / L⌉`` rounds.
    """

    def __init__(self, network: LavaNetwork, x: NDArray[np.floating], steps: int, lanes: int, membranes: bool) -> None:
        self.network, self.images, self.lanes, self.wanted, self.x = network, len(x), lanes, steps, x
        self.interval = network.interval(steps)
        self.rounds = -(-len(x) // lanes)
        self.steps = self.rounds * self.interval + network.delay
        self.around: list[Any] = []
        feed = self.feed = network.feed(x)
        self.process: NetworkProcess = network.process(steps, lanes, {name: value[0] for name, value in feed.items()})
        for name, port in self.process.inputs.items():
            self._source(name, side_by_side(feed[name], lanes), port)
        offsets = network.offsets
        kind = np.int32 if network.parts.spikes == "graded" else np.bool_
        self.spikes = {name: self._tap(port, offsets[name], kind) for name, port in self.process.spikes.items()}
        self.membranes: dict[str, Callable[[], NDArray[np.float64]]] = {}
        if membranes:
            for name in self.process.spikes:
                self.membranes[name] = self._potential(name, offsets[name])
        self.readout = self._tap(self.process.y_out, network.delay, np.float64)

    def _source(self, name: str, values: NDArray[Any], port: Any) -> None:
        from exporters.lava.processes import CurrentSource

        source = CurrentSource(
            currents=values,
            interval=self.interval,
            offset=self.network.offsets[name],
            once=self.network.graph.staged,
        )
        source.a_out.connect(port)
        self.around.append(source)

    def _tap(self, port: Any, offset: int, dtype: type[np.generic]) -> NDArray[Any]:
        from exporters.lava.processes import Sink, shared_array

        buffer = shared_array((self.rounds * self.interval, *port.shape), dtype)
        sink = Sink(buffer=buffer, offset=offset)
        port.connect(sink.a_in)
        self.around.append(sink)
        return buffer

    def _potential(self, name: str, offset: int) -> Callable[[], NDArray[np.float64]]:
        """What gives, after the run, the potential of layer `name` after integration: Lava's own neuron has no port."""
        if name in self.process.potentials:
            buffer = self._tap(self.process.potentials[name], offset, np.float64)
            return lambda: buffer
        held, refractory = (
            self._probe(variables[name], offset) for variables in (self.process.states, self.process.refractory)
        )
        neuron = self.network.graph[name]
        assert isinstance(neuron, IntegrateFire)
        # A spike adds the threshold to the refractory state in the same step.
        unit, threshold = 2 ** self.network.shift(neuron), neuron.threshold[0]
        return lambda: (held - refractory) / unit + threshold * self.spikes[name]

    def _probe(self, variable: Any, offset: int) -> NDArray[Any]:
        from exporters.lava.hierarchy import Probe
        from exporters.lava.processes import shared_array

        buffer = shared_array((self.rounds * self.interval, *variable.shape), np.int64)
        probe = Probe(buffer=buffer, offset=offset)
        probe.state.connect_var(variable)
        self.around.append(probe)
        return buffer

    def record(self, backend: str) -> SpikeRecord:
        """The record, step t of image b being the network's own step t."""
        plan = self.network
        graph = plan.recorded
        recorder = Recorder(backend, {name: graph.shapes[name] for name in graph.spiking}, summed=graph.staged)
        membranes = {name: potential() for name, potential in self.membranes.items()}
        for step in range(self.wanted):
            for name in graph.spiking:
                shown = self._potentials_at(name, step, membranes[name]) if name in membranes else None
                recorder.spikes(name, self.fired(name, step), shown)
        for readout in self._staged_readouts() if graph.staged else map(self._readout, range(self.wanted)):
            recorder.readout(readout)
        return recorder.finish()

    def fired(self, name: str, step: int) -> NDArray[np.generic]:
        """The spikes of layer `name` at the network's step `step`, counted from 0, ``[B, *shape]``."""
        plan = self.network
        shape = plan.recorded.shapes[name]
        row = step - plan.opens(name)
        if not 0 <= row < self.interval:
            return np.zeros((self.images, *shape), bool)
        found = self._at(row, self.spikes[name], plan.layouts[name])
        if plan.parts.spikes == "graded":
            return np.stack([found > k for k in range(shape[0])], axis=1)
        return found.reshape(self.images, *shape)

    def _potentials_at(self, name: str, step: int, buffer: NDArray[Any]) -> NDArray[np.floating]:
        """The potentials of layer `name`: outside a window, in which alone they are recorded, 0."""
        graph = self.network.recorded
        row = step - self.network.opens(name)
        shape = graph.activation_shape(name)
        if not 0 <= row < self.interval:
            return np.zeros((self.images, *shape))
        potentials = self._at(row, buffer, Layout(shape))
        if graph.grouped:
            potentials = np.broadcast_to(potentials[:, None], (self.images, *graph.shapes[name]))
        return potentials.astype(np.float64)  # a copy: what is there is memory shared with Lava

    def _readout(self, row: int) -> NDArray[np.floating]:
        return self._at(row, self.readout, self.network.readout_layout)

    def _staged_readouts(self) -> Iterator[NDArray[np.floating]]:
        """The readout of a staged network, at each step as if it had one image alone.

        What comes once, a bias or the image's part, comes in the first step. Streamed, all of the readout comes in the
        steps of the last windows. Where earlier ones wait for those, their part at each step is computed from their
        spikes, and the sum is Lava's.
        """
        plan = self.network
        graph, last, begins = plan.graph, plan.graph.lasts[plan.graph.output.name], plan.readout_begins
        rows = [self._readout(row) for row in range(self.interval)]
        nothing = np.zeros_like(rows[0])
        if all(plan.waits(source, last) == 0 for source in plan.before_readout):
            once = plan.at_once(self.feed)
            shown = {begins + row: values for row, values in enumerate(rows)}
            shown[begins] = shown[begins] - once
            shown[0] = shown.get(0, nothing) + once
        else:
            spikes = {name: [self.fired(name, step) for step in range(last + 1)] for name in graph.spiking}
            parts = readouts(graph, lambda name, step: spikes[name][step], torch.from_numpy(self.x), last)
            shown = dict(enumerate(parts.astype(np.float64)))
            shown[last] = np.sum(rows, axis=0) - np.sum(parts, axis=0, dtype=np.float64)
        for step in range(self.wanted):
            yield shown.get(step, nothing)

    def _at(self, row: int, buffer: NDArray[Any], layout: Layout) -> NDArray[Any]:
        """What `buffer` holds of all images, ``[B, *shape]``, in the row `row` of each."""
        values = buffer.reshape(self.rounds, self.interval, self.lanes, *layout.lava_shape)[:, row]
        return layout.from_lava(values.reshape(-1, *layout.lava_shape)[: self.images])
