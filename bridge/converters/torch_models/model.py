"""Capture a torch model: run it on traced tensors and take the layers that come of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from bridge.converters.remedies import NOT_REPEATED, OUT_OF_SIGHT
from bridge.converters.torch_models.input_shape import random_images, remedy
from bridge.converters.torch_models.traced import Traced, traced_in
from bridge.converters.torch_models.tracer import StoppedError, Tracer
from bridge.errors import BridgeError, ConversionError, GraphError, InputError
from bridge.graph import ClipFloorShift, LayerGraph, Shape
from bridge.prepare.call_sites import undisturbed
from bridge.prepare.inference import at_inference

BATCH = 2
"""Images that a model is run on: two show whether images are mixed; more would show no more."""


def capture(model: nn.Module, given: Shape, *, maximum: bool = False) -> LayerGraph:
    """The layers of `model` as it runs at inference on images of shape `given` ``[B, ...]``.

    The model is run on random images, not changed; the graph owns copies of its parameters. A module that is called in
    several places becomes a layer for each of them. Maximum pools become layers if `maximum`.

    Raises:
        ConversionError: an operation has no exact spiking form, a parameter is not finite, or a λ is not positive.
            The message lists every such layer by name, with what to use instead.
        InputError: the model does not take such images.
    """
    title = type(model).__name__
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ConversionError("the model has parameters without a shape yet: run it once on an input, and train it")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConversionError(f"{title} is on the meta device, where parameters have no values; load its weights first")
    tracer, result = _run(model, given, BATCH, maximum)
    several = vars(result) if is_dataclass(result) and not isinstance(result, Tensor) else result
    if isinstance(several, tuple | list | dict) and len(traced_in(several)) == 1 and len(several) == 1:
        (result,) = traced_in(several)
    elif isinstance(several, tuple | list | dict):
        raise ConversionError(f"{title}: forward returns several values; return the one output tensor")
    if isinstance(result, Tensor) and not isinstance(result, Traced) and bool(result.isnan().any()):
        raise ConversionError(f"{title} cannot be converted:\n  - its output: {OUT_OF_SIGHT}")
    if not isinstance(result, Tensor):
        raise ConversionError(f"{title}: forward returns {type(result).__name__}; return the one output tensor")
    if not isinstance(result, Traced):
        raise ConversionError(f"{title}: what forward returns does not depend on its input")
    if result.problems:
        raise _refusal(title, result.problems)
    _check_repeats(model, tracer.layers.images, result.plain)
    try:
        last = tracer.layers.settled(result.signal, result.plain)
    except (ConversionError, GraphError) as error:
        raise ConversionError(f"{title} cannot be converted:\n  - its output: {error}") from error
    layers = tracer.layers.needed_for(last)
    if not any(isinstance(layer, ClipFloorShift) for layer in layers):
        raise ConversionError(
            f"{title} has no bridge.QCFS activation, so nothing in it would spike: "
            "call bridge.replace_activations(model, levels=...) and train it"
        )
    try:
        graph = LayerGraph(layers)
    except GraphError as error:
        raise ConversionError(f"{title} cannot be converted: {error}") from error
    return graph


def capture_exported(program: ExportedProgram, given: Shape | None, *, maximum: bool = False) -> LayerGraph:
    """The layers of what torch.export made of a model, on images of the shape that it was exported with.

    Where that leaves sizes open, they are those of `given` ``[B, ...]``, if there is one.

    Raises:
        ConversionError: as `capture`, or it takes more than one input.
        InputError: its input has other sizes than `given`, or open ones and none are given.
    """
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(nodes) != 1 or not isinstance(nodes[0].meta.get("val"), Tensor):
        raise ConversionError(f"the exported program takes {len(nodes)} inputs; a network takes exactly one tensor")
    batch, *sizes = nodes[0].meta["val"].shape
    wanted = [size if isinstance(size, int) else None for size in sizes]
    found = wanted if given is None else given[1:]
    if given is not None and (
        len(found) != len(wanted) or any(w not in (None, f) for w, f in zip(wanted, found, strict=True))
    ):
        shown = ", ".join("any" if w is None else str(w) for w in wanted)
        raise InputError(f"example_input: the exported program takes images [{shown}], got {list(found)}")
    if None in found:
        raise InputError(
            "convert: the exported program takes images of any size; pass one: "
            "convert(program, input_shape=(3, 32, 32)), or an example_input"
        )
    if not isinstance(batch, int):  # one that is known to be taken
        batch = program.example_inputs[0][0].shape[0] if program.example_inputs else BATCH
    return capture(program.module(), (batch, *(int(each or 0) for each in found)), maximum=maximum)


def _run(model: nn.Module, given: Shape, batch: int, maximum: bool) -> tuple[Tracer, Any]:
    """The model, followed on random images, and what it returned."""
    title = type(model).__name__
    tracer = Tracer(model, random_images(model, batch, given[1:]), maximum)
    try:
        with _as_it_is(model), tracer.following():
            return tracer, model(tracer.input())
    except StoppedError as stop:
        raise _refusal(title, tracer.found | stop.problems) from stop
    except BridgeError as error:
        raise type(error)(f"{error}{remedy(model, given)}") from error
    except Exception as error:
        if tracer.found:  # the model is of no use anyway, and this may be why
            raise _refusal(title, tracer.found) from error
        if batch != given[0]:  # as a model that torch.export has made for one size of batch
            return _run(model, given, given[0], maximum)
        raise InputError(
            f"example_input: the model does not accept images {list(given[1:])}, at {tracer.at}: "
            f"{error}{remedy(model, given)}"
        ) from error


def _check_repeats(model: nn.Module, images: Tensor, output: Tensor) -> None:
    """Raise `ConversionError` unless the `model` gives the same `output` again, on the same images.

    Else it draws random numbers or counts its calls, or something in it took the traced tensors for others.
    """
    with _as_it_is(model):
        for seed in (torch.manual_seed, random.seed, np.random.seed):  # others than the first time
            seed(1)
        again = _only_tensor(model(images))
    scale = float(output.abs().max()) + 1e-6
    if again is None or again.shape != output.shape or bool(((again - output).abs() > 1e-3 * scale).any()):
        raise ConversionError(f"{type(model).__name__} cannot be converted:\n  - {NOT_REPEATED}")


def _only_tensor(result: Any) -> Tensor | None:
    values = vars(result) if is_dataclass(result) and not isinstance(result, Tensor) else result
    values = list(values.values()) if isinstance(values, dict) else values
    if isinstance(values, tuple | list) and len(values) == 1:
        (values,) = values
    return values if isinstance(values, Tensor) else None


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """`model` at inference, without gradients or compiled functions; whatever running it changes in it is undone."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    try:
        with undisturbed(model), at_inference(model), torch.no_grad(), _not_compiled():
            yield
    finally:
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)


def _not_compiled() -> AbstractContextManager[Any]:
    """Has functions that were given to torch.compile run as they were written."""
    if "torch._dynamo" not in sys.modules:  # importing it takes a second, and nothing is compiled without it
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _refusal(title: str, problems: Iterable[str]) -> ConversionError:
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return ConversionError(f"{title} cannot be converted:\n{listed}")
