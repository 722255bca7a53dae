"""The fast simulator for small networks: from one neuron's spike to the next layer's potentials, without torch.

What torch spends on calling an operator, about 0.1 ms a convolution, is many times what a small network's arithmetic
takes. So here one compiled function takes a whole network through all its steps (`events_loop`). It
follows spikes: a layer's output is the sum of the rows of its weights whose input spiked, and silence costs nothing.

Every layer without state is a convolution there: a linear layer of one as large as its input, sums of windows, scales
and joins of a depthwise one with ones.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.graph import (
    Add,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Input,
    IntegrateFire,
    Layer,
    LayerGraph,
    Linear,
    Scale,
    SumPool2d,
)
from bridge.records import SpikeRecord
from bridge.simulate.engine.fused_loop import too_large
from bridge.simulate.engine.simulation import Simulation

BLOCK = 8
"""Time steps taken at once: enough to use weights well, few enough that an image's rows stay in the cache."""
MOST_WEIGHTS = 2**20
"""More than the second cache holds: then it pays to use each for many images at once."""
TEAM = threading.Lock()
"""Held by the one call whose threads wait for each other."""


class UnsupportedError(Exception):
    """The network has a layer that this simulator has no form of."""


@dataclass(frozen=True, eq=False)
class _Convolution:
    """What leads from one stored map to a stage: weights ``[kernel rows, kernel columns, C, outputs a group]``."""

    source: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """``(C, H, W)`` of a layer's shape: ``(C,)``, ``(C, L)`` or ``(C, H, W)``."""
    if len(shape) > 3:
        raise UnsupportedError
    channels, *places = shape
    height, width = (1, *places) if len(places) == 1 else places or (1, 1)
    return channels, height, width


def _convolution(layer: Layer, source: str, before: tuple[int, ...], flattened: bool) -> _Convolution:
    """The layer, which hears the stored map `source` of shape `before`, as a convolution."""
    channels, height, width = map_shape(before)
    if isinstance(layer, Linear):
        if not flattened and len(before) > 1:
            raise UnsupportedError
        kernel = layer.weight.reshape(-1, channels, height, width)
        return _Convolution(source, _rows(kernel, 1), layer.bias)
    if isinstance(layer, Conv2d):
        rows = _rows(layer.weight, layer.groups)
        return _Convolution(source, rows, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, Conv1d):
        rows = _rows(layer.weight[:, :, None], layer.groups)
        stride, padding, dilation = (1, layer.stride), (0, layer.padding), (1, layer.dilation)
        return _Convolution(source, rows, layer.bias, stride, padding, dilation, layer.groups)
    if isinstance(layer, Scale) and not layer.per_position:
        return _depthwise(source, np.broadcast_to(layer.scale, channels).reshape(1, 1, -1, 1))
    if isinstance(layer, AvgPool2d):
        value = 1.0 if isinstance(layer, SumPool2d) else 1 / math.prod(layer.kernel)
        return _depthwise(source, np.full((*layer.kernel, channels, 1), value), layer.stride, layer.padding)
    raise UnsupportedError


def _rows(weight: NDArray[np.floating], groups: int) -> NDArray[np.float32]:
    """``[O, C / groups, kernel rows, kernel columns]`` as ``[kernel rows, kernel columns, C, O / groups]``."""
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(3, 4, 0, 2, 1)
    return parts.reshape(*weight.shape[2:], -1, len(weight) // groups).astype(np.float32)


def _depthwise(
    source: str, weights: NDArray[np.floating], stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> _Convolution:
    channels = weights.shape[2]
    bias = np.zeros(channels, np.float32)
    return _Convolution(source, weights.astype(np.float32), bias, stride, padding, groups=channels)


class _Plan:
    """Which layers' values are stored, and what convolutions lead to each of them."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.uses = Counter(source for layer in graph for source in layer.inputs)
        self.readers = {source: layer for layer in graph for source in layer.inputs}
        if not graph.spiking or isinstance(graph.output, IntegrateFire | Flatten):
            raise UnsupportedError
        self.stored = {layer.name for layer in graph if self._is_stored(layer)}
        self.leading: dict[str, list[_Convolution]] = {}
        for layer in graph.layers[1:]:
            if layer.name in self.stored:
                start = self.graph[layer.inputs[0]] if isinstance(layer, IntegrateFire) else layer
                shape = map_shape(graph.shapes[layer.name])
                self.leading[layer.name] = self._expand(start, shape, whole=start is layer)

    def _is_stored(self, layer: Layer) -> bool:
        if isinstance(layer, Input | IntegrateFire) or layer is self.graph.output:
            return True
        if isinstance(layer, Flatten):
            return False
        return self.uses[layer.name] != 1 or not isinstance(self.readers[layer.name], Add | IntegrateFire)

    def _expand(self, layer: Layer, shape: tuple[int, int, int], *, whole: bool = False) -> list[_Convolution]:
        """The convolutions whose sum is `layer`, of that shape; `whole`: also if its values are stored."""
        if isinstance(layer, Add) and (whole or layer.name not in self.stored):
            return [one for source in layer.inputs for one in self._expand(self.graph[source], shape)]
        if layer.name in self.stored and not whole:
            if map_shape(self.graph.shapes[layer.name]) != shape:
                raise UnsupportedError
            return [_depthwise(layer.name, np.ones((1, 1, shape[0], 1)))]
        if isinstance(layer, Flatten):
            raise UnsupportedError
        source, flattened = self.graph[layer.inputs[0]], False
        while isinstance(source, Flatten):
            source, flattened = self.graph[source.inputs[0]], True
        if flattened and not isinstance(layer, Linear):
            raise UnsupportedError
        return [_convolution(layer, source.name, self.graph.shapes[source.name], flattened)]


def events(graph: LayerGraph, limits: Mapping[str, float]) -> Events | None:
    """`Events` of the network, where there is numba and they pay; `limits` are those of `engine.Engine`."""
    if sum(layer.weight.size for layer in graph if isinstance(layer, Affine)) > MOST_WEIGHTS:
        return None
    try:
        return Events(graph, limits)
    except (ImportError, UnsupportedError):
        return None


class Events:
    """A spiking network made ready to run; threads may share it."""

    def __init__(self, graph: LayerGraph, limits: Mapping[str, float]) -> None:
        """Number all that is stored, and pack all weights into one array.

        Raises `UnsupportedError` for a network with a layer that is no convolution here, `ImportError` without numba.
        """
        from bridge.simulate.engine import events_loop as loop

        plan = _Plan(graph)
        names = [layer.name for layer in graph if layer.name in plan.stored]
        numbers = {name: number for number, name in enumerate(names)}
        self._loop = loop
        self._graph = graph
        self._spiking, self._output = graph.spiking, graph.shapes[graph.output.name]
        self._stages = np.zeros((len(names), len(loop.STAGE)), np.int64)
        self._limits = np.array([limits[name] for name in graph.spiking], np.float32)
        connections: list[list[int]] = []
        weights: list[NDArray[np.float32]] = []
        vectors: list[NDArray[np.float32]] = []
        packed = codes = places = potentials = at = widest = 0
        for stage, name in zip(self._stages, names, strict=True):
            layer, leading = graph[name], plan.leading.get(name, [])
            neurons = isinstance(layer, IntegrateFire)
            channels, height, width = map_shape(graph.shapes[name])
            padded = -(-channels // loop.LANES) * loop.LANES
            line = width * channels + loop.LANES
            sources = [self._stages[numbers[one.source]] for one in leading]
            stage[:] = (
                loop.NEURONS if neurons else loop.VALUES,
                channels,
                height,
                width,
                all(source[loop.STEADY] and source[loop.KIND] == loop.VALUES for source in sources),
                len(connections),
                len(connections) + len(leading),
                at,
                codes,
                line,
                places,
                potentials,
                graph.spiking.index(name) if neurons else 0,
                padded,
            )
            vectors.append(_vectors(layer, leading, channels, padded))
            for one in leading:
                rows = one.weights if one.groups > 1 else _padded(one.weights, padded)
                valued = not isinstance(graph[one.source], IntegrateFire)
                connections.append(
                    [numbers[one.source], *rows.shape[:2], *one.stride, *one.padding, *one.dilation, one.groups, packed,
                     valued, rows.shape[3]]
                )  # fmt: skip
                weights.append(rows.ravel())
                packed += rows.size
            codes += BLOCK * height * line
            places += BLOCK * height * (width + 1)
            potentials += height * width * padded if neurons else 0
            at += padded
            widest = max(widest, width * padded)
        self._stages[-1, loop.KIND] = loop.OUTPUT
        self._connections = np.array(connections, np.int64)
        self._weights = np.concatenate(weights)
        self._vectors = tuple(map(np.ascontiguousarray, np.concatenate(vectors, axis=1)))
        self._buffers = ((codes, np.int32), (codes, np.float32), (places, np.int32), (potentials, np.float32),
                         (2 * widest, np.float32))  # fmt: skip
        self._bytes_of_spikes = np.array([-(-math.prod(graph.shapes[name]) // 8) for name in graph.spiking], np.int64)
        self._nowhere = np.zeros((len(graph.spiking), 2), np.int64)
        self._lock = threading.Lock()
        self._spare: list[list[NDArray[Any]]] = []

    @property
    def bytes(self) -> int:
        """What one run takes beside its result."""
        return 4 * sum(size for size, _ in self._buffers)

    def run(
        self,
        x: NDArray[np.float32],
        steps: int,
        *,
        record: bool = False,
        patience: int | None = None,
        helpers: Executor | None = None,
        threads: int = 1,
    ) -> Simulation:
        """As `Engine.run` does: on this thread, or together with ``threads - 1`` `helpers`."""
        spiking, images = self._spiking, len(x)
        pixels = np.ascontiguousarray(x.reshape(images, x.shape[1], -1).transpose(0, 2, 1)).reshape(images, -1)
        readouts = np.empty((steps, images, math.prod(self._output)), np.float32)
        outputs = np.empty_like(readouts)
        fired = np.zeros((len(spiking), steps, images), np.int64)
        taken = np.empty(images, np.int64)
        packed, packed_at = np.empty(0, np.uint8), self._nowhere
        if record:
            ends = np.cumsum(self._bytes_of_spikes) * steps * images
            packed = np.zeros(int(ends[-1]), np.uint8)
            packed_at = np.stack([ends - self._bytes_of_spikes * steps * images, self._bytes_of_spikes], axis=1)
        *buffers, drives = room = self._take()
        # Of two teams, each could hold a helper that the other waits for: where there is one, others go alone.
        together = threads > 1 and helpers is not None and TEAM.acquire(blocking=False)
        count = threads if together else 1
        beyond = np.zeros((count, len(spiking)), np.int64)
        met = np.zeros(count * self._loop.APART, np.int64)

        def work(thread: int) -> None:
            self._loop.simulate(
                thread, count, met, pixels, steps, 1 if patience else min(steps, BLOCK), patience or 0, record,
                self._stages, self._connections, self._weights, *self._vectors, self._limits,
                *buffers, drives if thread == 0 else np.empty_like(drives),
                readouts, outputs, fired, taken, packed, packed_at, beyond[thread],
            )  # fmt: skip

        try:
            others = [helpers.submit(work, thread) for thread in range(1, count)] if helpers else []
            work(0)
            for other in others:
                other.result()
        finally:
            if together:
                TEAM.release()
        with self._lock:
            self._spare.append(room)
        if beyond.any():
            passed = beyond.sum(axis=0)
            worst = int(passed.argmax())
            raise too_large(spiking[worst], int(passed[worst]), float(self._limits[worst]), steps)
        kept = None
        if record:
            parts = [part.reshape(steps, images, -1) for part in np.split(packed, packed_at[1:, 0])]
            layers = {name: self._graph.shapes[name] for name in spiking}
            kept = SpikeRecord(
                "engine", layers, dict(zip(spiking, parts, strict=True)), _unflat(readouts, self._output)
            )
        return Simulation(_unflat(outputs, self._output), dict(zip(spiking, fired, strict=True)), taken, kept)

    def _take(self) -> list[NDArray[Any]]:
        """Room for one run: an earlier one's, or new."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return [np.empty(size, kind) for size, kind in self._buffers]


def _vectors(layer: Layer, leading: Sequence[_Convolution], channels: int, padded: int) -> NDArray[np.float32]:
    """Bias, level and threshold ``[3, padded]``, one a channel; what is no channel never fires."""
    vectors = np.zeros((3, padded), np.float32)
    vectors[1] = np.inf
    for one in leading:
        vectors[0, :channels] += one.bias
    if isinstance(layer, IntegrateFire):
        vectors[1, :channels], vectors[2, :channels] = layer.level, layer.threshold
    return vectors


def _padded(weights: NDArray[np.float32], outputs: int) -> NDArray[np.float32]:
    """Weights with zeros up to so many outputs."""
    return np.pad(weights, [(0, 0)] * 3 + [(0, outputs - weights.shape[3])])


def _unflat(rows: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """``[T, B, H · W · C]`` as ``[T, B, *shape]``."""
    if len(shape) == 1:
        return rows
    channels, height, width = map_shape(shape)
    maps = rows.reshape(*rows.shape[:2], height, width, channels).transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(maps).reshape(*rows.shape[:2], *shape)
