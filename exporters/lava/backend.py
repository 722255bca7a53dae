"""The Lava backends in floating and in fixed point: NIR in, Lava Processes out, spikes back.

Lava is imported only when a method is called.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args, get_type_hints

import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.checks import positive
from bridge._util.neutral import neutral
from bridge.backends.protocol import Availability, check_input, probe
from bridge.errors import BackendError
from bridge.graph import Conv2d, LayerGraph
from bridge.graph.loihi_registers import LARGEST_WEIGHT
from bridge.nir_graph import from_nir
from bridge.passes.fold_pooling import fold_pooling
from bridge.records import SpikeRecord
from exporters.lava import bounds, compat
from exporters.lava.network import LavaNetwork
from exporters.lava.plan import Parts
from exporters.lava.run import Run

PACKAGES = {"lava.proc.dense.models": "lava-nc", "networkx": "networkx", "scipy": "scipy", "asteval": "asteval"}
INSTALL = (
    "pip install asteval networkx scikit-learn scipy && pip install --no-deps --ignore-requires-python lava-nc==0.10.0"
)
ONE_AT_A_TIME = threading.Lock()
"""Lava keeps its processes in global registers and forks: two runs in one program get in each other's way."""

LANES = (64, 128)
"""Images side by side in a large and in a small network; more take longer in proportion."""
SMALL = 400_000
"""Neurons of a network, times lanes, up to which Lava's cost for a step outweighs that of the neurons."""

# For the time limit, per step, on a slow machine: a Process, a pair of channels in Conv, a multiplication.
PROCESS_SECONDS, PAIR_SECONDS, PRODUCT_SECONDS = 1e-3, 3e-5, 5e-9
LEAST_LIMIT, GENEROSITY = 120.0, 20.0


@dataclass(frozen=True)
class Lava:
    """Lava (lava-nc) on the CPU in floating point: stock Dense and Conv, and our `IntegrateFire` between them.

    All images run through the network in one stream, each layer working on its own image; where branches of different
    depth meet, a `Delay` holds the shorter one back. A staged network takes an image every T steps, however long it
    takes for one: its neurons have two potentials. A grouped one takes an image at each step. `time_limit` is in
    seconds for one run of Lava, start-up included; by default it grows with the network, the images and the steps.

    >>> network.validate(x, 8, [Lava(time_limit=600)], images={"lava": 60})
    """

    time_limit: float | None = None
    name = "lava"

    def available(self) -> Availability:
        """Whether Lava can be imported with `exporters.lava.compat`'s fixes."""
        try:
            compat.apply()
        except Exception as error:
            reason = f"import lava failed: {type(error).__name__}: {error}"
            return Availability(usable=False, reason=reason, install=INSTALL)
        return probe(PACKAGES, INSTALL)

    @neutral()
    def export(self, graph: nir.NIRGraph) -> LavaNetwork:
        """The network of Lava Processes for `graph`. Raises `GraphError` for a layer that Lava cannot run."""
        return build_network(from_nir(graph))

    @neutral()
    def run(self, native: LavaNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """Run `native` on images `x` ``[B, *input]`` for `steps` steps each, in fresh Processes.

        Raises `InputError` if `x` does not fit and `BackendError`, with Lava's own traceback, if Lava fails or takes
        longer than the time limit. No process outlives the call.
        """
        x = check_input(native.graph.input.shape, x, steps, integer=native.graph.integer)
        return self._stream(native, x, steps, 1, "floating_pt", membranes)

    def _stream(
        self, native: LavaNetwork, x: NDArray[np.float32], steps: int, lanes: int, tag: str, membranes: bool
    ) -> SpikeRecord:
        """All images in one run of Lava, `lanes` of them side by side."""
        from exporters.lava.runtime import forget, quiet, run_to_end

        with ONE_AT_A_TIME:
            with quiet():
                run = Run(native, x, steps, lanes, membranes)
            limit = self.time_limit if self.time_limit is not None else _limit(native, run.steps, lanes)
            try:
                run_to_end(run.process, run.steps, limit, tag)
            finally:
                forget([*run.around, run.process, *run.process.procs.members])
        return run.record(self.name)


@dataclass(frozen=True)
class LavaFixed(Lava):
    """Lava (lava-nc) on the CPU in fixed point, bit for bit as Loihi's registers have it; whole-number networks only.

    Whether all numbers fit those registers is checked before anything runs (`exporters.lava.bounds`). A `SumPool2d` is
    folded into the affine layer behind it where that can be. Example: docs/loihi.md.

    * ``synapses``: ``"torch"``, our Processes, equal to Lava's own Dense and Conv and faster, or ``"stock"``, those.
    * ``neuron``: ``"integrate_fire"``, our Process, or ``"atrlif"``, Lava's own `ATRLIF`. That one has no periodic
      reset, so every image is a run of its own, its potential never falls, and residual joins still use our `Delay`.
    * ``inputs``: ``"currents"``, what the images give to the first neurons is computed on the host and injected as
      bias, or ``"graded"``, pixels enter as graded spikes, through synapses.
    * ``spikes``: ``"binary"``, or ``"graded"``, for grouped networks: each group of neurons is one that sends how many
      of it would fire, as Loihi 2's spikes carry a number. The record tells the spikes of the group.
    * ``lanes``: how many images run side by side, with our own Processes only; by default 64, or up to 128 in
      small networks.
    * ``time_limit``: as in `Lava`.
    """

    synapses: Literal["torch", "stock"] = "torch"
    neuron: Literal["integrate_fire", "atrlif"] = "integrate_fire"
    inputs: Literal["currents", "graded"] = "currents"
    spikes: Literal["binary", "graded"] = "binary"
    lanes: int | None = None
    name = "lava-fixed"

    def __post_init__(self) -> None:
        for option in ("synapses", "neuron", "inputs", "spikes"):
            known = get_args(get_type_hints(LavaFixed)[option])
            if getattr(self, option) not in known:
                raise BackendError(f"LavaFixed: {option} is one of {known}, got {getattr(self, option)!r}")
        if self.lanes is not None:
            positive(self.lanes, "LavaFixed: lanes")

    @neutral()
    def export(self, graph: nir.NIRGraph) -> LavaNetwork:
        """The network of Lava Processes for `graph`.

        Raises `GraphError`, naming the layer, if `graph` is not in whole numbers or does not fit Loihi's registers.
        """
        return build_network(from_nir(graph), self)

    @neutral()
    def run(self, native: LavaNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """As `Lava.run`. Raises `InputError`, too, if on these images a neuron would leave its register."""
        x = check_input(native.graph.input.shape, x, steps, integer=native.graph.integer)
        bounds.check_images(native, x, steps)
        if native.parts.neuron == "atrlif":
            images = (x[at : at + 1] for at in range(len(x)))
            return SpikeRecord.concatenate(
                [self._stream(native, image, steps, 1, "fixed_pt", membranes) for image in images]
            )
        return self._stream(native, x, steps, self.lanes or _lanes(native, len(x)), "fixed_pt", membranes)


def build_network(graph: LayerGraph, fixed: LavaFixed | None = None) -> LavaNetwork:
    """Lava's network for a layer graph, in floating point or as `fixed` says.

    Raises `BackendError` without Lava, `GraphError` for what it cannot run.
    """
    try:
        import_module("exporters.lava.hierarchy")
    except ImportError as error:
        raise BackendError(f"the Lava backend needs Lava ({error}): {INSTALL}") from error
    if fixed is None:
        return LavaNetwork(graph, Parts())
    parts = Parts(synapses=fixed.synapses, neuron=fixed.neuron, inputs=fixed.inputs, spikes=fixed.spikes, fixed=True)
    network = LavaNetwork(fold_pooling(graph, LARGEST_WEIGHT), parts)
    bounds.check_network(network)
    return network


def _lanes(network: LavaNetwork, images: int) -> int:
    """How many images to run side by side, as evenly as may be."""
    if network.parts.synapses == "stock":
        return 1
    rounds = -(-images // max(LANES[0], min(LANES[1], SMALL // network.graph.neurons)))
    return -(-images // rounds)


def _limit(network: LavaNetwork, steps: int, lanes: int) -> float:
    """Seconds that a run may take, generously: by the steps and by what one step costs."""
    seconds = 3 * len(network.graph) * PROCESS_SECONDS  # a layer, its sinks
    for layer in network.synapses.values():
        size = int(np.prod(network.graph.shapes[layer.name][1:]))  # 1 for a Linear's vector
        seconds += lanes * layer.weight.size * size * PRODUCT_SECONDS
        if isinstance(layer, Conv2d):
            seconds += layer.weight.shape[0] * layer.weight.shape[1] * PAIR_SECONDS
    return LEAST_LIMIT + GENEROSITY * steps * seconds
