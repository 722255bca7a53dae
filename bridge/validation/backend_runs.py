"""Which backends a network is validated on, and their runs: each thread and process has native models of its own."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.checks import positive, time_steps, true_classes
from bridge._util.neutral import neutral
from bridge._util.progress import Advance, bar
from bridge._util.shown import brief
from bridge.agreement import Agreement
from bridge.backends import registry
from bridge.backends.protocol import Backend
from bridge.backends.recorded import Recorded
from bridge.converters.nir_graphs.ours import to_nir
from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import LayerGraph
from bridge.records import SpikeRecord
from bridge.simulate.counts import CountSimulator
from bridge.simulate.engine.engine import Engine
from bridge.simulate.images import BATCH
from bridge.validation.compare import (
    REFERENCE,
    BackendRun,
    Batch,
    Findings,
    Runner,
    Subject,
    agreement_of,
    compare,
    potentials_at_once,
)
from bridge.validation.executors import measured

RECORDS = 2**29
"""Bytes that the records of one batch may take, roughly."""


def validate(
    graph: LayerGraph,
    ann: LayerGraph | None,
    x: Tensor,
    steps: int,
    backends: Sequence[str | Backend] | None,
    *,
    labels: Tensor | NDArray[Any] | Sequence[int] | None,
    images: Mapping[str, int] | None,
    executor: Executor | None,
    error_parts: bool = True,
) -> Agreement:
    """What `bridge.SpikingNetwork.validate` does, whose arguments and errors these are, for a spiking `graph`.

    `x` are images as `bridge.simulate.images.checked` returns them.
    """
    steps = time_steps(steps)
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise InputError(
            f"executor: expected one, such as concurrent.futures.ThreadPoolExecutor(2), got {brief(executor)}"
        )
    truth = true_classes(labels, len(x), math.prod(graph.shapes[graph.output.name]))
    if images is not None and not isinstance(images, Mapping):
        raise InputError(f"images: expected a number of images by backend, such as {{'lava': 60}}, got {images!r}")
    limits = {name: positive(limit, f"images[{name!r}]") for name, limit in (images or {}).items()}
    native = exported(graph, backends)
    if not limits.keys() <= native.keys():
        raise InputError(f"images: {sorted(limits.keys() - native.keys())} are not among the backends {[*native]}")
    found = {name: backend.available() for name, (backend, _) in native.items()}
    by_engine = graph.integer and not any(one.engine for one in found.values())
    subject = Subject(graph, ann, steps, error_parts)
    runs = BackendRuns(subject, {name: backend for name, (backend, _) in native.items()}, limits, by_engine)
    runs.own.native = {name: model for name, (_, model) in native.items()}
    size = batch_size(graph, steps, len(runs.names))
    starts = range(0, len(x), size)

    def batches() -> Iterator[Batch]:
        for start in starts:
            part = slice(start, start + size)
            yield Batch(start, x[part], None if truth is None else truth[part])

    def findings(advance: Advance) -> Iterator[Findings]:
        if executor is None:
            runs.own.ran = lambda name: advance()
        for one in measured(executor, runs, batches()):
            for _ in runs.names if executor is not None else ():
                advance()
            yield one

    with bar(f"validating: {', '.join(native) or 'ANN'}", len(starts) * len(runs.names)) as advance:
        versions = {name: one.versions for name, one in found.items()}
        return agreement_of(graph, findings(advance), steps, versions, size if by_engine else None)


def exported(graph: LayerGraph, chosen: Sequence[str | Backend] | None) -> dict[str, tuple[Backend, Any]]:
    """The backends `chosen`, or all that are usable and take the spiking `graph`, by name, and their native models.

    Raises:
        InputError: two of them have one name.
        BackendError: one is unknown or not usable; or none is usable.
        GraphError: a chosen one cannot run the network.
    """
    written = to_nir(graph)
    if chosen is not None:
        found = [registry.usable(one) for one in _listed(chosen)]
        counts = Counter([REFERENCE, *(backend.name for backend in found)])
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise InputError(f"backends: {twice} would each name more than one; give it a name of its own")
        return {backend.name: (backend, backend.export(written)) for backend in found}
    result: dict[str, tuple[Backend, Any]] = {}
    for backend in map(registry.get, registry.names()):
        if backend.available().usable:
            with suppress(GraphError):  # not for networks of this kind
                result[backend.name] = backend, backend.export(written)
    if not result:
        raise BackendError(
            "no backend that takes this network is installed; the easiest to get: pip install snntorch\n"
            "`qcfs-bridge doctor` says what each needs; backends=[] holds the network against its ANN alone"
        )
    return result


def _listed(chosen: object) -> list[Any]:
    """The names and backends that are `chosen`."""
    several = [chosen] if isinstance(chosen, str) or hasattr(chosen, "export") else chosen
    if not isinstance(several, Iterable):
        raise InputError(f"backends: expected names, such as ['spikingjelly', 'lava'], or backends, got {chosen!r}")
    for one in (found := list(several)):
        if not isinstance(one, str) and not all(hasattr(one, part) for part in ("name", "available", "export", "run")):
            raise InputError(
                f"backends: expected a name, or an object with name, available, export and run, got {brief(one)}"
            )
    return found


@dataclass(eq=False)
class BackendRuns:
    """Measures batches: what `measured` needs. Other threads and processes export their own models.

    `by_engine`: the engine stands for the reference.
    """

    subject: Subject
    backends: dict[str, Backend]
    limits: dict[str, int]
    by_engine: bool
    own: threading.local = field(default_factory=threading.local)

    @property
    def names(self) -> tuple[str, ...]:
        """What runs on each batch."""
        return (REFERENCE, *self.backends)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, own=threading.local())

    @neutral()  # an executor's threads and processes have settings of their own
    def __call__(self, batch: Batch) -> Findings:
        graph, steps = self.subject.graph, self.subject.steps
        if not hasattr(self.own, "native"):
            written = to_nir(graph)
            self.own.native = {name: backend.export(written) for name, backend in self.backends.items()}
        if self.by_engine and not hasattr(self.own, "engine"):
            cpu = torch.device("cpu")
            self.own.engine = Engine(graph, cpu) if graph.latency is None else CountSimulator(graph, cpu)
        runs = {
            name: BackendRun(_runner(backend, self.own.native[name], steps), self.limits.get(name))
            for name, backend in self.backends.items()
        }
        ran = getattr(self.own, "ran", lambda name: None)
        return compare(batch, self.subject, runs, getattr(self.own, "engine", None), ran)


def _runner(backend: Backend, native: Any, steps: int) -> Runner:
    def run(x: Tensor, start: int, membranes: bool) -> SpikeRecord | None:
        if isinstance(backend, Recorded):
            return backend.run_from(native, start, len(x), steps, membranes=membranes)
        return backend.run(native, x.numpy(), steps, membranes=membranes)

    return run


def batch_size(graph: LayerGraph, steps: int, runs: int) -> int:
    """Images that are validated together on so many `runs`: as many as `BATCH`, fewer where memory would not do.

    In floats a part of a batch can round otherwise than the whole, so that a batch's potentials are held against each
    other all at once. In integers it is its records that count.
    """
    if not graph.integer:
        return potentials_at_once(graph, steps)
    return max(1, min(BATCH, RECORDS // ((runs + 1) * steps * graph.neurons // 8 + 16 * graph.neurons)))
