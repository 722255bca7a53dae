"""Other people's QCFS layers, known by what they hold and checked by what they compute; their code is never imported.

Two layouts are known, both by the authors of Bu et al., ICLR 2022: the activation of ``putshua/ANN_SNN_QCFS``, which
holds ``thresh`` (λ, a tensor of one element), ``L`` (levels) and ``T`` (0 while it is an ANN), and that of the older
``putshua/SNN_conversion_QCFS``, which holds ``up`` (λ) and ``t`` (levels). `register_activation` teaches others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bridge.errors import ConversionError
from bridge.prepare.qcfs import QCFS

ToQCFS = Callable[[Any], "QCFS | tuple[int, float | Tensor]"]


class _Layout(NamedTuple):
    """Under which names a foreign layer holds λ, L and, if it can also spike, its number of time steps."""

    threshold: str
    levels: str
    steps: str | None


LAYOUTS = (_Layout("thresh", "L", "T"), _Layout("up", "t", None))

_registered: dict[type[nn.Module], ToQCFS] = {}


def register_activation(cls: type[nn.Module], to_qcfs: ToQCFS) -> None:
    """Have modules of class `cls`, and of its subclasses, converted as the QCFS that ``to_qcfs(module)`` returns.

    The nearest registered class in a module's inheritance order counts, and before any layout known here. Registering
    a class again replaces what it had, so that a notebook cell can be run twice. Example: docs/thresholds.md.

    Args:
        cls: a class of `torch.nn.Module`.
        to_qcfs: takes the module, returns a `bridge.QCFS`, or ``(levels, threshold)`` with threshold λ one number or a
            1-d tensor, one value a channel. It must compute what the module computes: this is not checked.

    Raises:
        ConversionError: `cls` is not a module class, or `to_qcfs` cannot be called.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConversionError(f"register_activation: expected a class of torch.nn.Module, got {cls!r}")
    if not callable(to_qcfs):
        raise ConversionError(f"register_activation: to_qcfs must be a function of the module, got {to_qcfs!r}")
    _registered[cls] = to_qcfs


def unregister_activation(cls: type[nn.Module]) -> None:
    """Forget what `register_activation` was told about `cls`; nothing happens if that was nothing.

    ```python
    bridge.unregister_activation(MyQuantizedReLU)
    ```
    """
    _registered.pop(cls, None)


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is a QCFS of any kind known here, usable or not.

    Cheap, runs nothing, and may be asked while torch.fx traces.
    """
    return isinstance(module, QCFS) or _converter(module) is not None or _layout(module) is not None


def as_qcfs(module: nn.Module) -> QCFS | None:
    """The `bridge.QCFS` that computes what `module` does; None if it is no activation known here.

    A `bridge.QCFS` comes back as it is. Anything else gives a new one, on the same device and of the same precision,
    that shares nothing with `module`. A layer known by its layout is run on a few numbers, one in each quarter of each
    step, and must return what QCFS does. Do not call this while torch.fx traces (there a module's attributes are
    proxies): call it before, or after with the module.

    Raises:
        ConversionError: `module` is such a layer, but it is set to spike, its λ or levels are unusable, or it computes
            something else. The message does not know the layer's path in the model.
    """
    convert = _converter(module)
    if convert is not None:
        return _by_registration(module, convert)
    if isinstance(module, QCFS):
        return module
    layout = _layout(module)
    return None if layout is None else _by_layout(module, layout)


def _converter(module: nn.Module) -> ToQCFS | None:
    return next((_registered[cls] for cls in type(module).__mro__ if cls in _registered), None)


def _by_registration(module: nn.Module, convert: ToQCFS) -> QCFS:
    title = type(module).__name__
    try:
        made = convert(module)
        if isinstance(made, tuple) and len(made) == 2:
            made = QCFS(*made)
    except Exception as error:
        raise ConversionError(f"the function registered for {title} failed: {error}") from error
    if not isinstance(made, QCFS):
        raise ConversionError(
            f"the function registered for {title} must return a bridge.QCFS or (levels, threshold), got {made!r}"
        )
    return made


def _layout(module: nn.Module) -> _Layout | None:
    """The layout that `module` has: every attribute of the right type, and no parameter besides λ."""
    for layout in LAYOUTS:
        threshold = _attribute(module, layout.threshold)
        numbers = [_attribute(module, name) for name in (layout.levels, layout.steps) if name]
        if (
            isinstance(threshold, Tensor)
            and not is_lazy(threshold)
            and threshold.is_floating_point()
            and all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
            and all(parameter is threshold for parameter in module.parameters())
        ):
            return layout
    return None


def _attribute(module: nn.Module, name: str) -> object:
    """`module`'s own attribute `name` or None, past ``__getattr__``, which torch.fx replaces while it traces."""
    own = {**vars(module), **dict(module.named_buffers(recurse=False)), **dict(module.named_parameters(recurse=False))}
    return own.get(name, getattr(type(module), name, None))


def _by_layout(module: nn.Module, layout: _Layout) -> QCFS:
    title = type(module).__name__
    steps = getattr(module, layout.steps) if layout.steps else 0
    if steps != 0:
        raise ConversionError(
            f"{title} is set to spike for {layout.steps} = {steps} steps; the ANN is what converts: "
            f"set {layout.steps} = 0 in each of them (in the authors' models, model.set_T(0))"
        )
    levels, threshold = getattr(module, layout.levels), getattr(module, layout.threshold).detach()
    if not (levels >= 1 and float(levels).is_integer()):
        raise ConversionError(
            f"{title}: its levels {layout.levels} must be a whole number of at least 1, got {levels!r}; "
            "set them to what it was trained with"
        )
    if threshold.numel() != 1:
        raise ConversionError(
            f"{title}: its λ, {layout.threshold}, should be one number and has shape {list(threshold.shape)}; "
            "if that is one λ a channel, tell bridge.register_activation how to read it"
        )
    if not (math.isfinite(threshold.item()) and threshold.item() > 0):
        raise ConversionError(
            f"{title}: its λ, {layout.threshold}, must be positive and finite, got {threshold.item():g}; "
            "retrain, or set it by hand"
        )
    qcfs = QCFS(int(levels))
    qcfs.threshold = nn.Parameter(threshold.clone().reshape(()))
    _check_same(module, qcfs, layout)
    return qcfs.train(module.training)


def _check_same(module: nn.Module, qcfs: QCFS, layout: _Layout) -> None:
    """Run both where rounding cannot matter: four values a step, each an eighth of a step or more from the next tie."""
    title = type(module).__name__
    levels, threshold = qcfs.levels, qcfs.threshold.item()
    z = (torch.arange(-8, 4 * levels + 8) + 0.5).reshape(1, -1) / (4 * levels) * threshold
    with torch.no_grad():
        expected = copy.deepcopy(qcfs).float().cpu()(z)
        try:
            # A copy, so that nothing happens to the user's; forward, so that no hook of theirs runs.
            got = copy.deepcopy(module).float().cpu().forward(z.clone())
        except Exception as error:
            raise ConversionError(f"{title} looks like a QCFS layer but could not be run: {error}") from error
    if not (isinstance(got, Tensor) and got.shape == z.shape):
        raise ConversionError(f"{title} looks like a QCFS layer but does not keep the shape of its input")
    wrong = (got - expected).abs() > threshold / (8 * levels)
    if bool(wrong.any()):
        where = int(wrong.flatten().nonzero()[0])
        names = ", ".join(name for name in layout if name)
        raise ConversionError(
            f"{title} holds {names} as a QCFS layer does, but does not compute QCFS: at {z[0, where]:.4g} it gives "
            f"{got[0, where]:.4g} and not {expected[0, where]:.4g}. If it has a QCFS of other parameters, tell "
            "bridge.register_activation which"
        )
