"""Runs a model's forward, for real, on tensors that note what is computed of them.

Nothing is read from the model's code: its forward runs as Python runs it, with its default arguments, tests on shapes,
parametrizations and hooks. Each torch function that gets a `Traced` tensor comes here (torch's ``__torch_function__``
protocol), is carried out on plain tensors, and becomes layers or a change of a `Signal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bridge.converters.remedies import (
    AS_MATRIX,
    DEPENDS_ON_DATA,
    ENLARGES,
    OUT_OF_SIGHT,
    SCRIPTED,
    WRITES,
)
from bridge.converters.torch_models import rules
from bridge.converters.torch_models.contractions import by_matrix
from bridge.converters.torch_models.joins import joined
from bridge.converters.torch_models.layer_list import LayerList
from bridge.converters.torch_models.measuring import measure, measure_matrix
from bridge.converters.torch_models.recognise import recognise
from bridge.converters.torch_models.refusals import REMEDIES, why_not
from bridge.converters.torch_models.signals import Signal
from bridge.converters.torch_models.traced import (
    Traced,
    bases,
    changed_in_place,
    computed,
    has_levels,
    has_tensors,
    holds_nan,
    mapped,
    name_of,
    on_numbers,
    plain,
    problems_of,
    replaced,
    traced_in,
)
from bridge.errors import BridgeError, ConversionError, GraphError
from bridge.prepare.adapters import as_qcfs, is_activation
from bridge.prepare.qcfs import QCFS

READS_DATA = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist"),
    *("numpy", "is_nonzero", "equal", "allclose", "__reduce_ex__", "__dlpack__"),
}
"""Functions that hand the data to Python, which may then do anything with them."""

SAME_VALUES = {
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "contiguous", "clone", "detach"),
    *("detach_", "requires_grad_", "alias", "_to_copy", "positive", "__pos__", "data", "real", "conj"),
}
"""Functions whose result has the values of their argument, in another type or place perhaps."""

MOVES = {
    *(
        "chunk",
        "flatten",
        "narrow",
        "permute",
        "movedim",
        "moveaxis",
        "reshape",
        "select",
        "split",
        "squeeze",
        "swapaxes",
    ),
    *(
        "swapdims",
        "t",
        "tensor_split",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
        "reshape_as",
    ),
    *("T", "mT", "flip", "fliplr", "flipud", "roll", "rot90", "expand", "expand_as", "repeat", "tile", "ravel"),
    *("pixel_unshuffle", "pixel_shuffle", "channel_shuffle", "native_channel_shuffle", "index_select", "diagonal"),
    *("hsplit", "vsplit", "dsplit", "repeat_interleave", "split_with_sizes", "slice", "_unsafe_view", "__getitem__"),
}
"""Functions known to move data and to do no more. What is in none of these lists is measured."""


class StoppedError(Exception):
    """The model cannot be run further. ``problems`` says why."""

    def __init__(self, problems: dict[str, None]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Tracer:
    """Turns what a model's forward does into layers, one operation after another, while it runs."""

    def __init__(self, model: nn.Module, images: Tensor, maximum: bool) -> None:
        self.layers = LayerList(images, maximum)
        self.found: dict[str, None] = {}
        self.at = type(model).__name__
        self._paths: dict[nn.Module, str] = {
            module: path for path, module in reversed(list(model.named_modules(remove_duplicate=False)))
        }
        self._stack: list[nn.Module] = []

    def input(self) -> Traced:
        """The model's input."""
        images = self.layers.images
        return self.traced(images, Signal(self.layers.input, tuple(images.shape)), {})

    def traced(self, value: Tensor, signal: Signal, problems: dict[str, None]) -> Traced:
        """`value`, traced."""
        # What gets round this class, as TorchScript does, computes NaN, and is noticed.
        result = torch.full((), float("nan")).expand(value.shape).as_subclass(Traced)
        self.layers.note_precision(value)
        result.tracer, result.plain, result.signal, result.problems = self, value, signal, problems
        result.recipe, result.pending = None, False
        return result

    # What the model's forward calls

    @contextmanager
    def following(self) -> Iterator[None]:
        """Have each module that is called on a traced tensor called by `module`."""
        call = nn.Module.__call__

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.module(module, args, kwargs) if traced_in((args, kwargs)) else call(module, *args, **kwargs)

        nn.Module.__call__ = called  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = call  # type: ignore[method-assign]

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a `module` with its hooks, but neither compiled nor spread over devices; an activation as a whole."""
        if type(module) in (nn.DataParallel, nn.parallel.DistributedDataParallel) and not _has_hooks(module):
            return module.module(*args, **kwargs)  # type: ignore[operator]
        original = getattr(module, "_orig_mod", None)  # of what torch.compile returns
        if isinstance(original, nn.Module) and not _has_hooks(module):
            return original(*args, **kwargs)
        self._stack.append(module)
        self.at = self._where()
        try:
            if isinstance(module, torch.jit.ScriptModule):
                raise StoppedError({f"{self.at}: {SCRIPTED}": None})
            if not is_activation(module):
                return module._call_impl(*args, **kwargs)
            try:
                qcfs = as_qcfs(module)
            except ConversionError as error:  # it cannot be run either
                raise StoppedError({f"{self.at}: {error}": None}) from error
            assert qcfs is not None
            own = module.__dict__.get("forward")
            forward = own if own is not None else partial(type(module).forward, module)
            module.__dict__["forward"] = lambda *args, **kwargs: self._activation(qcfs, forward, args, kwargs)
            try:
                return module._call_impl(*args, **kwargs)
            finally:
                del module.__dict__["forward"]
                if own is not None:
                    module.__dict__["forward"] = own
        finally:
            self._stack.pop()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out a torch `function` of which some arguments are traced."""
        name = name_of(function)
        if name == "__deepcopy__":
            return self.call(torch.clone, args[:1], {})
        if name == "__iter__":
            return iter(self.call(torch.unbind, args, {}))
        self.at = self._where(name)
        sources = traced_in((args, kwargs))
        if name in READS_DATA:
            for problem in problems_of(sources):  # what was read is of no other use
                self.found.pop(problem, None)
            raise StoppedError({f"{self.at}: {DEPENDS_ON_DATA}": None})
        changed = changed_in_place(name, args, kwargs)
        if changed is None:
            value = function(*plain(args), **plain(kwargs))
            return self._noted(name, function, args, kwargs, sources, value) if has_tensors(value) else value
        if not isinstance(changed, Traced):
            raise StoppedError({f"{self.at}: {WRITES}": None})

        def apart(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            return changed_in_place(name, args, kwargs)

        before = self.traced(changed.plain.clone(), changed.signal, changed.problems)
        before.recipe, before.pending = changed.recipe, changed.pending
        function(*plain(args), **plain(kwargs))
        args, kwargs = replaced(args, changed, before), replaced(kwargs, changed, before)
        sources = [before if each is changed else each for each in sources]
        result = self._noted(name, apart, args, kwargs, sources, changed.plain, in_place=True)
        if not isinstance(result, Traced):  # a constant has been written over all of it
            result = self.traced(changed.plain, self.layers.constant(changed.plain), {})
        changed.signal, changed.problems = result.signal, result.problems
        changed.recipe, changed.pending = result.recipe, result.pending
        return changed

    def _noted(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[Traced],
        value: Any,
        in_place: bool = False,
    ) -> Any:
        """`value`, the result of a `function`, traced."""
        problems = problems_of(sources)
        again = on_numbers(function, args, kwargs, sources)
        try:
            own = args[0] if args else kwargs.get("input", kwargs.get("self"))
            if name in SAME_VALUES and isinstance(own, Traced) and value.is_floating_point():
                result = self.traced(value, own.signal, own.problems)
                result.recipe, result.pending = (lambda number: number, [own]), own.pending
                return result
            moves = name in MOVES and not in_place and isinstance(value, Tensor | tuple | list)
            if moves and isinstance(own, Traced):
                return self._moved(function, plain(args, own), plain(kwargs, own), own, value)
            pending = any(source.pending for source in sources)
            rule = rules.FUNCTIONS.get(name) or (None if pending else rules.SHORT_CUTS.get(name))
            rule = None if in_place else rule
            signal = self._ruled(rule, name, args, kwargs, value) if rule is not None else None
            if signal is not None:
                return self.traced(value, signal, problems)
            result = self._measured(name, again, sources, value)
        except (ConversionError, GraphError) as error:
            why = OUT_OF_SIGHT if holds_nan((args, kwargs)) else str(error)
            result, pending = self._refused(why, value, problems), True
        if not isinstance(result, Traced) or any(source.plain.shape != result.plain.shape for source in sources):
            return result
        result.recipe, result.pending = (again, sources), pending
        found = self._recognised(result) if pending else None
        return result if found is None else found

    def _ruled(
        self, rule: rules.Rule, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> Signal | None:
        """What `rule` makes of the function of this `name`; None if its arguments have another form."""
        try:
            return rule(self.layers, self._title(name), args, kwargs, value)
        except BridgeError:
            raise
        except (TypeError, ValueError, IndexError, AttributeError, KeyError):
            return None

    def _recognised(self, value: Traced) -> Traced | None:
        """A QCFS, if that is what the operations since one of the tensors before `value` computed."""
        if not has_levels(value.plain):
            return None
        for base in bases(value):
            qcfs = recognise(partial(computed, value, base), tuple(value.plain.shape))
            if qcfs is None:
                continue
            try:
                signal = rules.activation(self.layers, self._title("qcfs"), base, qcfs, value.plain)
            except (ConversionError, GraphError):
                continue
            return self.traced(value.plain, signal, base.problems)
        return None

    def _refused(self, why: str, value: Any, problems: dict[str, None]) -> Any:
        """`value`, of which no layer can be made. What follows is looked at all the same."""
        new = {f"{self.at}: {why}": None}
        self.found |= new
        return mapped(value, lambda each: self.traced(each, self.layers.stand_in(each), problems | new))

    def _moved(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], source: Traced, value: Any
    ) -> Any:
        """What comes of a function that only moves data."""
        several = isinstance(value, tuple | list)

        def move(numbers: Tensor) -> list[Tensor]:
            moved = function(*replaced(args, source, numbers), **replaced(kwargs, source, numbers))
            return list(moved) if several else [moved]

        signals = source.signal.moved(move, self._title(name_of(function)))
        values = value if several else [value]
        results = [self.traced(*each, source.problems) for each in zip(values, signals, strict=True)]
        return type(value)(results) if several else results[0]

    def _measured(self, name: str, again: Callable[..., Any], sources: list[Traced], value: Any) -> Any:
        """What comes of a function that takes no more than sums and multiples of data, found by measuring it."""
        problems = problems_of(sources)
        values = list(value) if isinstance(value, tuple | list) else [value]
        title = self._title(name)
        found = measure(again, [tuple(source.plain.shape) for source in sources])
        if found is None or len(found) != len(values):
            why = REMEDIES.get(name, AS_MATRIX)
            matrix = None
            if len(sources) == len(values) == 1 and why != ENLARGES:
                matrix = measure_matrix(again, sources[0].plain.shape)
            if matrix is None:
                larger = any(values[0].numel() > source.plain.numel() for source in sources)
                raise ConversionError(why_not(name, self._kind(), len(sources), larger))
            return self.traced(value, by_matrix(self.layers, title, sources[0], matrix, value, why), problems)
        results: list[Tensor] = []
        for each, (parts, offset) in zip(values, found, strict=True):
            terms = [
                part.of(source.signal, title) for part, source in zip(parts, sources, strict=True) if part is not None
            ]
            if not terms:  # a constant
                results.append(each)
                continue
            results.append(self.traced(each, joined(self.layers, terms, offset, title), problems))
        return type(value)(results) if isinstance(value, tuple | list) else results[0]

    def _activation(
        self, qcfs: QCFS, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What comes of a module that computes what `qcfs` does."""
        self.at = self._where()
        (source, *_) = traced_in((args, kwargs))
        value = forward(*plain(args), **plain(kwargs))
        try:
            signal = rules.activation(self.layers, self._title(), source, qcfs, value)
            return self.traced(value, signal, source.problems)
        except (ConversionError, GraphError) as error:
            return self._refused(str(error), value, source.problems)

    # Names

    def _leaf(self) -> nn.Module | None:
        """The module that is running, if it has no others inside, or none that matter."""
        module = self._stack[-1] if self._stack else None
        if module is None or (any(True for _ in module.children()) and not is_activation(module)):
            return None
        return module

    def _kind(self) -> str:
        leaf = self._leaf()
        return "" if leaf is None else type(leaf).__name__

    def _title(self, function: str = "") -> str:
        """What the layers of the operation at hand are called: as the module, or as the function in a larger one."""
        leaf = self._leaf()
        if leaf is None or not self._paths.get(leaf):
            return function.strip("_") or self._kind().lower() or "layer"
        return self._paths[leaf]

    def _where(self, function: str = "") -> str:
        """The operation at hand, for messages."""
        module = self._leaf() or (self._stack[-1] if self._stack else None)
        shown = "" if module is None else f"{self._paths.get(module) or 'the model'} ({type(module).__name__})"
        if not function or self._leaf() is not None:
            return shown
        return f"{function.strip('_')} in {shown}" if shown else function.strip("_")


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
