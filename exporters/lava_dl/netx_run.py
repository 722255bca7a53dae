"""NetX's ``Network`` on the CPU, from file to spike record. Importing this module imports Lava and lava-dl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.errors import InputError
from bridge.graph.loihi_registers import LARGEST_THRESHOLD, UNIT
from bridge.records import Recorder, SpikeRecord
from exporters.lava.backend import ONE_AT_A_TIME
from exporters.lava.hierarchy import Probe
from exporters.lava.layout import Layout
from exporters.lava.processes import Sink, shared_array
from exporters.lava.runtime import forget, quiet, run_to_end
from exporters.lava_dl.netx_plan import NetXPlan
from exporters.lava_dl.processes import PySoftResetModel

# isort: split
from lava.lib.dl.netx.hdf5 import Network
from lava.proc.io.dataloader import StateDataloader
from lava.proc.lif.process import LIFReset

START = 1
"""Steps before the first spiking layer hears the first image: the loader writes at the end of a step."""
TIME_LIMIT = 600.0


def run(netx: NetXPlan, path: str | Path, x: NDArray[np.float32], steps: int, model: type[Any] | None) -> SpikeRecord:
    """What `exporters.lava_dl.netx.NetX.run` does."""
    with ONE_AT_A_TIME:
        return _run(netx, path, x, steps, model or PySoftResetModel)


def _run(netx: NetXPlan, path: str | Path, x: NDArray[np.float32], steps: int, model: type[Any]) -> SpikeRecord:
    rows = len(x) * steps
    with quiet():
        network = _network(netx, path, steps)
        layers = network.layers
        loader = _loader(netx, layers[0].neuron, x, steps)
        spikes, sinks = {}, []
        for place, (block, layer) in enumerate(zip(netx.blocks, layers, strict=True)):
            spikes[block.name] = shared_array((rows, *layer.shape), np.bool_)
            sinks.append(Sink(buffer=spikes[block.name], offset=START + place))
            layer.neuron.s_out.connect(sinks[-1].a_in)
        delay = START + len(layers) - 1
        potential = shared_array((rows, *layers[-1].shape), np.int32)
        probe = Probe(buffer=potential, offset=delay)
        probe.state.connect_var(layers[-1].neuron.v)
    parts = [part for layer in layers for part in (layer, layer.neuron, getattr(layer, "synapse", layer))]
    try:
        run_to_end(loader, rows + delay, TIME_LIMIT, "fixed_pt", {LIFReset: model})
    finally:
        forget([network, loader, probe, *parts, *sinks])
    return _record(netx, spikes, potential, len(x), steps)


def _network(netx: NetXPlan, path: str | Path, steps: int) -> Network:
    """NetX's network of the file. Raises `InputError` if there is none, or one of other layers than `netx` has."""
    try:
        network = Network(net_config=str(path), reset_interval=steps, reset_offset=START)
    except OSError as error:
        raise InputError(f"{path}: not a NetX file ({error}); write one with NetX(graph).write(path)") from error
    network.net_config.f.close()
    found = [tuple(map(int, layer.shape)) for layer in network.layers]
    wanted = [Layout(netx.graph.shapes[block.name]).lava_shape for block in netx.blocks]
    if found != wanted:
        raise InputError(f"{path}: expected layers of shapes {wanted}, got {found}; write the file from this network")
    return network


def _loader(netx: NetXPlan, neuron: LIFReset, x: NDArray[np.float32], steps: int) -> StateDataloader:
    """Lava's own loader, which makes each image's currents the bias of the first spiking layer `neuron` in turn."""
    neuron.bias_exp.init = netx.shift
    currents = Layout(netx.graph.shapes[netx.blocks[0].name]).to_lava(netx.currents(x))
    loader = StateDataloader(dataset=[(current, 0) for current in currents], interval=steps)
    loader.connect_var(neuron.bias_mant)
    return loader


def _record(
    netx: NetXPlan, spikes: dict[str, NDArray[np.bool_]], potential: NDArray[np.int32], images: int, steps: int
) -> SpikeRecord:
    """The record, step t of image b being the network's own step t."""
    shapes = netx.graph.shapes
    recorder = Recorder("netx", {name: shapes[name] for name in netx.graph.spiking})

    def at(step: int, buffer: NDArray[Any], name: str) -> NDArray[Any]:
        return Layout(shapes[name]).from_lava(buffer.reshape(images, steps, *buffer.shape[1:])[:, step])

    output = netx.graph.output.name
    # The readout's neurons, too, take their threshold, the largest there is, off where they fire.
    fires = output in netx.graph.spiking
    readout = spikes[output] if fires else potential // UNIT + LARGEST_THRESHOLD * spikes[output]
    for step in range(steps):
        for name in netx.graph.spiking:
            recorder.spikes(name, at(step, spikes[name], name))
        recorder.readout(at(step, readout, output))
    return recorder.finish()
