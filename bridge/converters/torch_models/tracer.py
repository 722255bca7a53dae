"""Runs a model's forward, for real, on tensors that note what is computed of them.

Nothing is read from the model's code: its forward runs as Python runs it, with its default arguments, tests on shapes,
parametrizations and hooks. Each torch function that gets a `Traced` tensor comes here (torch's ``__torch_function__``
protocol), is carried out on plain tensors, and becomes layers or a change of a `Signal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
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
from bridge.errors import ConversionError, GraphError
from bridge.prepare.adapters import as_qcfs, is_activation
from bridge.prepare.qcfs import QCFS

READS_DATA = {
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist"),
    *("numpy", "is_nonzero", "equal", "allclose", "__reduce_ex__", "__deepcopy__", "__dlpack__"),
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


class Traced(Tensor):
    """A tensor that depends on the input: ``plain`` holds its values, ``signal`` what it is made of; its own are NaN.

    ``problems`` says what on the way has no spiking form; its signal then starts anew behind that. ``recipe`` is how it
    was computed, where that was element by element; ``pending`` whether it may become a QCFS yet.
    """

    tracer: Tracer
    plain: Tensor
    signal: Signal
    problems: dict[str, None]
    recipe: tuple[Callable[..., Any], list[Traced]] | None
    pending: bool

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return traced_in((args, kwargs))[0].tracer.call(func, args, kwargs)


def traced_in(value: Any) -> list[Traced]:
    """The traced tensors in nested tuples, lists and dicts, each once."""
    found: dict[int, Traced] = {}

    def look(value: Any) -> None:
        if isinstance(value, Traced):
            found[id(value)] = value
        elif isinstance(value, tuple | list):
            for each in value:
                look(each)
        elif isinstance(value, dict):
            look(list(value.values()))

    look(value)
    return list(found.values())


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with `change` made of every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    if isinstance(value, tuple | list):
        made = [mapped(each, change) for each in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {key: mapped(each, change) for key, each in value.items()}
    return value


def plain(value: Any) -> Any:
    """`value` with plain tensors in the place of traced ones."""
    return mapped(value, lambda each: each.plain if isinstance(each, Traced) else each)


def name_of(function: Any) -> str:
    """``add`` for torch.add, Tensor.add and torch.ops.aten.add.Tensor; the name of a property."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":
        return str(getattr(function.__self__, "__name__", name))
    if name.startswith("batch_norm") and not isinstance(function, FunctionType):
        return "torch.batch_norm"  # F.batch_norm takes the same arguments in another order
    return name.partition(".")[0]


class StoppedError(Exception):
    """The model cannot be run further. ``problems`` says why."""

    def __init__(self, problems: dict[str, None]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Tracer:
    """Turns what a model's forward does into layers, one operation after another, while it runs."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.layers = LayerList(images)
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
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return module.module(*args, **kwargs)
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):  # what torch.compile returns
            return module._orig_mod(*args, **kwargs)  # type: ignore[operator]
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
        if name == "__iter__":
            return iter(self.call(torch.unbind, args, {}))
        self.at = self._where(name)
        sources = traced_in((args, kwargs))
        if name in READS_DATA:
            for problem in _problems_of(sources):  # what was read is of no other use
                self.found.pop(problem, None)
            raise StoppedError({f"{self.at}: {DEPENDS_ON_DATA}": None})
        changed = _changed_in_place(name, args, kwargs)
        if changed is None:
            value = function(*plain(args), **plain(kwargs))
            return self._noted(name, function, args, kwargs, sources, value) if _has_tensors(value) else value
        if not isinstance(changed, Traced):
            raise StoppedError({f"{self.at}: {WRITES}": None})

        def apart(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            return _changed_in_place(name, args, kwargs)

        function(*plain(args), **plain(kwargs))
        result = self._noted(name, apart, args, kwargs, sources, changed.plain, in_place=True)
        changed.signal, changed.problems = result.signal, result.problems
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
        problems = _problems_of(sources)
        on_numbers = _on_numbers(function, args, kwargs, sources)
        try:
            if name in SAME_VALUES and value.is_floating_point():
                result = self.traced(value, sources[0].signal, problems)
                result.recipe, result.pending = (lambda number: number, sources[:1]), sources[0].pending
                return result
            if name in MOVES and len(sources) == 1 and not in_place and isinstance(value, Tensor | tuple | list):
                return self._moved(function, args, kwargs, sources[0], value)
            pending = any(source.pending for source in sources)
            rule = rules.FUNCTIONS.get(name) or (None if pending else rules.SHORT_CUTS.get(name))
            rule = None if in_place else rule
            signal = rule(self.layers, self._title(name), args, kwargs, value) if rule is not None else None
            if signal is not None:
                return self.traced(value, signal, problems)
            result = self._measured(name, on_numbers, sources, value)
        except (ConversionError, GraphError) as error:
            why = OUT_OF_SIGHT if _holds_nan((args, kwargs)) else str(error)
            result, pending = self._refused(why, value, problems), True
        if not isinstance(result, Traced) or any(source.plain.shape != result.plain.shape for source in sources):
            return result
        result.recipe, result.pending = (on_numbers, sources), pending
        found = self._recognised(result) if pending else None
        return result if found is None else found

    def _recognised(self, value: Traced) -> Traced | None:
        """A QCFS, if that is what the operations since one of the tensors before `value` computed."""
        for base in _bases(value):
            qcfs = recognise(partial(_computed, value, base), tuple(value.plain.shape))
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
            moved = function(*_replaced(args, source, numbers), **_replaced(kwargs, source, numbers))
            return list(moved) if several else [moved]

        signals = source.signal.moved(move, self._title(name_of(function)))
        values = value if several else [value]
        results = [self.traced(*each, source.problems) for each in zip(values, signals, strict=True)]
        return type(value)(results) if several else results[0]

    def _measured(self, name: str, on_numbers: Callable[..., Any], sources: list[Traced], value: Any) -> Any:
        """What comes of a function that takes no more than sums and multiples of data, found by measuring it."""
        problems = _problems_of(sources)
        values = list(value) if isinstance(value, tuple | list) else [value]
        title = self._title(name)
        found = measure(on_numbers, [tuple(source.plain.shape) for source in sources])
        if found is None or len(found) != len(values):
            why = REMEDIES.get(name, AS_MATRIX)
            matrix = None
            if len(sources) == len(values) == 1 and why != ENLARGES:
                matrix = measure_matrix(on_numbers, sources[0].plain.shape)
            if matrix is None:
                raise ConversionError(why_not(name, self._kind(), len(sources)))
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


def _changed_in_place(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The argument that a function of this name writes into; None if there is none."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if writes or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__", "__iter__")):
        return args[0] if args else kwargs.get("input", kwargs.get("self"))
    return (args[0] if args else kwargs.get("input")) if kwargs.get("inplace") is True else None


def _on_numbers(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], sources: list[Traced]
) -> Callable[..., Any]:
    """`function` with these arguments, of float64 tensors in the place of `sources`."""
    options = {key: each for key, each in kwargs.items() if key != "dtype"}

    def on_numbers(*numbers: Tensor) -> Any:
        new = {id(source): number for source, number in zip(sources, numbers, strict=True)}

        def change(each: Tensor) -> Tensor:
            if id(each) in new:
                return new[id(each)]
            each = each.detach().cpu()
            return each.double() if each.is_floating_point() else each

        return function(*mapped(args, change), **mapped(options, change))

    return on_numbers


def _bases(value: Traced) -> list[Traced]:
    """The tensors from which alone `value` was computed element by element, the last one first."""
    order: list[Traced] = []

    def visit(each: Traced) -> None:
        if not any(each is other for other in order):
            for source in each.recipe[1] if each.recipe else ():
                visit(source)
            order.append(each)

    visit(value)
    settled = [each for each in order if not each.pending]
    return settled[::-1]


def _computed(value: Traced, base: Traced, numbers: Tensor) -> Tensor:
    """What `value` would be if `base` were `numbers`."""
    known: dict[int, Any] = {id(base): numbers}

    def compute(each: Traced) -> Any:
        if id(each) not in known:
            if each.recipe is None:
                known[id(each)] = each.plain.detach().cpu().double()
            else:
                function, sources = each.recipe
                known[id(each)] = function(*(compute(source).clone() for source in sources))
        return known[id(each)]

    result: Tensor = compute(value)
    return result


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    return mapped(value, lambda each: new if each is old else each)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(each, Tensor) for each in value)
    )


def _holds_nan(arguments: Any) -> bool:
    """Whether one of the constants among the `arguments` of a function is NaN."""
    found: list[bool] = []

    def look(each: Tensor) -> None:
        if not isinstance(each, Traced) and each.is_floating_point():
            found.append(bool(each.isnan().any()))

    mapped(arguments, look)
    return any(found)


def _problems_of(sources: Sequence[Traced]) -> dict[str, None]:
    """All problems on the way to `sources`, in order."""
    return {problem: None for source in sources for problem in source.problems}
