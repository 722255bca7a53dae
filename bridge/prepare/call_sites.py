"""A model's operations in training or at inference, traced by torch.fx, and where in its code each one is called."""

from __future__ import annotations

import contextlib
import dis
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import signature
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from bridge.errors import ConversionError
from bridge.prepare.adapters import is_activation

Frames = tuple[tuple[str, int, int], ...]
"""Nested calls, each as the file, the first line of the function and the instruction that it was at."""


class Site(NamedTuple):
    """Where an operation is called: in which module, by which instruction of its forward, called from where.

    ``number`` counts those that are else the same, as in a loop.
    """

    owner: str
    inside: Frames
    outside: Frames
    number: int


CONSTANT = "_tensor_constant"
"""How torch.fx begins the name of a tensor that forward makes."""

TORCH_MODULES = ("torch.nn.", "torch.ao.")
"""Where torch's own layers are defined."""

REGISTERS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Trace:
    """The operations of a model in one mode. `left` are the modules inside it that could not be followed."""

    graph: fx.Graph
    sites: dict[fx.Node, Site]
    left: dict[nn.Module, str]


class _Tracer(fx.Tracer):
    """Follows a forward with its optional arguments at their defaults.

    Buffers are data, so that what changes them is an operation too, not something done to the model while tracing.
    """

    proxy_buffer_attributes = True

    def __init__(self, left: Collection[nn.Module] = (), whole: Callable[[nn.Module], bool] = is_activation) -> None:
        super().__init__()
        self.left = left
        self.whole = whole
        self.sites: dict[fx.Node, Site] = {}
        self.failed: nn.Module | None = None
        self._seen: Counter[tuple[str, Frames, Frames]] = Counter()
        self._gradients = torch.is_grad_enabled()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.left or self.whole(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        return super().is_leaf_module(m, module_qualified_name) and all(map(_of_torch, m.modules()))

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        _, *arguments = signature(root_fn).parameters.values()
        given = [a for a in arguments if a.kind in (Argument.POSITIONAL_ONLY, Argument.POSITIONAL_OR_KEYWORD)]
        if not given:
            args: tuple[Any, list[Any]] = super().create_args_for_root(root_fn, is_module, concrete_args)
            return args
        required = [a for a in given if a.default is Argument.empty] or given[:1]
        return root_fn, [self.root, *(self.create_proxy("placeholder", a.name, (), {}) for a in required)]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not any(m is each for each in self.root.modules()):  # as a slice of a Sequential, made on the way
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and a not in self.tensor_attrs and not any(a is b for b in self._held()):
            a = next((value for value in constants(self.root).values() if _equal(value, a)), a)
        return super().create_arg(a)

    def _held(self) -> Iterator[Tensor]:
        yield from self.root.parameters()
        yield from self.root.buffers()

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        if self.root.training and torch.is_grad_enabled() is not self._gradients:
            raise ConversionError("it switches gradients off or on inside, which torch.fx does not follow")
        # Annotations can be strings, with which a GraphModule cannot be pickled.
        node: fx.Node = super().create_node(kind, target, args, kwargs, name, None)
        owner = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        inside, outside = _frames(sys._getframe(1))
        self.sites[node] = Site(owner, inside, outside, self._seen[owner, inside, outside])
        self._seen[owner, inside, outside] += 1
        return node


def _frames(frame: FrameType | None) -> tuple[Frames, Frames]:
    """The frames from `frame` out to where the tracer was started, before and after the nearest call of a module."""
    found: list[list[tuple[str, int, int]]] = [[], []]
    outside = False
    while frame is not None and frame.f_code is not _follow_once.__code__:
        outside |= frame.f_code is _Tracer.call_module.__code__
        found[outside].append((frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti))
        frame = frame.f_back
    return tuple(found[0]), tuple(found[1])


def has_options(module: nn.Module) -> bool:
    """Whether the forward of `module` can be called with arguments that a trace of it alone does not have."""
    return any(
        a.default is not Argument.empty or a.kind in (Argument.VAR_POSITIONAL, Argument.VAR_KEYWORD)
        for a in signature(module.forward).parameters.values()
    )


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(TORCH_MODULES) or is_activation(module)


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
    return alike and bool(torch.equal(one, other))


def constants(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that the forward of `model` makes itself, by the names that traces give them."""
    return {name: value for name, value in vars(model).items() if name.startswith(CONSTANT)}


def follow(
    model: nn.Module, training: bool, whole: Callable[[nn.Module], bool], left: dict[nn.Module, str] | None = None
) -> Trace:
    """The operations of `model` in train or eval mode, to be called inside `undisturbed`.

    A module inside it whose forward cannot be followed is left whole, as is one in `left` or of which `whole` is true.

    Raises:
        ConversionError: the forward of `model` itself cannot be followed.
    """
    try:
        model.train(training)
    except NotImplementedError as error:
        raise ConversionError("it has no modes, as an exported program; replace before torch.export") from error
    try:
        trace = _follow(model, whole, left or {}, buffers_as_data=True)
        if len(trace.left) <= len(left or {}):
            return trace
    except ConversionError:
        return _follow(model, whole, left or {}, buffers_as_data=False)
    with contextlib.suppress(ConversionError):  # a forward may look into a buffer to decide what it does
        other = _follow(model, whole, left or {}, buffers_as_data=False)
        return min(trace, other, key=lambda each: len(each.left))
    return trace


def _follow(
    model: nn.Module, whole: Callable[[nn.Module], bool], left: dict[nn.Module, str], buffers_as_data: bool
) -> Trace:
    left = dict(left)
    while True:
        tracer = _Tracer(left, whole)
        tracer.proxy_buffer_attributes = buffers_as_data
        try:
            graph = _follow_once(tracer, model)
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).split("\n")[0]
            if tracer.failed is None or tracer.failed in left or tracer.failed not in model.modules():
                raise ConversionError(why) from error
            left[tracer.failed] = why
        else:
            used = {model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
            left |= {
                module: "it is scripted; replace before torch.jit.script"
                for module in used
                if isinstance(module, torch.jit.ScriptModule)
            }
            return Trace(graph, tracer.sites, {module: why for module, why in left.items() if module in used})


def _follow_once(tracer: _Tracer, model: nn.Module) -> fx.Graph:
    states = _random_states()
    # What was made in torch.inference_mode has no version; it is not trained either.
    watched = (b for b in model.buffers() if not is_lazy(b) and not b.is_inference())
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in watched]
    try:
        graph = tracer.trace(model)
    finally:
        changed = [(buffer, value) for buffer, version, value in buffers if buffer._version != version]
        for buffer, value in changed:
            buffer.data.copy_(value)
    if changed:
        raise ConversionError("it changes a buffer in place")
    if _random_states() != states:
        raise ConversionError("it draws random numbers of a size that does not depend on its input")
    return graph


def _random_states() -> tuple[Any, ...]:
    kind, keys, *position = np.random.get_state()  # noqa: NPY002, the one that models draw from
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, np.asarray(keys).tobytes(), position


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[set[str]]:
    """Whatever tracing does to `model` and to the random numbers is undone at the end.

    Gives a set which holds, in the end, the attributes that forward has set.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    python = (module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule))
    contents = {module: dict(vars(module)) for module in python}
    inside = [
        (held, held.copy()) for module in contents for held in map(vars(module).get, REGISTERS) if held is not None
    ]
    paths = {module: path for path, module in model.named_modules()}
    changed: set[str] = set()
    try:
        yield changed
    finally:
        for module, attributes in contents.items():
            now = dict(vars(module))
            vars(module).clear()
            vars(module).update(attributes)
            names = (n for n in now | attributes if n != "training" and not n.startswith(CONSTANT))
            changed |= {f"{paths[module]}.{n}".lstrip(".") for n in names if now.get(n, n) is not attributes.get(n, n)}
        for held, before in inside:
            held.clear()
            held.update(before)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


def mentions(modules: Iterable[nn.Module], names: Collection[str]) -> bool:
    """Whether the code of one of the `modules`, or of a function that one of them uses, calls any of `names`.

    It is read, not run; a module's own attributes of such names, as in ``self.relu``, count where they are functions.
    """
    waiting: list[FunctionType] = []
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            if any(f"aten::{name}(" in str(module.inlined_graph) for name in names):
                return True
        elif not _of_torch(module):
            own = [value for value in vars(module).values() if callable(value)]
            if any(getattr(value, "__name__", None) in names for value in own):
                return True
            classes = (cls for cls in type(module).__mro__ if not cls.__module__.startswith(TORCH_MODULES))
            own += [value for cls in classes for value in vars(cls).values()]
            waiting += [value for value in own if isinstance(value, FunctionType)]
    seen: set[FunctionType] = set()
    while waiting:
        function = waiting.pop()
        if function in seen or str(function.__module__).startswith("torch."):
            continue
        seen.add(function)
        used = set(_names(function.__code__))
        if used & set(names):
            return True
        reached = (function.__globals__.get(name) for name in used)
        waiting += [value for value in reached if isinstance(value, FunctionType)]
    return False


def _names(code: CodeType) -> Iterator[str]:
    """The names that `code` loads, but for those of what its first argument, self, holds."""
    first = code.co_varnames[:1]
    of_self = False
    for instruction in dis.get_instructions(code):
        value = instruction.argval
        if isinstance(value, CodeType):
            yield from _names(value)
        elif instruction.opname.startswith("LOAD_FAST"):
            of_self = (value[-1:] if isinstance(value, tuple) else (value,)) == first
        elif instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            of_self = False
        if instruction.opname.startswith("LOAD_") and isinstance(value, str) and not of_self:
            yield value
