"""The fast simulator: the spikes of the reference, computed layer by layer over several steps at once.

A converted network has no loops but its neurons' own potentials. So a layer can be taken through a block of steps, all
images and steps as rows of one batch, before the next layer starts; what the images alone decide is computed once. In
between lie only spikes, a byte each: what leads from them to the next neurons is computed for a few images at a time,
so that it stays in the processor's cache. `bridge.simulate.engine.kernels` chooses int8 or float32 arithmetic by layer.

Small networks do not go this way, but through `bridge.simulate.engine.events`, which follows single spikes.

One file, though long: the plan, the buffers and the run have each other's shapes, and are read together.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge.graph import Add, Affine, Input, IntegrateFire, Layer, LayerGraph, Scale, SpikeCount, spread
from bridge.graph.ranges import EXACT, LARGEST_PIXEL, ranges, small
from bridge.records import SpikeRecord
from bridge.simulate.engine.events import BLOCK, events
from bridge.simulate.engine.fused_loop import count_spikes, integrate_fire, native, too_large
from bridge.simulate.engine.kernels import Kernel, has_int8, kernel, on_device
from bridge.simulate.engine.simulation import Simulation
from bridge.simulate.images import parts_of
from bridge.simulate.ops import evaluate

NAME = "engine"
CACHE = 2**21
"""Bytes of drive that are computed at once: they stay near the processor, and calls are not too many."""
SPARE = 2**25
"""Bytes up to which buffers are kept for the next run."""
LOCK = threading.Lock()
MOST_EVENTS = 2**21
"""Neurons times images times steps up to which following spikes is quicker than int8 arithmetic."""
ALONE = 2**18
"""Likewise, up to which a thread is quicker alone than together with others."""
MEMORY = 2**28
"""Bytes that one run may take for spikes and potentials, roughly, whatever the number of images and steps."""

Watch = Callable[[str, int, int, Any, Any, Any, Any], None]
"""Told what each layer does, some images ``[B]`` and steps ``[S]`` at a time, by several threads: the layer's name, the
first image's number, how many steps came before, and of `integrate_fire` the drive, gain, skip and spikes."""


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
    vectors: tuple[Any, Any, Any]
    """One a neuron ``[N]``: how much each of those adds, level, threshold."""
    neurons: int
    width: int
    """Bytes of the widest row on the way."""
    weights: int
    """Bytes of all weights on the way."""


class Engine:
    """A spiking network made ready to run. What a run changes in it no other sees, so threads may share it."""

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
        levels = [layer.steps for layer in graph if isinstance(layer, SpikeCount)]
        self.levels = max(levels, default=0)
        """Of a counting network (`bridge.simulate.counting_form`), the largest count; else 0."""
        self.limits = dict(limits or dict.fromkeys(graph.spiking, float(EXACT) if graph.integer else float("inf")))
        bounds = ranges(graph) if graph.integer else None
        spikes_only: dict[str, bool] = {}
        self.kernels: dict[str, Kernel] = {}
        for layer in graph.layers[1:]:
            of_small = all(spikes_only.get(source, False) for source in layer.inputs)
            in_bytes = small(layer, of_small, bounds[layer.name] if bounds else None)
            spikes_only[layer.name] = in_bytes and self.levels <= LARGEST_PIXEL
            if self.device.type != "cpu":
                self.kernels[layer.name] = on_device(layer, self.device)
            elif not isinstance(layer, IntegrateFire):
                self.kernels[layer.name] = kernel(graph, layer, of_small=of_small, bounds=bounds)
        self._uses = Counter(source for layer in graph for source in layer.inputs)
        self._stored = {
            layer.name
            for layer in graph
            if isinstance(layer, Input | IntegrateFire) or self._uses[layer.name] != 1 or layer.name in graph.constant
        }
        stages = [self._stage(layer) for layer in graph.layers[1:] if layer.name in self._stored]
        self._once = [stage for stage in stages if stage.end.name in graph.constant]
        self.stages = [stage for stage in stages if stage.end.name not in graph.constant]
        self._last = {source: stage for stage in self.stages for source in (*stage.sources, stage.skip or "")}
        self._slots = self._assign_slots()
        self._native = native(self.device)
        self._quiet: dict[str, Tensor] = {}
        self._spare: list[Buffers] = []
        self.events = events(graph, self.limits) if self.device.type == "cpu" and not levels else None
        self._int8 = graph.integer and has_int8()
        self._neurons = graph.neurons

    def run(
        self,
        x: Tensor,
        steps: int,
        *,
        record: bool = False,
        patience: int | None = None,
        memory: int = MEMORY,
        watch: Watch | None = None,
    ) -> Simulation:
        """Run images `x` ``[B, *input]``, held constant, for `steps` steps from a fresh state.

        Args:
            x: float32 images.
            steps: T, at least 1.
            record: keep every spike, T · N / 8 bytes an image.
            patience: end an image once its largest output has been the same for so many steps.
            memory: bytes to keep to, roughly, beside the result.
            watch: told what each layer does; not with `patience`.

        Raises:
            InputError: a potential passes its limit.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        work = self._neurons * len(x) * (1 if patience else min(steps, BLOCK))
        by_events = None if watch else self.events
        if by_events and (by_events.bytes * threads > memory or (self._int8 and work > MOST_EVENTS)):
            by_events = None
        if by_events and work <= ALONE:
            threads = 1
        size = len(x) if by_events else max(1, memory // threads // self._bytes(steps, patience))
        parts = parts_of(x, size, threads)
        # A thread takes its images all the way, so that none waits for another; a single part has all threads.
        workers = workers_of(threads, os.getpid()) if threads > 1 and (by_events or len(parts) > 1) else None

        def simulate(part: Tensor, first: int) -> Simulation:
            if by_events is None:
                return self._run(part, steps, record, patience, watch, first)
            helpers = workers if len(parts) == 1 else None
            return by_events.run(
                part.numpy(), steps, record=record, patience=patience, helpers=helpers, threads=threads
            )

        starts = accumulate((len(part) for part in parts), initial=0)
        return _joined([*(workers.map if workers and len(parts) > 1 else map)(simulate, parts, starts)])

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
        vectors = [_per_neuron(values, shape, self.device) for values in (gain, level, threshold)]
        return _Stage(
            end=end,
            layers=layers,
            sources=tuple(dict.fromkeys(sources)),
            drive=drive,
            skip=skip,
            vectors=(native(self.device)(vectors[0]), native(self.device)(vectors[1]), native(self.device)(vectors[2])),
            neurons=len(vectors[1]),
            width=4 * max(widths),
            weights=4 * sum(layer.weight.size for layer in layers if isinstance(layer, Affine)),
        )

    def _assign_slots(self) -> dict[str, tuple[int, int]]:
        """Each spiking layer's buffer, a number and its N: shared if one layer is last heard before the other fires."""
        slots: dict[str, tuple[int, int]] = {}
        free: dict[int, list[int]] = {}
        for stage in self.stages:
            if isinstance(stage.end, IntegrateFire):
                waiting = free.setdefault(stage.neurons, [])
                number = waiting.pop() if waiting else len(set(slots.values()))
                slots[stage.end.name] = number, stage.neurons
            for source in dict.fromkeys((*stage.sources, stage.skip or "")):
                if source in slots and self._last[source] is stage:
                    number, neurons = slots[source]
                    free.setdefault(neurons, []).append(number)
        return slots

    def _bytes(self, steps: int, patience: int | None) -> int:
        """What one image takes, roughly: spikes and what else is stored, the widest drive, potentials."""
        block = 1 if patience else min(steps, BLOCK)
        widest = max(stage.width for stage in (*self.stages, *self._once))
        spikes = sum(neurons for _, neurons in set(self._slots.values()))
        others = sum(4 * stage.neurons for stage in self.stages if not isinstance(stage.end, IntegrateFire))
        return block * (widest + spikes + others) + 4 * (self.graph.neurons if steps > block else 0)

    @torch.inference_mode()
    def _run(
        self, x: Tensor, steps: int, record: bool, patience: int | None, watch: Watch | None = None, first: int = 0
    ) -> Simulation:
        values: dict[str, Tensor] = {self.graph.input.name: x.to(self.device)}
        with no_tf32(self.device):
            for stage in self._once:
                values[stage.end.name] = self._drive(stage, values, {}, 0, len(x), 1)
            block = 1 if patience else min(steps, BLOCK)
            run = self._begin(len(x), steps, record, values)
            run.watch, run.first = watch, first
            buffers = self._take(len(x), block, kept=steps > block)
            for start in range(0, steps, block):
                self._advance(run, buffers, min(block, steps - start))
                if patience and start + block < steps and (stay := run.end_early(patience)) is not None:
                    if len(stay) == 0:
                        break
                    buffers = self._take(len(stay), block, kept=True, before=buffers, stay=stay)
            self._give(buffers)
        return run.result()

    def _begin(self, images: int, steps: int, record: bool, values: dict[str, Tensor]) -> Run:
        return Run(self.graph, images, steps, record, values)

    def _take(
        self, images: int, steps: int, *, kept: bool, before: Buffers | None = None, stay: Tensor | None = None
    ) -> Buffers:
        """Buffers that are spare or new; with the potentials of the images that `stay` from `before`, or zeros."""
        with LOCK:
            fitting = [one for one in self._spare if one.of == (images, steps, kept)]
            if fitting:
                self._spare.remove(fitting[0])
        buffers = fitting[0] if fitting else Buffers(self, images, steps, kept)
        for name, potential in buffers.potentials.items() if kept else ():
            if before is None or stay is None:
                potential.zero_()
            else:
                potential.copy_(before.potentials[name][stay.to(potential.device)])
        return buffers

    def _give(self, buffers: Buffers) -> None:
        """Keep small `buffers` for the next run: to allocate them takes as long as a small network's step."""
        if buffers.size <= SPARE:
            with LOCK:
                self._spare = [*self._spare[-3:], buffers]

    def _advance(self, run: Run, buffers: Buffers, steps: int) -> None:
        """Take all layers through the next `steps` steps."""
        if steps < buffers.of[1]:  # the last block is shorter
            buffers = Buffers(self, buffers.of[0], steps, kept=True, potentials=buffers.potentials)
        values, counts = dict(run.constant), dict[str, Any]()
        images = len(run.active)
        for stage in self.stages:
            at_once = max(1, max(CACHE, 2 * stage.weights) // (steps * stage.width))
            parts = [(at, min(images, at + at_once)) for at in range(0, images, at_once)]
            name = stage.end.name
            if not isinstance(stage.end, IntegrateFire):
                found = [self._drive(stage, values, counts, *part, steps) for part in parts]
                values[name] = found[0] if len(found) == 1 else torch.cat(found)
                continue
            spikes, potential, fired = buffers.of_layer[name]
            skip = buffers.of_layer[stage.skip][0] if stage.skip else None
            if not buffers.of[2] and not isinstance(stage.end, SpikeCount):
                buffers.potentials[name].zero_()
            beyond, limit = 0, self.limits[name]
            for start, stop in parts:
                drive = self._native(_flat(self._drive(stage, values, counts, start, stop, steps), stop - start))
                if isinstance(stage.end, SpikeCount):
                    part = slice(start, stop)
                    other = None if skip is None else skip[part]
                    count_spikes(drive, other, stage.vectors, stage.end.steps, spikes[part], fired[part])
                    continue
                part = slice(start, stop)
                other = None if skip is None else skip[part]
                beyond += integrate_fire(drive, other, potential[part], stage.vectors, spikes[part], fired[part], limit)
                if run.watch:
                    gain = stage.vectors[0]
                    run.watch(name, run.first + start, run.done, drive, gain, other, spikes[part])
            if beyond:
                raise too_large(name, beyond, limit, run.done + steps)
            values[name], counts[name] = buffers.rows[name], fired
            if run.packed is not None:
                run.keep(name, values[name], steps)
        run.step(values[self.graph.output.name], buffers.fired, steps)

    def _drive(
        self,
        stage: _Stage,
        values: Mapping[str, Tensor],
        counts: Mapping[str, Any],
        start: int,
        stop: int,
        steps: int,
    ) -> Tensor:
        """What reaches the end of `stage` for images `start` to `stop`: rows, an image and step each, or an image."""
        constant = self.graph.constant
        if stage.drive in constant and stage.drive != stage.end.name:
            return values[stage.drive][start:stop]
        if len(stage.layers) == 1 == len(stage.sources) and stage.sources[0] in counts:  # the usual case
            (source,) = stage.sources
            if not counts[source][start:stop].any():
                return self._silent(stage, (stop - start) * steps)
            return self.kernels[stage.drive](values[source][start * steps : stop * steps])
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
            local[layer.name] = self.kernels[layer.name](*(local[source] for source in layer.inputs))
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


class Buffers:
    """What a block of steps writes, for so many images and steps; `kept`: the potentials outlast the block."""

    def __init__(
        self, engine: Engine, images: int, steps: int, kept: bool, potentials: dict[str, Tensor] | None = None
    ) -> None:
        device, graph, slots = engine.device, engine.graph, engine._slots
        self.of = images, steps, kept
        kind = torch.int32 if engine.levels > 255 else torch.uint8
        shared = {
            slot: torch.empty((images, steps, slot[1]), dtype=kind, device=device) for slot in set(slots.values())
        }
        if potentials is None and kept:
            potentials = {name: torch.empty((images, slot[1]), device=device) for name, slot in slots.items()}
        elif potentials is None:
            scratch = torch.empty(images * max(n for _, n in slots.values()), device=device)
            potentials = {n: scratch[: images * slot[1]].reshape(images, -1) for n, slot in slots.items()}
        self.potentials = potentials
        fired = torch.empty((len(slots), images, engine.levels or steps), dtype=torch.int64, device=device)
        self.fired = fired
        native = engine._native
        self.of_layer = {
            name: (native(shared[slot]), native(potentials[name]), native(fired[number]))
            for number, (name, slot) in enumerate(slots.items())
        }
        self.rows = {name: _rows(shared[slot], graph.shapes[name]) for name, slot in slots.items()}
        self.size = sum(one.numel() for one in shared.values()) + 4 * sum(one.numel() for one in potentials.values())


class Run:
    """How far a run has come, and what has come of it."""

    def __init__(self, graph: LayerGraph, images: int, steps: int, record: bool, constant: dict[str, Tensor]) -> None:
        self.graph = graph
        self.constant = constant
        self.watch: Watch | None = None
        self.first = 0
        self.active = np.arange(images)
        self.done = 0
        self.packed: dict[str, list[NDArray[np.uint8]]] | None = {n: [] for n in graph.spiking} if record else None
        self._spikes = np.zeros((len(graph.spiking), steps, images), np.int64)
        self._taken = np.zeros(images, np.int64)
        self._readouts: list[NDArray[np.float32]] = []
        shape = graph.shapes[graph.output.name]
        self._outputs = np.zeros((steps, images, *shape), np.float32)
        self._sum = np.zeros((images, *shape), np.float64)
        self._streak = np.zeros(images, np.int64)
        self._leader = np.full(images, -1)

    def keep(self, name: str, rows: Tensor, steps: int) -> None:
        """Keep the spikes of a layer, an image and step a row."""
        assert self.packed is not None
        bits = np.packbits(rows.cpu().contiguous().reshape(len(rows) // steps, steps, -1).numpy(), axis=-1)
        self.packed[name].append(bits.transpose(1, 0, 2))

    def step(self, readout: Tensor, fired: Tensor, steps: int) -> None:
        """Take in the rows of the last layer, and all layers' numbers of spikes ``[L, images, steps]``."""
        images, everyone = len(self.active), len(self.active) == len(self._taken)
        who = slice(None) if everyone else self.active
        values = readout.float().cpu().reshape(images, steps, *readout.shape[1:]).transpose(0, 1).numpy()
        self._spikes[:, self.done : self.done + steps, who] = fired.cpu().numpy().transpose(0, 2, 1)
        if self.packed is not None:
            self._readouts.append(values)
        for value in values:
            self._sum += value
            if not everyone:
                self._outputs[self.done] = self._outputs[self.done - 1]  # of those that have ended
            self.done += 1
            self._outputs[self.done - 1, who] = self._sum / self.done
        self._taken[who] = self.done

    def end_early(self, patience: int) -> Tensor | None:
        """Let go of the images whose largest output has been the same for `patience` steps: which stay, if not all."""
        leader = self._sum.reshape(len(self.active), -1).argmax(axis=1)
        self._streak = np.where(leader == self._leader, self._streak + 1, 1)
        self._leader = leader
        stay = np.flatnonzero(self._streak < patience)
        if len(stay) == len(self.active):
            return None
        self.active, self._streak, self._leader = self.active[stay], self._streak[stay], self._leader[stay]
        self._sum = self._sum[stay]
        index = torch.from_numpy(stay)
        self.constant = {name: values[index.to(values.device)] for name, values in self.constant.items()}
        return index

    def result(self) -> Simulation:
        """What came of it."""
        self._outputs[self.done :] = self._outputs[self.done - 1]
        record = None
        if self.packed is not None:
            packed = {name: np.concatenate(blocks) for name, blocks in self.packed.items()}
            shapes = {name: self.graph.shapes[name] for name in packed}
            record = SpikeRecord(NAME, shapes, packed, np.concatenate(self._readouts))
        return Simulation(self._outputs, dict(zip(self.graph.spiking, self._spikes, strict=True)), self._taken, record)


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
    """One value per channel or position as one per neuron ``[N]``, in the order in which `shape` is stored."""
    full = spread(values, shape)
    stored = np.moveaxis(full, 0, -1) if len(shape) == 3 else full
    return torch.tensor(stored.ravel(), dtype=torch.float32, device=device)


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
def workers_of(threads: int, process: int) -> ThreadPoolExecutor:
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


def no_tf32(device: torch.device) -> AbstractContextManager[None]:
    """No TF32, which GPUs otherwise use for convolutions."""
    return torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
