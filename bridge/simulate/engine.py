"""The fast simulator: the spikes of the reference, computed layer by layer over several steps at once.

A converted network has no loops but its neurons' own potentials. So a layer can be taken through a block of steps, all
images and steps as rows of one batch, before the next layer starts; what the images alone decide is computed once. In
between lie only spikes, a byte each: what leads from them to the next neurons is computed for a few images at a time,
so that it stays in the processor's cache. `bridge.simulate.kernels` chooses int8 or float32 arithmetic by layer.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.errors import InputError
from bridge.graph import Add, Affine, Input, IntegrateFire, Layer, LayerGraph, Scale
from bridge.ranges import EXACT, ranges
from bridge.records import SpikeRecord
from bridge.simulate.fire import integrate_fire
from bridge.simulate.kernels import Kernel, kernel, on_device, small
from bridge.simulate.ops import evaluate
from bridge.simulate.simulation import Simulation

NAME = "engine"
BLOCK = 8
"""Time steps taken at once: enough to use weights well, few enough that an image's rows stay in the cache."""
CACHE = 2**20
"""Bytes of drive that are computed at once, about what one core's second cache holds."""
MEMORY = 2**28
"""Bytes that one run may take for spikes and potentials, roughly, whatever the number of images and steps."""


@dataclass(frozen=True, eq=False)
class _Stage:
    """From stored values to the next: layers without state, and the neurons at their end, if there are any."""

    end: Layer
    layers: tuple[Layer, ...]
    sources: tuple[str, ...]
    """Stored values that they read."""
    drive: str
    """The one of these, or of the layers, that drives the neurons, or is the end itself."""
    skip: str | None
    """Spikes that are added to the drive inside the neurons' loop."""
    vectors: tuple[Tensor, Tensor, Tensor]
    """One a neuron ``[N]``: how much each of those adds, level, threshold."""
    width: int
    """Bytes of the widest row on the way."""
    weights: int
    """Bytes of all weights on the way."""


class Engine:
    """A spiking network made ready to run. A run changes nothing in it, so threads may share it."""

    def __init__(
        self, graph: LayerGraph, device: str | torch.device = "cpu", limits: Mapping[str, float] | None = None
    ) -> None:
        """Plan and pack.

        Args:
            graph: the spiking network.
            device: where it runs. Elsewhere than on the processor all is float32.
            limits: by spiking layer, the size that a potential must not pass. Default: in a whole-number network
                2^24, up to which float32 is exact.
        """
        self.graph = graph
        self.device = torch.device(device)
        self.limits = dict(limits or dict.fromkeys(graph.spiking, float(EXACT) if graph.integer else float("inf")))
        bounds = ranges(graph) if graph.integer else None
        spikes_only: dict[str, bool] = {}
        self._kernels: dict[str, Kernel] = {}
        for layer in graph.layers[1:]:
            of_small = all(spikes_only.get(source, False) for source in layer.inputs)
            spikes_only[layer.name] = small(layer, of_small, bounds[layer.name] if bounds else None)
            if self.device.type != "cpu":
                self._kernels[layer.name] = on_device(layer, self.device)
            elif not isinstance(layer, IntegrateFire):
                self._kernels[layer.name] = kernel(graph, layer, of_small=of_small, bounds=bounds)
        self._uses = Counter(source for layer in graph for source in layer.inputs)
        self._stored = {
            layer.name
            for layer in graph
            if isinstance(layer, Input | IntegrateFire) or self._uses[layer.name] != 1 or layer.name in graph.constant
        }
        stages = [self._stage(layer) for layer in graph.layers[1:] if layer.name in self._stored]
        self._once = [stage for stage in stages if stage.end.name in graph.constant]
        self._stages = [stage for stage in stages if stage.end.name not in graph.constant]
        self._last = {source: stage for stage in self._stages for source in (*stage.sources, stage.skip or "")}
        self._quiet: dict[str, Tensor] = {}

    def run(
        self, x: Tensor, steps: int, *, record: bool = False, patience: int | None = None, memory: int = MEMORY
    ) -> Simulation:
        """Run images `x` ``[B, *input]``, held constant, for `steps` steps from a fresh state.

        Args:
            x: float32 images.
            steps: T, at least 1.
            record: keep every spike, T · N / 8 bytes an image.
            patience: end an image once its largest output has been the same for so many steps.
            memory: bytes to keep to, roughly, beside the result.

        Raises:
            InputError: a potential passes its limit.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        size = max(1, memory // threads // self._bytes(steps, patience))
        if len(x) >= threads:
            size = min(size, -(-len(x) // threads))
        parts = [x[at : at + size] for at in range(0, len(x), size)]

        def simulate(part: Tensor) -> Simulation:
            return self._run(part, steps, record, patience)

        # A thread takes its images all the way, so that none waits for another; a single part has all threads.
        together = threads > 1 and len(parts) > 1
        return _joined([*(_workers(threads, os.getpid()).map if together else map)(simulate, parts)])

    def _stage(self, end: Layer) -> _Stage:
        graph = self.graph
        drive, skip, gain = end.name, None, np.zeros(1, np.float32)
        if isinstance(end, IntegrateFire):
            drive = end.inputs[0]
            join = graph[drive]
            if isinstance(join, Add) and drive not in self._stored:
                for one, other in (join.inputs, join.inputs[::-1]):
                    scale = graph[other]
                    if isinstance(scale, Scale) and other not in self._stored and scale.inputs[0] in graph.spiking:
                        drive, skip, gain = one, scale.inputs[0], scale.scale
                        break
        found: list[str] = []
        sources: list[str] = []
        waiting = [drive]
        while waiting:
            name = waiting.pop()
            if name in self._stored and name != end.name:
                sources.append(name)
            elif name not in found:
                found.append(name)
                waiting += graph[name].inputs
        layers = tuple(layer for layer in graph if layer.name in found)
        shape = graph.shapes[end.name]
        level = end.level if isinstance(end, IntegrateFire) else gain
        threshold = end.threshold if isinstance(end, IntegrateFire) else gain
        widths = [math.prod(graph.shapes[name]) for name in (*found, *sources)]
        return _Stage(
            end=end,
            layers=layers,
            sources=tuple(dict.fromkeys(sources)),
            drive=drive,
            skip=skip,
            vectors=(
                _per_neuron(gain, shape, self.device),
                _per_neuron(level, shape, self.device),
                _per_neuron(threshold, shape, self.device),
            ),
            width=4 * max(widths),
            weights=4 * sum(layer.weight.size for layer in layers if isinstance(layer, Affine)),
        )

    def _bytes(self, steps: int, patience: int | None) -> int:
        """What one image takes, roughly: spikes and drive of the widest layers; all potentials if they are kept."""
        block = 1 if patience else min(steps, BLOCK)
        widest = max(stage.width for stage in (*self._stages, *self._once))
        return 2 * block * widest + (4 * self.graph.neurons if steps > block else 0)

    @torch.inference_mode()
    def _run(self, x: Tensor, steps: int, record: bool, patience: int | None) -> Simulation:
        values: dict[str, Tensor] = {self.graph.input.name: x.to(self.device)}
        with _exact(self.device):
            for stage in self._once:
                values[stage.end.name] = self._drive(stage, values, {}, 0, len(x), 1)
            block = 1 if patience else min(steps, BLOCK)
            run = _Run(self.graph, len(x), steps, record, values, kept=steps > block)
            for start in range(0, steps, block):
                self._advance(run, min(block, steps - start))
                if patience:
                    run.end_early(patience)
                    if len(run.active) == 0:
                        break
        return run.result()

    def _advance(self, run: _Run, steps: int) -> None:
        """Take all layers through the next `steps` steps."""
        values, counts = dict(run.constant), dict[str, NDArray[np.int64]]()
        images = len(run.active)
        for stage in self._stages:
            at_once = max(1, max(CACHE, 2 * stage.weights) // (steps * stage.width))
            parts = [(at, min(images, at + at_once)) for at in range(0, images, at_once)]
            name, neurons = stage.end.name, stage.vectors[0].numel()
            if isinstance(stage.end, IntegrateFire):
                spikes = torch.empty((images, steps, neurons), dtype=torch.uint8, device=self.device)
                fired = torch.empty((images, steps), dtype=torch.int64, device=self.device)
                beyond = 0
                skip = None if stage.skip is None else _flat(values[stage.skip], images)
                for start, stop in parts:
                    drive = _flat(self._drive(stage, values, counts, start, stop, steps), stop - start)
                    part = slice(start, stop)
                    beyond += integrate_fire(
                        drive,
                        None if skip is None else skip[part],
                        run.potential(name, neurons, part, self.device),
                        stage.vectors,
                        spikes[part],
                        fired[part],
                        self.limits[name],
                    )
                if beyond:
                    raise InputError(
                        f"layer {name!r}: {beyond} potentials pass ±{self.limits[name]:.0f} by step "
                        f"{run.done + steps}, beyond which the arithmetic is not exact. Run fewer steps, or quantize "
                        "with fewer weight bits"
                    )
                values[name] = _rows(spikes, self.graph.shapes[name])
                counts[name] = fired.cpu().numpy()
                run.note(name, values[name], counts[name])
            else:
                found = [self._drive(stage, values, counts, *part, steps) for part in parts]
                values[name] = found[0] if len(found) == 1 else torch.cat(found)
            for source in (*stage.sources, stage.skip):
                if source is not None and self._last[source] is stage and source not in run.constant:
                    values.pop(source, None)
        run.step(values[self.graph.output.name], steps)

    def _drive(
        self,
        stage: _Stage,
        values: Mapping[str, Tensor],
        counts: Mapping[str, NDArray[np.int64]],
        start: int,
        stop: int,
        steps: int,
    ) -> Tensor:
        """What reaches the end of `stage` for images `start` to `stop`: rows, an image and step each, or an image."""
        constant = self.graph.constant
        if stage.drive in constant and stage.drive != stage.end.name:
            return values[stage.drive][start:stop]
        if stage.layers and all(source in counts and not counts[source][start:stop].any() for source in stage.sources):
            return self._silent(stage, (stop - start) * steps)
        local: dict[str, Tensor] = {}
        for source in stage.sources:
            if source not in constant:
                local[source] = values[source][start * steps : stop * steps]
            else:  # beside spikes: as many rows as they have
                rows = values[source][start:stop]
                local[source] = rows if stage.end.name in constant else rows.repeat_interleave(steps, dim=0)
        for layer in stage.layers:
            local[layer.name] = self._kernels[layer.name](*(local[source] for source in layer.inputs))
        return local[stage.drive]

    def _silent(self, stage: _Stage, rows: int) -> Tensor:
        """What reaches the end of `stage` if no spike goes in: computed once."""
        name = stage.end.name
        if name not in self._quiet:
            shapes = {source: (1, *self.graph.shapes[source]) for source in stage.sources}
            zeros = {source: torch.zeros(shape, device=self.device) for source, shape in shapes.items()}
            for layer in stage.layers:
                zeros[layer.name] = evaluate(layer, *(zeros[source] for source in layer.inputs))
            self._quiet[name] = zeros[stage.drive]
        quiet = self._quiet[name]
        return quiet.expand(rows, *quiet.shape[1:])


class _Run:
    """The state of one run, and what has come of it so far."""

    def __init__(
        self,
        graph: LayerGraph,
        images: int,
        steps: int,
        record: bool,
        constant: dict[str, Tensor],
        *,
        kept: bool,
    ) -> None:
        self.graph = graph
        self.constant = constant
        self.active = np.arange(images)
        self.done = 0
        self.spikes = {name: np.zeros((steps, images), np.int64) for name in graph.spiking}
        self.taken = np.zeros(images, np.int64)
        self.outputs: NDArray[np.float32] | None = None
        self._steps, self._kept = steps, kept
        self._potentials: dict[str, Tensor] = {}
        self._packed: dict[str, list[NDArray[np.uint8]]] | None = {n: [] for n in graph.spiking} if record else None
        self._readouts: list[NDArray[np.float32]] = []
        self._streak = np.zeros(images, np.int64)
        self._leader = np.full(images, -1)
        self._sum: NDArray[np.float64] | None = None

    def potential(self, name: str, neurons: int, part: slice, device: torch.device) -> Tensor:
        """The potentials ``[images, N]`` of a layer, kept from one block of steps to the next if there is one."""
        if not self._kept:
            return torch.zeros((part.stop - part.start, neurons), device=device)
        if name not in self._potentials:
            self._potentials[name] = torch.zeros((len(self.active), neurons), device=device)
        return self._potentials[name][part]

    def note(self, name: str, rows: Tensor, counts: NDArray[np.int64]) -> None:
        """Take in the spikes of a layer, an image and step a row, and their numbers ``[images, steps]``."""
        images, steps = counts.shape
        self.spikes[name][self.done : self.done + steps, self.active] = counts.T
        if self._packed is not None:
            bits = np.packbits(rows.cpu().contiguous().reshape(images, steps, -1).numpy(), axis=-1)
            self._packed[name].append(bits.transpose(1, 0, 2))

    def step(self, readout: Tensor, steps: int) -> None:
        """Take in the rows of the last layer."""
        images = len(self.active)
        values = readout.float().cpu().reshape(images, steps, *readout.shape[1:]).transpose(0, 1).numpy()
        if self._packed is not None:
            self._readouts.append(values)
        if self.outputs is None:
            self.outputs = np.zeros((self._steps, images, *values.shape[2:]), np.float32)
            self._sum = np.zeros(values.shape[1:], np.float64)
        assert self._sum is not None
        for value in values:
            self._sum += value
            self.done += 1
            if len(self.active) < self.outputs.shape[1]:
                self.outputs[self.done - 1] = self.outputs[self.done - 2]  # of those that have ended
            self.outputs[self.done - 1, self.active] = (self._sum / self.done).astype(np.float32)
        self.taken[self.active] = self.done

    def end_early(self, patience: int) -> None:
        """Let go of the images whose largest output has been the same for `patience` steps."""
        assert self.outputs is not None
        assert self._sum is not None
        leader = self._sum.reshape(len(self.active), -1).argmax(axis=1)
        self._streak = np.where(leader == self._leader, self._streak + 1, 1)
        self._leader = leader
        stay = self._streak < patience
        if self.done < self._steps and not stay.all():
            self.active, self._streak, self._leader = self.active[stay], self._streak[stay], self._leader[stay]
            self._sum = self._sum[stay]
            index = torch.from_numpy(np.flatnonzero(stay))
            for held in (self._potentials, self.constant):
                for name, values in held.items():
                    held[name] = values[index.to(values.device)]

    def result(self) -> Simulation:
        """What came of it."""
        assert self.outputs is not None
        self.outputs[self.done :] = self.outputs[self.done - 1]
        record = None
        if self._packed is not None:
            packed = {name: np.concatenate(blocks) for name, blocks in self._packed.items()}
            shapes = {name: self.graph.shapes[name] for name in packed}
            record = SpikeRecord(NAME, shapes, packed, np.concatenate(self._readouts))
        return Simulation(self.outputs, self.spikes, self.taken, record)


def _joined(parts: Sequence[Simulation]) -> Simulation:
    if len(parts) == 1:
        return parts[0]
    records = [part.record for part in parts if part.record is not None]
    return Simulation(
        outputs=np.concatenate([part.outputs for part in parts], axis=1),
        spikes={name: np.concatenate([part.spikes[name] for part in parts], axis=1) for name in parts[0].spikes},
        steps=np.concatenate([part.steps for part in parts]),
        record=SpikeRecord.concatenate(records) if records else None,
    )


def _per_neuron(values: NDArray[np.float32], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """One value a channel as one a neuron ``[N]``, in the order in which a layer of `shape` is stored."""
    channels = torch.tensor(np.broadcast_to(values, shape[:1]), dtype=torch.float32, device=device)
    places = math.prod(shape[1:])
    return channels.repeat(places) if len(shape) == 3 else channels.repeat_interleave(places)


def _flat(rows: Tensor, images: int) -> Tensor:
    """Rows ``[images · S, *shape]`` as ``[images, S, N]`` in the order in which they are stored."""
    if rows.dim() == 4:
        rows = rows.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return rows.reshape(images, len(rows) // images, -1).contiguous()


def _rows(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The opposite: ``[images, S, N]`` as rows."""
    if len(shape) == 3:
        channels, height, width = shape
        return flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return flat.reshape(-1, *shape)


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that each compute on one processor, for this process: a fork has none of its parent's."""
    pool, ready = ThreadPoolExecutor(threads, thread_name_prefix="engine"), threading.Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(threads):
        pool.submit(begin)
    ready.wait()
    torch.set_num_threads(threads)  # what they set for themselves would also hold for threads yet to come
    return pool


def _exact(device: torch.device) -> AbstractContextManager[None]:
    """No TF32, which GPUs otherwise use for convolutions."""
    return torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
