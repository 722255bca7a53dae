"""The protocol of a backend: export a NIR graph to a native model, run that model, say whether it can be used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import nir
import numpy as np
from numpy.typing import NDArray

from bridge._util.checks import time_steps
from bridge._util.neutral import neutral
from bridge.errors import GraphError, InputError
from bridge.graph import AtLeast, GroupFire, Layer, LayerGraph, WindowFire
from bridge.graph.ranges import EXACT, LARGEST_PIXEL, beyond_exact
from bridge.records import SpikeRecord
from bridge.simulate.images import Given, as_array, expected_shape, finite, no_pixels, pixels


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here: its packages' versions, else the reason and the command that mends it.

    ``environment`` is the interpreter that it is run by, if that is another than this one. ``engine``: it computes with
    this package's own engine, which therefore cannot be the judge of it.
    """

    usable: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    install: str = ""
    environment: str = ""
    engine: bool = False


class Backend(Protocol):
    """One framework. Found through the entry-point group ``qcfs_bridge.backends``; stateless."""

    name: str

    def available(self) -> Availability:
        """Whether the framework can be imported, without importing this package's own heavy parts at module level."""
        ...

    def export(self, graph: nir.NIRGraph) -> Any:
        """The framework's own model of `graph`. Everything it needs comes from the graph's structure.

        Raises `bridge.errors.GraphError` for a graph it cannot run exactly.
        """
        ...

    def run(self, native: Any, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """Run `native` for `steps` time steps on images `x` ``[B, *input]``, held constant, from a fresh state.

        With `membranes`, the record also keeps every layer's potential u after integration, before reset.
        """
        ...


@neutral()  # what a framework makes on its import, it keeps
def probe(packages: Mapping[str, str], install: str) -> Availability:
    """Availability of a backend that needs `packages`: import name → distribution name. Imports each of them.

    The framework itself comes first in `packages`, then what it needs.
    """
    versions: dict[str, str] = {}
    for module, distribution in packages.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a framework that fails on import, for whatever reason, is not usable
            reason = f"import {module} failed: {type(error).__name__}: {error}"
            return Availability(usable=False, versions=versions, reason=reason, install=install)
        versions[distribution] = importlib.metadata.version(distribution)
    return Availability(usable=True, versions=versions)


OTHER_NEURONS: Mapping[type[Layer], tuple[str, str]] = {
    WindowFire: ("fires in a window, as in staged networks", "fire at any time step and count none"),
    GroupFire: ("is a group of thresholds, as in grouped networks", "have one threshold each and keep a potential"),
    AtLeast: ("is a threshold without state, as behind maximum pools", "keep a potential"),
}
"""What layers do that are neurons of another kind than the plain ones, and what plain ones do instead."""


def expect_plain(graph: LayerGraph, framework: str) -> None:
    """Raise `GraphError`, naming the layer, if `graph` has neurons that the backend for this `framework` lacks.

    It is for a backend with none but plain ones, which fire whenever they reach their one threshold.
    """
    for layer in graph:
        if type(layer) in OTHER_NEURONS:
            does, instead = OTHER_NEURONS[type(layer)]
            raise GraphError(
                f"layer {layer.name!r} ({type(layer).__name__}) {does}; the neurons of the backend for {framework} "
                f"{instead}. Run it on another backend, or convert with schedule='plain'"
            )


def may_leave_exact(drives: Mapping[str, float], steps: int) -> bool:
    """Whether potentials that get at most `drives` (`bridge.graph.ranges.largest_drives`) a step can pass 2^24.

    Up to there float32 holds every whole number. A backend that computes in float32 then records its membranes, and
    `exact` looks at them.
    """
    return steps * max(drives.values(), default=0.0) > EXACT


def exact(record: SpikeRecord, *, membranes: bool) -> SpikeRecord:
    """`record`, which has membranes, without them unless they are to stay (`membranes`).

    Raises `InputError` if one passes 2^24: what follows is not exact.
    """
    largest = {name: np.abs(values).reshape(len(values), -1).max(axis=1) for name, values in record.membranes.items()}
    passed = [(int((sizes > EXACT).argmax()), name) for name, sizes in largest.items() if (sizes > EXACT).any()]
    if passed:
        step, name = min(passed)
        raise beyond_exact(name, step + 1, float(largest[name][step]))
    return record if membranes else replace(record, membranes={})


def check_input(
    graph_input: tuple[int, ...], x: Given, steps: int, *, integer: bool | None = None
) -> NDArray[np.float32]:
    """The images `x` ``[B, *graph_input]`` in float32, as a backend computes on them.

    Integers are pixels 0…255. A network in integers (`integer`) takes them, or floats that hold such pixels; a float
    network takes floats. None: it is not known which it is.

    Raises `InputError` unless the images are of that shape, finite, and such as the network takes, and `steps` is whole
    and at least 1.
    """
    time_steps(steps)
    values = expected_shape(as_array(x, "x"), graph_input, "x")
    if values.dtype.kind not in "biu":
        values = finite(values.astype(np.float32, copy=False), "x")
        if integer and not ((values == np.rint(values)) & (values >= 0) & (values <= LARGEST_PIXEL)).all():
            raise InputError(
                f"x: this network is in integers and takes pixels, whole from 0 to {LARGEST_PIXEL}; got values from "
                f"{values.min():.6g} to {values.max():.6g}. network.pixels(x) makes pixels of the ANN's input"
            )
        return values
    if integer is False:
        raise no_pixels("x", values.dtype)
    return pixels(values, "x")
