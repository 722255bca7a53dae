"""Putting QCFS where a model has ReLU, and average pooling where it has maximum pooling."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from bridge.errors import ConversionError
from bridge.prepare.adapters import is_activation
from bridge.prepare.call_sites import constants, follow, has_options, mentions, undisturbed
from bridge.prepare.inference import device_and_dtype, note_shape
from bridge.prepare.qcfs import QCFS
from bridge.prepare.replaceable import MAX_POOLS, POOL_NAMES, RELU_NAMES, average, is_relu
from bridge.prepare.traced_calls import TracedCalls

LOG = logging.getLogger("bridge")


def replace_activations(
    model: nn.Module,
    levels: int,
    threshold: float = 2.0,
    per_channel: bool = False,
    max_pool: Literal["avg"] | None = None,
) -> nn.Module:
    """Put a `QCFS` of its own where each ``ReLU`` or ``ReLU6`` was. Changes `model` in place; returns the model to use.

    That is `model` itself, unless its forward *calls* a ReLU (or a pooling that is to be replaced) as a function, as
    in ``F.relu(x)``, ``x.relu_()`` or ``x.clamp(min=0)``: then it is a module that shares the model's modules and has
    modules in place of these calls, traced by torch.fx in train and in eval mode. In ``train()`` it does what the model
    did in training: dropout and batch norm that are called as functions, auxiliary outputs. Its methods are those of
    `torch.nn.Module`, and optional arguments of forward are fixed to their defaults. It is a `torch.fx.GraphModule`
    where training and inference are the same operations.

    Rebuild the optimiser: λ are new parameters. A ReLU module that the model calls in several places stays one shared
    module, so these places share one λ. What was replaced is logged, at level INFO to the logger "bridge", and kept
    as text in the returned model's ``replaced_activations``. Once that model has been run, its ``input_shape`` tells
    `bridge.convert` what it takes. Example: docs/thresholds.md.

    Args:
        model: any module; a bare ``nn.ReLU`` comes back as a `QCFS`. In a ``DataParallel`` the model inside is changed.
        levels: L of every activation.
        threshold: λ at the start. Small ones (2) train better at low latency than the 8 of the authors' code.
        per_channel: one λ per channel.
        max_pool: "avg" also replaces maximum by average pooling, in one and two dimensions, adaptive or not, with the
            same kernel, stride, padding and ceil_mode, as QCFS's authors do.

    Raises:
        ConversionError: there is no ReLU to replace, a pooling to be replaced is dilated, returns indices or depends
            on the data, or the model is compiled, scripted or in a DistributedDataParallel. `model` is unchanged.

    Warns:
        UserWarning: a part of the model cannot be followed by torch.fx, so functions that it calls stay; or something
            that its forward did in training no longer happens.
    """
    if max_pool not in (None, "avg"):
        raise ConversionError(f'max_pool: expected "avg" or None, got {max_pool!r}')
    _check(model)
    if isinstance(model, nn.DataParallel):
        model.module = replace_activations(model.module, levels, threshold, per_channel, max_pool)
        model.replaced_activations = model.module.replaced_activations
        return model

    changes = _Changes(model, lambda: QCFS(levels, threshold, per_channel), pools=max_pool is not None)
    replaced = changes.modules.get(model)
    if replaced is None:
        changes.look_for_calls(model)
    if not changes.relus():
        has = "has QCFS already" if any(isinstance(m, QCFS) for m in model.modules()) else "has no ReLU or ReLU6"
        raise ConversionError(
            ". ".join(
                [f"replace_activations: {type(model).__name__} {has}, so there is nothing to replace", *changes.notes]
            )
        )
    if replaced is None:
        replaced = changes.apply()
    for note in changes.notes:
        warnings.warn(f"replace_activations: {note}", stacklevel=2)
    replaced.replaced_activations = changes.summary()  # type: ignore[assignment]  # not a module
    replaced.register_forward_pre_hook(note_shape)
    LOG.info("%s: replaced %s", type(model).__name__, replaced.replaced_activations)
    return replaced


def _check(model: object) -> None:
    """Raise `ConversionError` for what is no module, or a module whose forward can no longer be changed."""
    if not isinstance(model, nn.Module):
        raise ConversionError(f"replace_activations: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("replace_activations: the model is scripted; replace first, then call torch.jit.script")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ConversionError("replace_activations: the model is compiled; replace first, then call torch.compile")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ConversionError(
            "replace_activations: a DistributedDataParallel would not learn of the new λ; "
            "pass model.module and wrap what is returned"
        )


class _Changes:
    """What is to be replaced in a model, found without changing it; `apply` does it.

    ``modules`` holds the new module for each old one, ``calls`` what is to be done in each traced module: the model,
    or parts of it where the model itself cannot be followed. ``notes`` are what the user is to be warned of.
    """

    def __init__(self, model: nn.Module, activation: Callable[[], nn.Module], pools: bool) -> None:
        self.model = model
        self.pools = pools
        self.names = RELU_NAMES | POOL_NAMES if pools else RELU_NAMES
        self._make = activation
        self._like = device_and_dtype(model)
        self.paths = {module: path or type(model).__name__ for path, module in model.named_modules()}
        self.modules: dict[nn.Module, nn.Module] = {}
        for module, path in self.paths.items():
            if is_relu(module):
                self.modules[module] = self.activation().train(module.training)
            elif pools and isinstance(module, MAX_POOLS):
                self.modules[module] = average(module, path).train(module.training)
        self.calls: dict[nn.Module, TracedCalls] = {}
        self.notes: list[str] = []

    def activation(self) -> nn.Module:
        """A new one, where the model's parameters are."""
        return self._make().to(**self._like)

    def relus(self) -> int:
        """How many ReLU are to be replaced."""
        return sum(isinstance(new, QCFS) for new in (*self.modules.values(), *self._in_calls()))

    def _in_calls(self) -> list[nn.Module]:
        return [new for calls in self.calls.values() for new in calls.made.values()]

    def summary(self) -> str:
        """What is replaced, such as "17 ReLU (3 of them calls) and 1 maximum pool"."""
        parts = []
        for title, one in (("ReLU", True), ("maximum pool", False)):
            calls = sum(isinstance(new, QCFS) is one for new in self._in_calls())
            total = calls + sum(isinstance(new, QCFS) is one for new in self.modules.values())
            of_them = f" ({calls} of them {'calls' if calls > 1 else 'a call'})" if calls else ""
            parts += [f"{total} {title}{'' if one or total == 1 else 's'}{of_them}"] if total else []
        return " and ".join(parts)

    def look_for_calls(self, module: nn.Module) -> None:
        """Trace `module` in both modes, or the modules inside it where it cannot be followed."""
        calls = TracedCalls(module, self.modules, self.activation, self.pools)
        with undisturbed(module) as stored:
            try:
                evaluated = follow(module, False, self._stays_whole)
            except ConversionError as error:
                self._look_inside(module, str(error))
                return
            calls.rewrite(evaluated)
            not_in_training = ""
            try:
                trained = follow(module, True, self._stays_whole, evaluated.left)
                for left, why in trained.left.items():
                    if left not in evaluated.left and mentions(left.modules(), self.names):
                        raise ConversionError(why)
            except ConversionError as error:
                not_in_training = str(error)
            else:
                calls.rewrite(trained)
            calls.constants = constants(module)
        if calls.made or calls.rewired:
            self.calls[module] = calls
            self._note_lost(module, not_in_training, sorted(stored))
        elif not_in_training and mentions(module.modules(), self.names):
            self._note_unfollowed(module, f"in train mode: {not_in_training}")
        for left, why in evaluated.left.items():
            self._look_inside(left, why)

    def _stays_whole(self, module: nn.Module) -> bool:
        return module in self.modules or is_activation(module)

    def _look_inside(self, module: nn.Module, why: str) -> None:
        """Do with the modules inside `module`, which cannot be followed, what can be done."""
        if mentions([module], self.names):
            self._note_unfollowed(module, why)
        for child in module.children() if not isinstance(module, torch.jit.ScriptModule) else ():
            if child in self.calls or not mentions(child.modules(), self.names):
                continue
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                self._look_inside(child, why)
            elif has_options(child):
                self._note_unfollowed(child, f"what {self.paths[module]} passes to it is not known, as {why}")
            else:
                self.look_for_calls(child)

    def _note_unfollowed(self, module: nn.Module, why: str) -> None:
        kinds = "ReLU or maximum pooling" if self.pools else "ReLU"
        self.notes.append(
            f"{self._title(module)}: its forward cannot be followed by torch.fx ({why}), so each {kinds} that it "
            "calls as a function stays; use modules there, as nn.ReLU"
        )

    def _note_lost(self, module: nn.Module, not_in_training: str, stored: list[str]) -> None:
        """Note what `module` did beside returning its outputs, which graphs do not do."""
        remedy = "use modules, as nn.ReLU, in place of the calls, and it stays as it is"
        if not_in_training:
            self.notes.append(
                f"{self._title(module)}: its forward cannot be followed by torch.fx in train mode ({not_in_training}), "
                "so in train() it now does what it does in eval(): dropout and batch norm that it calls as functions, "
                "auxiliary outputs and whatever else depends on self.training no longer happen in training (modules, "
                f"as nn.Dropout, still do); {remedy}"
            )
        if alone := self.calls[module].at_inference_only():
            self.notes.append(
                f"{self._title(module)}: its forward calls in eval() alone the ReLU that {', '.join(alone)} replaces, "
                "whose λ will not learn in train(); call it in one place for both modes, or use modules, as nn.ReLU"
            )
        if stored:
            self.notes.append(f"{self._title(module)}: its forward no longer sets {', '.join(stored)}; {remedy}")
        own = [each for each in self.calls[module].gone() if type(each).train is not nn.Module.train]
        if own:
            titles = ", ".join(map(self._title, own))
            self.notes.append(f"{self._title(module)}: train() as {titles} defines it is no longer called; {remedy}")

    def _title(self, module: nn.Module) -> str:
        path, kind = self.paths[module], type(module).__name__
        return path if path == kind else f"{path} ({kind})"

    def apply(self) -> nn.Module:
        """Replace the modules in the model; the model to use, which is another if it calls what is replaced."""
        places = list(self.model.named_modules(remove_duplicate=False))
        self._put(places, self.modules)
        # From the inside out: what is rebuilt holds what is rebuilt inside it.
        for module, calls in reversed(self.calls.items()):
            if module is self.model:
                return calls.build()
            self._put(places, {module: calls.build()})
        return self.model

    def _put(self, places: list[tuple[str, nn.Module]], new: dict[nn.Module, nn.Module]) -> None:
        for path, module in places:
            if module in new:
                parent, _, name = path.rpartition(".")
                setattr(self.model.get_submodule(parent), name, new[module])
