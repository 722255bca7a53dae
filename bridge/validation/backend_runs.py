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

from numpy.typing import NDArray
from torch import Tensor

from bridge._util.checks import positive, time_steps, true_classes
from bridge._util.neutral import neutral
from bridge._util.progress import progress
from bridge.agreement import Agreement
from bridge.backends import registry
from bridge.backends.protocol import Backend
from bridge.backends.recorded import Recorded
from bridge.converters.nir_graphs.ours import to_nir
from bridge.errors import BackendError, GraphError, InputError
from bridge.graph import LayerGraph
from bridge.records import SpikeRecord
from bridge.simulate.images import BATCH, checked
from bridge.validation.compare import REFERENCE, BackendRun, Batch, Findings, Runner, agreement_of, compare
from bridge.validation.executors import measured

POTENTIALS = 2**29
"""Bytes that the potentials of one batch may take when they are held against each other, roughly."""


def validate(
    graph: LayerGraph,
    ann: LayerGraph | None,
    x: Tensor | NDArray[Any],
    steps: int,
    backends: Sequence[str | Backend] | None,
    *,
    labels: Tensor | NDArray[Any] | Sequence[int] | None,
    images: Mapping[str, int] | None,
    executor: Executor | None,
) -> Agreement:
    """What `bridge.SpikingNetwork.validate` does, whose arguments and errors these are, for a spiking `graph`."""
    x, steps = checked(graph, x), time_steps(steps)
    truth = true_classes(labels, len(x), math.prod(graph.shapes[graph.output.name]))
    if images is not None and not isinstance(images, Mapping):
        raise InputError(f"images: expected a number of images by backend, such as {{'lava': 60}}, got {images!r}")
    limits = {name: positive(limit, f"images[{name!r}]") for name, limit in (images or {}).items()}
    native = exported(graph, backends)
    if not limits.keys() <= native.keys():
        raise InputError(f"images: {sorted(limits.keys() - native.keys())} are not among the backends {[*native]}")
    runs = BackendRuns(graph, ann, steps, {name: backend for name, (backend, _) in native.items()}, limits)
    runs.own.native = {name: model for name, (_, model) in native.items()}
    size = batch_size(graph, steps)

    def batches() -> Iterator[Batch]:
        for start in progress(range(0, len(x), size), ", ".join(("reference", *native))):
            part = slice(start, start + size)
            yield Batch(start, x[part], None if truth is None else truth[part])

    versions = {name: backend.available().versions for name, (backend, _) in native.items()}
    return agreement_of(graph, measured(executor, runs, batches()), steps, versions)


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
                f"backends: expected a name, or an object with name, available, export and run, got {one!r}"
            )
    return found


@dataclass(eq=False)
class BackendRuns:
    """Measures batches: what `measured` needs. Other threads and processes export their own models."""

    graph: LayerGraph
    ann: LayerGraph | None
    steps: int
    backends: dict[str, Backend]
    limits: dict[str, int]
    own: threading.local = field(default_factory=threading.local)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "own"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, own=threading.local())

    @neutral()  # an executor's threads and processes have settings of their own
    def __call__(self, batch: Batch) -> Findings:
        if not hasattr(self.own, "native"):
            graph = to_nir(self.graph)
            self.own.native = {name: backend.export(graph) for name, backend in self.backends.items()}
        runs = {
            name: BackendRun(_runner(backend, self.own.native[name], self.steps), self.limits.get(name))
            for name, backend in self.backends.items()
        }
        return compare(batch, self.graph, self.ann, self.steps, runs)


def _runner(backend: Backend, native: Any, steps: int) -> Runner:
    def run(x: Tensor, start: int, membranes: bool) -> SpikeRecord | None:
        if isinstance(backend, Recorded):
            return backend.run_from(native, start, len(x), steps, membranes=membranes)
        return backend.run(native, x.numpy(), steps, membranes=membranes)

    return run


def batch_size(graph: LayerGraph, steps: int) -> int:
    """Images that are validated together: as many as `BATCH`, fewer where their potentials would take much memory."""
    return max(1, min(BATCH, POTENTIALS // (8 * steps * graph.neurons)))
