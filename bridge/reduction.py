"""The smallest network, images and number of steps on which a backend still disagrees with the reference.

Delta debugging: something is taken away, the backend itself runs what is left, and if the same layer is still wrong by
itself there (`bridge.validation.divergence`), it stays away.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridge._util.checks import time_steps
from bridge._util.files import replacing
from bridge._util.neutral import neutral
from bridge._util.progress import progress
from bridge._util.shown import Shown
from bridge.backends import registry
from bridge.backends.protocol import Backend
from bridge.converters.nir_graphs import ours
from bridge.errors import GraphError, InputError
from bridge.graph import Input, IntegrateFire, Layer, LayerGraph
from bridge.graph.pixel_grid import PixelGrid
from bridge.records import SpikeRecord
from bridge.simulate.images import Given, checked
from bridge.simulate.ops import evaluate, tensor
from bridge.simulate.reference import simulate
from bridge.validation.compare import BackendRun, Batch, Subject, compare, potentials_at_once
from bridge.validation.divergence import Replay

logger = logging.getLogger(__name__)


class Network(Protocol):
    """A `bridge.SpikingNetwork`, of which this is all that is needed."""

    graph: LayerGraph

    @property
    def grid(self) -> PixelGrid | None: ...

    def save(self, path: str | Path) -> None: ...


Kind = TypeVar("Kind", bound=Network)


@dataclass(frozen=True)
class Disagreement:
    """Where a backend is first wrong by itself: the layer, the step (from 1), the image, the neuron in the layer.

    ``reference`` and ``backend`` are the two potentials after integration, before reset; the backend's is None if it
    could not be told. For the readout, they are the two outputs of that step, where they differ most.
    """

    layer: str
    step: int
    image: int
    neuron: tuple[int, ...]
    reference: float
    backend: float | None

    def __str__(self) -> str:
        backend = "unknown" if self.backend is None else f"{self.backend:.9g}"
        return (
            f"layer {self.layer!r}, step {self.step}, image {self.image}, neuron {list(self.neuron)}: "
            f"{self.reference:.9g} in the reference, {backend} in the backend"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Reduction(Shown, Generic[Kind]):
    """What `reduce` found: ``images`` ``[B, *input]``, held constant for ``steps`` steps, on which ``first`` is wrong.

    Of a network in integers they are pixels, uint8.
    ``backend`` is how a script can find the backend: its name, or ``module:attribute``; None if it cannot. Example:
    docs/reducing.md.
    """

    network: Kind
    images: NDArray[np.float32 | np.uint8]
    steps: int
    first: Disagreement
    backend: str | None

    def save(self, folder: str | Path) -> None:
        """Write ``network.nir``, ``images.npy`` and ``reproduce.py`` to `folder`, each whole or not at all.

        ``python reproduce.py`` runs both again, prints where they disagree, and exits with 1 as long as they do.

        ```python
        bridge.reduce(network, images, 8, "snntorch").save("case")
        ```
        """
        folder = Path(folder)
        self.network.save(folder / "network.nir")
        with replacing(folder / "images.npy") as file:
            np.save(file, self.images)
        with replacing(folder / "reproduce.py") as file:
            file.write(SCRIPT.format(backend=self.backend, steps=self.steps).encode())


SCRIPT = '''\
"""A backend disagrees with the reference. Exits with 1 as long as it does, 0 when it agrees, 2 if it cannot be run.

    python reproduce.py [BACKEND]

BACKEND is a name that qcfs-bridge knows, or MODULE:ATTRIBUTE, a backend or a class to make one of without arguments.
"""

import pkgutil
import sys
import traceback
from pathlib import Path

import numpy as np

import bridge
from bridge.reduction import first_disagreement

BACKEND = {backend!r}
STEPS = {steps}


def main() -> int:
    here = Path(__file__).parent
    name = sys.argv[1] if len(sys.argv) > 1 else BACKEND
    if name is None:
        print("say which backend: python reproduce.py MODULE:ATTRIBUTE", file=sys.stderr)
        return 2
    backend = pkgutil.resolve_name(name) if ":" in name else name
    if isinstance(backend, type):
        backend = backend()
    network, images = bridge.load(here / "network.nir"), np.load(here / "images.npy")
    found = first_disagreement(network, images, STEPS, backend)
    print(f"{{name}}: every spike and the readout are the reference's" if found is None else f"{{name}}: {{found}}")
    return 0 if found is None else 1


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 2
    sys.exit(code)
'''


@neutral()
def reduce(
    network: Kind,
    x: Given,
    steps: int | None,
    backend: str | Backend,
    out: str | Path | None = None,
) -> Reduction[Kind]:
    """Shrink a disagreement between `backend` and the reference to the smallest case that still shows it.

    The first layer that is wrong by itself becomes the last one; images, time steps and layers are taken away as long
    as it is still wrong. Layers before it may give way to constant images that take the place of their spikes.
    Everything that is kept was run, each time on a newly exported model. Ties of rounding do not count. Example:
    docs/reducing.md.

    Args:
        network: the network.
        x: images ``[B, *input]``, as for `SpikingNetwork.run`. Run in batches, each by itself.
        steps: T, at least 1. No run is longer. None is the latency of a staged or grouped network.
        backend: the name of a backend, or a `exporters.base.Backend`.
        out: a folder for `Reduction.save`; None: nothing is written.

    Raises:
        InputError: nothing disagrees; or `x` or `steps` do not fit, as in `SpikingNetwork.run`.
        BackendError: the backend is unknown, not usable, or failed on the network as it is.
        GraphError: the backend cannot run the network.
        ValidationError: its record does not fit the network.
    """
    images = checked(network.graph, x, grid=network.grid)
    steps = time_steps(network.graph.latency if steps is None else steps)
    backend = registry.usable(backend)
    size = potentials_at_once(network.graph, steps)
    for start in progress(range(0, len(images), size), f"reducing: looking where {backend.name} differs"):
        batch = images[start : start + size]
        first = _first(network.graph, batch, steps, backend)
        if first is not None:
            search = _Search(backend, first.layer, steps)
            smallest = search.reduce(_Case(network.graph, batch, steps, first))
            break
    else:
        raise InputError(
            f"reduce: {backend.name} and the reference agree on these {len(images)} images for {steps} steps, but for "
            "ties of rounding if there are any: give images on which they differ"
        )
    kept = smallest.x.to(torch.uint8) if network.graph.integer else smallest.x
    smaller: Kind = type(network)(smallest.graph)  # type: ignore[call-arg]
    result = Reduction(smaller, kept.numpy(), smallest.steps, smallest.first, _importable(backend))
    if out is not None:
        result.save(out)
    return result


@neutral()
def first_disagreement(network: Network, x: Given, steps: int, backend: str | Backend) -> Disagreement | None:
    """Where a new export of `backend` is first wrong by itself on all `x` in one run.

    First in the order of the layers, then of the steps; None if nothing but ties of rounding differs. Raises as
    `reduce` does.
    """
    images = checked(network.graph, x, grid=network.grid)
    return _first(network.graph, images, steps, registry.usable(backend))


def _first(
    graph: LayerGraph, images: Tensor, steps: int, backend: Backend, layer: str | None = None
) -> Disagreement | None:
    """The same on `images` as the network computes on them, and in `layer` only, if it is given."""
    native = backend.export(ours.to_nir(graph))
    records: list[SpikeRecord] = []

    def run(batch: Tensor, start: int, membranes: bool) -> SpikeRecord:
        records.append(backend.run(native, batch.numpy(), steps, membranes=membranes))
        return records[-1]

    runs = {backend.name: BackendRun(run)}
    tally = compare(Batch(0, images, None), Subject(graph, None, steps), runs).tallies[backend.name]
    for found in tally.divergences:
        if not found.tie and layer in (None, found.layer):
            potentials = found.reference_membrane, found.backend_membrane
            return Disagreement(found.layer, found.step, found.image, found.neuron, *potentials)
    if tally.readouts_wrong and layer in (None, graph.output.name):
        got = records[0].readout
        expected = Replay(graph, images, records[0], membranes=False).expected.readout
        step, image, *neuron = map(int, np.unravel_index(np.abs(got - expected).argmax(), got.shape))
        place = (step, image, *neuron)
        values = float(expected[place]), float(got[place])
        return Disagreement(graph.output.name, step + 1, image, tuple(neuron), *values)
    return None


@dataclass(frozen=True, eq=False)
class _Case:
    """A network, images and steps on which the backend was seen to disagree, and where."""

    graph: LayerGraph
    x: Tensor
    steps: int
    first: Disagreement


@dataclass(frozen=True)
class _Search:
    """Smaller cases in which `backend` is still wrong in `layer`, in at most `steps` steps."""

    backend: Backend
    layer: str
    steps: int

    def reduce(self, case: _Case) -> _Case:
        """The smallest case there is on the way down from `case`: no single thing more can be taken away."""
        last = [layer.name for layer in case.graph].index(self.layer)
        case = self.attempt(LayerGraph(_needed(case.graph.layers[: last + 1])), case.x, self.steps) or case
        case = self.fewer_images(case)
        while smaller := self.fewer_layers(case):
            case = self.fewer_images(smaller)
        case = self.fewer_images(self.fewer_steps(case))
        return self.fewer_steps(case)  # a single image may need fewer than several did

    def attempt(self, graph: LayerGraph, x: Tensor, steps: int) -> _Case | None:
        """The case of these, if the layer is wrong in it; what cannot be run or compared shows nothing."""
        try:
            graph = ours.from_nir(ours.to_nir(graph))  # what the file will hold, in the order it is read
            given = x.to(torch.int64) if graph.integer and bool((x == x.round()).all()) else x
            first = _first(graph, checked(graph, given), steps, self.backend, self.layer)
        except Exception as error:  # whatever a framework raises on a network that it was not made for
            logger.debug("%d layers: not a case, since %s: %s", len(graph), type(error).__name__, error)
            return None
        return None if first is None else _Case(graph, x, steps, first)

    def fewer_images(self, case: _Case) -> _Case:
        """The image that is wrong alone; else, as one image may disturb another, halves, quarters … are left out."""
        image = case.first.image
        if len(case.x) == 1:
            return case
        if alone := self.attempt(case.graph, case.x[image : image + 1], case.steps):
            return alone
        size = len(case.x) // 2
        while size:
            start = 0
            while start < len(case.x):
                rest = torch.cat([case.x[:start], case.x[start + size :]])
                smaller = self.attempt(case.graph, rest, case.steps) if len(rest) else None
                case, start = (smaller, start) if smaller else (case, start + size)
            size //= 2
        return case

    def fewer_steps(self, case: _Case) -> _Case:
        """The first step that is wrong is the last one needed, unless other steps or images decide what it is."""
        likely = [case.first.step] if self.layer in case.graph.spiking else []
        for steps in (*likely, *range(1, case.steps)):
            if steps < case.steps and (smaller := self.attempt(case.graph, case.x, steps)):
                return smaller
        return case

    def fewer_layers(self, case: _Case) -> _Case | None:
        """The first smaller network that is still wrong, the smallest tried first; None if none is."""
        candidates = [(graph, x) for graph, x in _smaller(case, self.layer, self.steps) if len(graph) < len(case.graph)]
        candidates.sort(key=lambda candidate: len(candidate[0]))
        for graph, x in progress(candidates, f"reducing: {len(case.graph)} layers"):
            if found := self.attempt(graph, x, self.steps):
                return found
        return None


def _smaller(case: _Case, target: str, steps: int) -> Iterator[tuple[LayerGraph, Tensor]]:
    """Networks with less before the layer `target`, and the images to try on them."""
    graph = case.graph
    record = simulate(graph, case.x, steps)
    constant = {graph.input.name: case.x}
    for layer in graph.layers[1:]:
        if layer.name == target:
            continue
        for source in layer.inputs:
            if graph.shapes[source] == graph.shapes[layer.name]:
                yield from _built([*_without(graph, layer.name, source)], case.x)
        shape = graph.shapes[layer.name]
        rest = [other for other in graph if other.name not in (layer.name, graph.input.name)]
        if isinstance(layer, IntegrateFire):
            spikes = _levels(record, layer.name, whole=graph.integer)
            yield from _built([Input(name=layer.name, shape=shape), *rest], spikes)
            # Where spikes must stay spikes, the neurons stay, driven so that they fire at these rates.
            neurons = replace(layer, inputs=(graph.input.name,))
            drive = spikes
            if graph.integer:  # their own thresholds may be out of the pixels' reach
                one = np.ones_like(layer.level)
                neurons, drive = replace(neurons, level=one, threshold=2 * one), 2 * spikes
            yield from _built([Input(name=graph.input.name, shape=shape), neurons, *rest], drive)
        elif layer.name in graph.constant and all(source in constant for source in layer.inputs):
            constant[layer.name] = evaluate(layer, *(constant[source] for source in layer.inputs))
            yield from _built([Input(name=layer.name, shape=shape), *rest], constant[layer.name])


def _levels(record: SpikeRecord, layer: str, *, whole: bool) -> Tensor:
    """Constant images ``[B', *shape]`` like the spikes of `layer`: those of each step, and the rates if not `whole`."""
    spikes = record.spikes(layer)
    values = list(spikes) if whole else [*spikes, record.rates(layer)[-1]]
    return tensor(np.unique(np.concatenate(values).astype(np.float32), axis=0))


def _without(graph: LayerGraph, name: str, source: str) -> Iterator[Layer]:
    """The layers but `name`, whose readers read `source` in its place."""
    for layer in graph:
        if layer.name != name:
            yield replace(layer, inputs=tuple(source if s == name else s for s in layer.inputs))


def _built(layers: list[Layer], x: Tensor) -> Iterator[tuple[LayerGraph, Tensor]]:
    """The graph of those layers that the last one needs, with `x`, if they make a spiking network."""
    try:
        graph = LayerGraph(_needed(layers))
    except GraphError:  # such as a second path to the input that was replaced
        return
    if graph.spiking:
        yield graph, x


def _needed(layers: list[Layer] | tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The last of the `layers` and its ancestors, in order."""
    names, kept = {layers[-1].name}, []
    for layer in reversed(layers):
        if layer.name in names:
            names |= set(layer.inputs)
            kept.append(layer)
    return tuple(reversed(kept))


def _importable(backend: Backend) -> str | None:
    """The name under which another process finds the `backend`; None if only this one can have it."""
    kind = type(backend)
    if backend.name in registry.names() and type(registry.get(backend.name)) is kind:
        return backend.name
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):  # a class made inside a function
        return None
    stateless = getattr(backend, "__dict__", None) == {}  # else a new one need not be the same
    return name if found is kind and stateless and kind.__module__ != "__main__" else None
