"""A tensor that depends on a model's input, and what can be asked of it and of a function's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor

from bridge.converters.torch_models.recognise import MOST_LEVELS
from bridge.converters.torch_models.signals import Signal

LOOKED_AT = 4096
"""Values that are looked at before operations are held against a QCFS, which takes running them again."""


class Traced(Tensor):
    """A tensor that depends on the input: ``plain`` holds its values, ``signal`` what it is made of; its own are NaN.

    ``problems`` says what on the way has no spiking form; its signal then starts anew behind that. ``recipe`` is how it
    was computed, where that was element by element; ``pending`` whether it may become a QCFS yet.
    """

    tracer: Any  # the `Tracer` that follows the model
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


def plain(value: Any, but: Traced | None = None) -> Any:
    """`value` with plain tensors in the place of traced ones, `but` this one."""
    return mapped(value, lambda each: each.plain if isinstance(each, Traced) and each is not but else each)


def name_of(function: Any) -> str:
    """``add`` for torch.add, Tensor.add and torch.ops.aten.add.Tensor; the name of a property."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name == "__get__":
        return str(getattr(function.__self__, "__name__", name))
    if name.startswith("batch_norm") and not isinstance(function, FunctionType):
        return "torch.batch_norm"  # F.batch_norm takes the same arguments in another order
    return name.partition(".")[0]


def changed_in_place(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The argument that a function of this name writes into; None if there is none."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if writes or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__", "__iter__")):
        return args[0] if args else kwargs.get("input", kwargs.get("self"))
    return (args[0] if args else kwargs.get("input")) if kwargs.get("inplace") is True else None


def on_numbers(
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


def bases(value: Traced) -> list[Traced]:
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


def computed(value: Traced, base: Traced, numbers: Tensor) -> Tensor:
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


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    return mapped(value, lambda each: new if each is old else each)


def has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(each, Tensor) for each in value)
    )


def has_levels(value: Tensor) -> bool:
    """Whether a few of the values could be those of a QCFS: none negative, and all whole multiples of the smallest."""
    if value.dim() < 2 or not value.is_floating_point():
        return False
    some = value.detach().reshape(len(value), -1)[0][:LOOKED_AT].double()
    if not bool(some.isfinite().all()) or bool((some < 0).any()):
        return False
    if value.dim() > 2:  # of one channel, which may have a λ of its own
        some = value.detach()[0, 0].reshape(-1)[:LOOKED_AT].double()
        positive = some[some > 0]
        if positive.numel():
            steps = positive / positive.min()
            return bool(((steps - steps.round()).abs() < 0.01 * steps).all()) or bool(steps.max() > MOST_LEVELS)
    return True


def holds_nan(arguments: Any) -> bool:
    """Whether one of the constants among the `arguments` of a function is NaN."""
    found: list[bool] = []

    def look(each: Tensor) -> None:
        if not isinstance(each, Traced) and each.is_floating_point():
            found.append(bool(each.isnan().any()))

    mapped(arguments, look)
    return any(found)


def problems_of(sources: Sequence[Traced]) -> dict[str, None]:
    """All problems on the way to `sources`, in order."""
    return {problem: None for source in sources for problem in source.problems}
