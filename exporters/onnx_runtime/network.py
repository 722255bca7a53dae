"""The native object: a spiking network's ONNX models and ONNX Runtime sessions, each made when it is needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bridge._util.checks import positive
from bridge._util.files import replacing
from bridge._util.shown import Shown
from bridge.backends.protocol import check_input
from bridge.errors import InputError
from bridge.graph import LayerGraph, Shape
from exporters.onnx_runtime.models import one_step, over_time
from exporters.onnx_runtime.names import (
    ITERATION,
    NEXT,
    NEXT_ITERATION,
    OUTPUT,
    POTENTIAL,
    READOUT,
    STEPS,
    X,
    unambiguous,
)
from exporters.onnx_runtime.rules import counts_steps, stateful

if TYPE_CHECKING:
    from onnx import ModelProto

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class OnnxNetwork(Shown):
    """A spiking network in ONNX: ``network(x, steps)`` is its output, ``network.save("net.onnx")`` the file.

    ``model`` runs T steps and ``step_model`` one (`exporters.onnx_runtime.models` tells their inputs and outputs);
    ``session`` and ``step_session`` are ONNX Runtime's, on the processor, with its default options. Copies and pickles
    leave models and sessions behind and make their own.
    """

    source: LayerGraph
    """The network, with its layers' own names."""

    @cached_property
    def graph(self) -> LayerGraph:
        """The network with the names that its layers have in the models; nearly always their own."""
        return unambiguous(self.source)

    @cached_property
    def model(self) -> ModelProto:
        return over_time(self.graph)

    @cached_property
    def step_model(self) -> ModelProto:
        return one_step(self.graph)

    @cached_property
    def session(self) -> Any:
        return open_session(self.model)

    @cached_property
    def step_session(self) -> Any:
        return open_session(self.step_model)

    @cached_property
    def spikes_session(self) -> Any:
        """Of the model over T steps that also gives all spikes."""
        return open_session(over_time(self.graph, spikes=True))

    @cached_property
    def membranes_session(self) -> Any:
        """Of the model over T steps that also gives all spikes and potentials."""
        return open_session(over_time(self.graph, spikes=True, membranes=True))

    def __call__(self, x: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
        """The output for images `x` ``[B, *input]``: mean of the readout over `steps` steps, ``[B, ...]``.

        A staged network's is the sum, complete after its latency; a grouped one's is the same at any `steps`. Raises
        `InputError` for images of another shape, NaN, or fewer than one step.
        """
        return self.run(self.session, x, steps)[OUTPUT]

    def run(self, session: Any, x: NDArray[np.float32], steps: int) -> Values:
        """All outputs of a `session` over `steps` steps, by name. Raises as above."""
        x = check_input(self.graph.input.shape, x, steps, integer=self.graph.integer)
        return _run(session, {X: x, STEPS: np.array(steps, np.int64)})

    def initial_state(self, batch: int) -> Values:
        """The potentials before the first step, for `batch` images: zeros, by the name of their input.

        With them, the number of the step, if the network is staged. A grouped network has no state: nothing.
        """
        batch = positive(batch, "batch")
        return {name: np.zeros(shape, self._type(name)) for name, shape in self._state_shapes(batch).items()}

    def step(self, x: NDArray[np.float32], state: Values) -> tuple[NDArray[np.float32], Values]:
        """One time step: readout ``[B, ...]``, and the state for the next one. `state` itself stays as it is.

        Raises `InputError` for images of another shape, NaN, or a state that is not that of so many images.
        """
        x = check_input(self.graph.input.shape, x, 1, integer=self.graph.integer)
        wanted, came = self._state_shapes(len(x)), {name: values.shape for name, values in state.items()}
        if came != wanted:
            raise InputError(f"expected the state of {len(x)} images as initial_state gives it, {wanted}; got {came}")
        given = {name: np.asarray(values, self._type(name), order="C") for name, values in state.items()}
        values = _run(self.step_session, {X: x, **given})
        after = {name + POTENTIAL: values[name + NEXT] for name in stateful(self.graph)}
        return values[READOUT], after | ({ITERATION: values[NEXT_ITERATION]} if counts_steps(self.graph) else {})

    def save(self, path: str | Path, *, one_step: bool = False) -> None:
        """Write the model over T steps, or that of one step, to an ONNX file: whole or not at all.

        Raises `InputError` if `path` cannot be written.
        """
        with replacing(path) as file:
            file.write((self.step_model if one_step else self.model).SerializeToString())

    def _state_shapes(self, batch: int) -> dict[str, Shape]:
        neurons = stateful(self.graph)
        shapes: dict[str, Shape] = {name + POTENTIAL: (batch, *self.graph.shapes[name]) for name in neurons}
        return shapes | ({ITERATION: ()} if counts_steps(self.graph) else {})

    def _type(self, state: str) -> type[np.generic]:
        return np.int64 if state == ITERATION else np.float32

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}


def open_session(model: ModelProto) -> Any:
    """An ONNX Runtime session of `model` on the processor."""
    runtime = importlib.import_module("onnxruntime")
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _run(session: Any, feeds: Values) -> Values:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
