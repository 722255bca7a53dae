"""Capture a torch model: run it on traced tensors and take the layers that come of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from bridge.converters.remedies import OUT_OF_SIGHT
from bridge.converters.torch_models.input_shape import random_images, remedy
from bridge.converters.torch_models.tracer import StoppedError, Traced, Tracer
from bridge.errors import BridgeError, ConversionError, GraphError, InputError
from bridge.graph import ClipFloorShift, LayerGraph, Shape
from bridge.prepare.inference import at_inference

BATCH = 2
"""Images that a model is run on: two show whether images are mixed; more would show no more."""


def capture(model: nn.Module, given: Shape) -> LayerGraph:
    """The layers of `model` as it runs at inference on images of shape `given` ``[B, ...]``.

    The model is run on random images, not changed; the graph owns copies of its parameters. A module that is called in
    several places becomes a layer for each of them.

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
    tracer, result = _run(model, given, BATCH)
    if isinstance(result, tuple | list | dict):
        raise ConversionError(f"{title}: forward returns several values; return the one output tensor")
    if isinstance(result, Tensor) and not isinstance(result, Traced) and bool(result.isnan().any()):
        raise ConversionError(f"{title} cannot be converted:\n  - its output: {OUT_OF_SIGHT}")
    if not isinstance(result, Traced):
        raise ConversionError(f"{title}: what forward returns does not depend on its input")
    if result.problems:
        raise _refusal(title, result.problems)
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


def capture_exported(program: ExportedProgram) -> LayerGraph:
    """The layers of what torch.export made of a model, on images of the shape that it was exported with.

    Raises `ConversionError` as `capture`, or if it takes more than one input.
    """
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(nodes) != 1 or not isinstance(nodes[0].meta.get("val"), Tensor):
        raise ConversionError(f"the exported program takes {len(nodes)} inputs; a network takes exactly one tensor")
    sizes = [each if isinstance(each, int) else BATCH for each in nodes[0].meta["val"].shape]
    return capture(program.module(), tuple(sizes))


def _run(model: nn.Module, given: Shape, batch: int) -> tuple[Tracer, Any]:
    """The model, followed on random images, and what it returned."""
    title = type(model).__name__
    tracer = Tracer(model, random_images(model, batch, given[1:]))
    try:
        with at_inference(model), torch.no_grad(), _not_compiled(), tracer.following():
            return tracer, tracer.module(model, (tracer.input(),), {})
    except StoppedError as stop:
        raise _refusal(title, tracer.found | stop.problems) from stop
    except BridgeError as error:
        raise type(error)(f"{error}{remedy(model, given)}") from error
    except Exception as error:
        if tracer.found:  # the model is of no use anyway, and this may be why
            raise _refusal(title, tracer.found) from error
        if batch != given[0]:  # as a model that torch.export has made for one size of batch
            return _run(model, given, given[0])
        raise InputError(
            f"example_input: the model does not accept images {list(given[1:])}, at {tracer.at}: "
            f"{error}{remedy(model, given)}"
        ) from error


def _not_compiled() -> AbstractContextManager[Any]:
    """Has functions that were given to torch.compile run as they were written."""
    if "torch._dynamo" not in sys.modules:  # importing it takes a second, and nothing is compiled without it
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _refusal(title: str, problems: Iterable[str]) -> ConversionError:
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return ConversionError(f"{title} cannot be converted:\n{listed}")
