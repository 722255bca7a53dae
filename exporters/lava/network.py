"""A layer graph as a network of Lava Processes. Importing this module imports Lava."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge import graph as layers
from bridge.errors import GraphError
from bridge.graph import Layer, LayerGraph, Shape
from exporters.lava.affine import Float64, Lowered, evaluate, lower
from exporters.lava.processes import CurrentSource, IntegrateFire, Readout

# isort: split
import lava.proc.dense.models  # noqa: F401  (a missing dependency of Dense would else show only when Lava compiles)
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense

SPIKE_BITS = 0  # Dense and Conv read a plain spike
GRADED_BITS = 24  # …or a value, such as a pooled mean; what Loihi 2's graded spikes carry at most


@dataclass(frozen=True)
class Layout:
    """How Lava orders a layer's neurons: a feature map ``[C, H, W]`` as ``[W, H, C]``, a vector as it is.

    ``shape`` is the layer's own; a vector that was a feature map keeps Lava's order of that map, whose shape is then
    ``grid``.
    """

    shape: Shape
    grid: Shape | None = None

    @property
    def lava_shape(self) -> Shape:
        """The shape of Lava's ports for this layer."""
        return self.shape[::-1] if len(self.shape) == 3 else self.shape

    def flat(self, shape: Shape) -> Layout:
        """The layout after flattening to `shape`."""
        return Layout(shape, self.shape) if len(self.shape) == 3 else Layout(shape, self.grid)

    def to_lava(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """``[..., *shape]`` in Lava's order and shape."""
        return self._reordered(values, self.grid, self.lava_shape)

    def from_lava(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """``[..., *lava_shape]`` in the layer's order and shape."""
        return self._reordered(values, self.grid and self.grid[::-1], self.shape)

    def _reordered(self, values: NDArray[np.generic], grid: Shape | None, shape: Shape) -> NDArray[np.generic]:
        if grid is None:
            return np.swapaxes(values, -1, -3) if len(self.shape) == 3 else values
        lead = values.shape[: values.ndim - 1]
        return np.swapaxes(values.reshape(*lead, *grid), -1, -3).reshape(*lead, *shape)


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of neurons with the layers that lead to it from the stage before.

    ``neuron`` is None for the readout. ``bias`` ``[*layout.shape]`` is what the chain of ``synapses`` gives for zeros.
    """

    synapses: tuple[Lowered, ...]
    neuron: layers.IntegrateFire | None
    bias: Float64
    layout: Layout


@dataclass(frozen=True, eq=False)
class Processes:
    """One set of connected Lava Processes, ready for one run of `steps` Lava steps.

    ``layers`` maps a layer's name to its Dense, Conv or `IntegrateFire`. Layers before the first spiking one are
    computed on the host and are found in ``source``; a Flatten only reorders a Dense's columns. ``offsets`` tells at
    which Lava step, counted from 0, a spiking layer has its first input, and ``delay`` the same of the readout.
    """

    source: CurrentSource
    layers: Mapping[str, AbstractProcess]
    readout: Readout
    offsets: Mapping[str, int]
    delay: int
    steps: int


class LavaNetwork:
    """A spiking network for Lava: what `Lava.export` returns.

    Lava's Processes run once, for a fixed number of images and steps, so this object holds what they are made of and
    makes a fresh set on demand, to look at, to probe, or to connect to your own::

        processes = network.build(images, steps=8)
        processes.layers["fc1"].weights.init          # Lava's own Dense
        processes.layers["act1"].s_out.connect(...)   # IntegrateFire: u_out, s_out
        processes.source.run(RunSteps(processes.steps), Loihi2SimCfg(select_tag="floating_pt"))
        processes.source.stop()

    Neurons are in Lava's order; ``layouts[name].from_lava`` puts a layer's recorded values back into the graph's.
    """

    def __init__(self, graph: LayerGraph) -> None:
        """Plan `graph`, a chain. Raises `GraphError` for a branch or a layer that Lava cannot run."""
        _expect_chain(graph)
        self.graph = graph
        self.encoder, self.stages = _plan(graph)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Lava's order of each spiking layer's neurons."""
        return {stage.neuron.name: stage.layout for stage in self.stages if stage.neuron is not None}

    @property
    def readout_layout(self) -> Layout:
        """Lava's order of the readout."""
        return self.stages[-1].layout

    def build(self, x: NDArray[np.floating], steps: int) -> Processes:
        """Fresh, connected Processes that run images `x` ``[B, *input]`` for `steps` time steps each, in one stream."""
        first = self.stages[0].layout
        currents = np.ascontiguousarray(first.to_lava(evaluate(self.encoder, x)))
        source = CurrentSource(currents=currents, interval=steps, name=self.graph.input.name)
        wiring = _Wiring(source.a_out, steps)
        for stage in self.stages:
            wiring.add(stage)
        assert wiring.readout is not None  # the plan ends with a readout
        delay = wiring.offset
        return Processes(source, wiring.layers, wiring.readout, wiring.offsets, delay, len(x) * steps + delay)


class _Wiring:
    """Makes one stage's Processes after another and connects each to the one before."""

    def __init__(self, port: OutPort, interval: int) -> None:
        self.port = port
        self.interval = interval
        self.bits = GRADED_BITS
        self.offset = 0
        self.layers: dict[str, AbstractProcess] = {}
        self.offsets: dict[str, int] = {}
        self.readout: Readout | None = None

    def add(self, stage: Stage) -> None:
        """Append `stage`."""
        for synapse in stage.synapses:
            if not isinstance(synapse, layers.Flatten):
                self._add_synapse(synapse)
        bias = np.ascontiguousarray(stage.layout.to_lava(stage.bias))
        shape = stage.layout.lava_shape
        if stage.neuron is None:
            self.readout = Readout(shape=shape, bias=bias, interval=self.interval, offset=self.offset)
            self._connect(self.readout)
            return
        # The reference compares in float32: its level, exactly, is the one to reach.
        level = stage.neuron.level.astype(np.float32).astype(np.float64)
        per_neuron = np.broadcast_to(level.reshape(-1, *[1] * (len(stage.layout.shape) - 1)), stage.layout.shape)
        neuron = IntegrateFire(
            shape=shape,
            level=np.ascontiguousarray(stage.layout.to_lava(per_neuron)),
            bias=bias,
            interval=self.interval,
            offset=self.offset,
            name=stage.neuron.name,
        )
        self._connect(neuron)
        self.port, self.bits = neuron.s_out, SPIKE_BITS
        self.layers[stage.neuron.name] = neuron
        self.offsets[stage.neuron.name] = self.offset

    def _add_synapse(self, synapse: layers.Conv2d | layers.Linear) -> None:
        if isinstance(synapse, layers.Linear):
            process = Dense(weights=synapse.weight, num_message_bits=self.bits, name=synapse.name)
        else:
            process = Conv(
                weight=lava_kernel(synapse.weight),
                input_shape=self.port.shape,
                stride=synapse.stride[::-1],
                padding=synapse.padding[::-1],
                dilation=synapse.dilation[::-1],
                groups=synapse.groups,
                num_message_bits=self.bits,
                name=synapse.name,
            )
        self._connect(process)
        self.port, self.bits = process.a_out, GRADED_BITS
        self.layers[synapse.name] = process
        self.offset += 1

    def _connect(self, process: AbstractProcess) -> None:
        entry = process.s_in if isinstance(process, Dense | Conv) else process.a_in
        port = self.port if self.port.shape == entry.shape else self.port.reshape(entry.shape)
        port.connect(entry)


def lava_kernel(weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """A cross-correlation kernel ``[C_out, C_in, H, W]`` as Lava's convolution kernel ``[C_out, W, H, C_in]``."""
    return np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1), dtype=np.float64)


def _expect_chain(graph: LayerGraph) -> None:
    for layer in graph:
        readers = [reader.name for reader in graph.consumers(layer.name)]
        if len(readers) > 1:
            raise GraphError(
                f"layer {layer.name!r} feeds {readers}: the Lava backend runs chains, in which each layer feeds one; "
                "use another backend for networks with branches"
            )
        if len(layer.inputs) > 1:
            raise GraphError(
                f"layer {layer.name!r} ({type(layer).__name__}) has the inputs {list(layer.inputs)}: the Lava backend "
                "runs chains, in which each layer has one; use another backend for networks with branches"
            )


def _plan(graph: LayerGraph) -> tuple[tuple[Lowered, ...], list[Stage]]:
    """The host's layers and the stages: the chain cut after each spiking layer, the readout being the last piece."""
    encoder: tuple[Lowered, ...] | None = None
    stages: list[Stage] = []
    pending: list[Layer] = []
    layout = Layout(graph.input.shape)
    for layer in (*graph.layers[1:], None):
        if layer is not None and not isinstance(layer, layers.IntegrateFire):
            pending.append(layer)
            continue
        start = graph.shapes[pending[0].inputs[0]] if pending else layout.shape
        chain = tuple(lower(each, graph.shapes[each.inputs[0]]) for each in pending)
        pending = []
        if encoder is None:
            encoder, chain = chain, ()
            last = layer.inputs[0] if layer is not None else graph.output.name
            layout = Layout(graph.shapes[last])
            bias = np.zeros(layout.shape)
        else:
            bias = evaluate(chain, np.zeros((1, *start)))[0]
            chain, layout = _ordered(chain, layout, graph)
        stages.append(Stage(chain, layer, bias, layout))
    assert encoder is not None  # the loop runs at least once
    return encoder, stages


def _ordered(chain: tuple[Lowered, ...], layout: Layout, graph: LayerGraph) -> tuple[tuple[Lowered, ...], Layout]:
    """`chain` with the columns of its matrices in the order in which Lava delivers their input, and the last layout."""
    ordered: list[Lowered] = []
    for layer in chain:
        shape = graph.shapes[layer.name]
        if isinstance(layer, layers.Flatten):
            layout = layout.flat(shape)
        elif isinstance(layer, layers.Linear):
            weight = np.ascontiguousarray(layout.to_lava(layer.weight), dtype=np.float64)
            layer = layers.Linear(name=layer.name, inputs=layer.inputs, weight=weight, bias=layer.bias)
            layout = Layout(shape)
        else:
            layout = Layout(shape)
        ordered.append(layer)
    return tuple(ordered), layout
