"""Load a checkpoint's weights into a model: other people's names for λ, wrapped models, nothing ever unpickled."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bridge._util.pickles import expect_checkpoint_in_bounds
from bridge.errors import InputError
from bridge.prepare.adapters import is_activation

Model = TypeVar("Model", bound=nn.Module)

THRESHOLD_NAMES = ("threshold", "thresh", "up")
"""What λ is called by `bridge.QCFS`, by the authors' repository and by their older one."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name."""
NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Entries under which training scripts save the weights beside the optimiser and the epoch."""


def load_checkpoint(model: Model, checkpoint: str | Path | Mapping[str, Any]) -> Model:
    """Put the weights in `checkpoint`, the path of a file or a state dict, into `model`, and return it.

    All of them fit, or nothing is changed.

    Of files it reads those that ``torch.save(model.state_dict(), path)`` wrote (with ``weights_only=True``: nothing is
    unpickled) and, by the suffix ``.safetensors``, those in that format. The weights may lie under ``state_dict``,
    ``model_state_dict``, ``model`` or ``net``; names may begin with ``module.`` or ``_orig_mod.``, on either side; a λ
    may be called ``threshold``, ``thresh`` or ``up``, may be ``[]`` or ``[1]``, and fills a λ per channel. ``relu.up``
    also finds ``act.thresh``, as the authors renamed it. A missing ``num_batches_tracked`` keeps the model's.

    A checkpoint of the authors' holds λ but *not the number of levels*: give the model the one it was trained with.
    Example: docs/thresholds.md.

    Raises:
        InputError: `checkpoint` is neither; there is no such file; it is damaged; it holds Python objects, which could
            run any code when read; or its tensors do not fit `model`: the message lists every name that is missing,
            unexpected or of another shape or kind.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"load_checkpoint: expected a torch.nn.Module first, and then its checkpoint; got {type(model).__name__}"
        )
    loaded: object
    if isinstance(checkpoint, Mapping):
        source, loaded = "the state dict", checkpoint
    elif isinstance(checkpoint, str | os.PathLike):
        source, loaded = str(checkpoint), _read(Path(checkpoint))
    else:
        raise InputError(
            f"load_checkpoint: expected the path of a file or a state dict, got {type(checkpoint).__name__}"
        )
    state = _tensors(loaded, source)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    prefix = _wrapped_in(own)
    fitted, problems = _fit(_without(_wrapped_in(state), state), _without(prefix, own))
    if problems:
        if any(name.rpartition(".")[2] in THRESHOLD_NAMES for name in problems.get("unexpected", ())) and not any(
            is_activation(module) for module in model.modules()
        ):
            problems["note"] = ["the model has no QCFS: call bridge.replace_activations(model, levels=...) first"]
        listed = "\n".join(f"  {title}: {', '.join(names)}" for title, names in problems.items())
        raise InputError(f"{source}: its weights do not fit {type(model).__name__}, which was left as it is:\n{listed}")
    model.load_state_dict({prefix + name: value for name, value in fitted.items()}, strict=False)  # checked above
    return model


def _read(path: Path) -> object:
    """What the file at `path` holds, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        expect_checkpoint_in_bounds(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of files that it goes on to refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        # Not chained: torch's message advises to load the file without weights_only.
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise InputError(f"{path}: not a checkpoint, or damaged") from None
        raise InputError(
            f"{path}: refused, because it holds Python objects ({found[1]}), and reading those could run any code. "
            "Where it was trained, save tensors only: torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint, or damaged: {first_line}") from error


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: to read this format, pip install safetensors") from error
    return load_file(path)


def _tensors(loaded: object, source: str) -> dict[str, Tensor]:
    """The state dict in `loaded`, which may be nested. Errors begin with `source`."""
    for _ in NESTED:  # not for ever: a file can hold a dict that holds itself
        if isinstance(loaded, Mapping):
            loaded = next((loaded[name] for name in NESTED if isinstance(loaded.get(name), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(
            f"{source}: expected a state dict, names and their tensors; it holds {_describe(loaded)}. "
            "Save it with torch.save(model.state_dict(), path)"
        )
    odd = [f"{name} ({_describe(value)})" for name, value in loaded.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"{source}: expected a state dict, names and their tensors; not tensors are {', '.join(odd)}")
    return {str(name): value for name, value in loaded.items()}


def _describe(value: object) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else type(value).__name__


def _wrapped_in(names: Iterable[str]) -> str:
    """The wrappers' prefixes that all of `names` share."""
    names, prefix = list(names), ""
    while names:
        wrapper = next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if wrapper is None:
            break
        prefix += wrapper
    return prefix


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """`state` under the names and in the shapes of `own`, and what does not fit, by kind."""
    fitted: dict[str, Tensor] = {}
    unexpected, mismatched = [], []
    for name, value in state.items():
        target = _own_name(name, state, own)
        if target is None or target in fitted:
            unexpected.append(name)
            continue
        is_threshold = target.rpartition(".")[2] in THRESHOLD_NAMES
        if is_threshold and value.numel() == 1 and not is_lazy(own[target]):
            value = value.reshape(()).expand(own[target].shape)
        if reason := _misfit(value, own[target]):
            mismatched.append(f"{target} ({reason})")
        fitted[target] = value
    missing = []
    for name in own.keys() - fitted.keys():
        if name.endswith("num_batches_tracked"):  # not in checkpoints of torch before 0.4.1; nothing depends on it
            fitted[name] = own[name]
        else:
            missing.append(name)
    problems = {"missing": sorted(missing), "unexpected": unexpected, "mismatched": mismatched}
    return fitted, {title: names for title, names in problems.items() if names}


def _own_name(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """What the model calls the checkpoint's `name`; None if it has no such thing."""
    if name in own:
        return name
    base, dot, last = name.rpartition(".")
    if last not in THRESHOLD_NAMES:
        return None
    bases = [base]
    if base == "relu" or base.endswith(".relu"):
        bases.append(base.removesuffix("relu") + "act")
    candidates = [f"{start}{dot}{threshold}" for start in bases for threshold in THRESHOLD_NAMES]
    return next((candidate for candidate in candidates if candidate in own and candidate not in state), None)


def _misfit(value: Tensor, target: Tensor) -> str | None:
    """Why `value` cannot be copied to `target`; None if it can."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return "not a plain tensor"
    if is_lazy(target):
        return (
            None if value.dim() <= 1 and value.numel() > 0 else f"has shape {list(value.shape)}, one a channel wanted"
        )
    if value.shape != target.shape:
        return f"has shape {list(value.shape)}, wanted {list(target.shape)}"
    if value.is_floating_point() != target.is_floating_point() or value.is_complex() != target.is_complex():
        return f"is {value.dtype}, wanted {target.dtype}"
    return None
