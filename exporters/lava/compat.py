"""What lava-nc 0.10.0 needs to import and to compute right on Python 3.11 and numpy 2.

lava-nc declares Python 3.10 and numpy 1, and its repository is archived, so these fixes will stay what they are.
Call `apply` before the first ``import lava``; it may be called again at any time and does nothing where a fix is not
needed. Nothing outside Lava stays changed, except that Lava chooses ``fork`` as this program's start method if no
start method was chosen before (Lava does that itself, on import).

1. Python ≥ 3.11 refuses a dataclass whose default value is unhashable; Lava has one such class.
2. Lava's import calls ``multiprocessing.set_start_method``, which fails if any start method was chosen before, be it
   the same one. Lava itself works only with ``fork``: run it under `forking`.
3. Lava's Conv holds kernel size, stride, padding, dilation and groups as int8: from 128 on, numpy 2 raises
   OverflowError and numpy 1 computes zeros.
4. ``numpy.reshape(newshape=...)`` is deprecated from numpy 2.1 on and gone in 2.4; Lava's reshaped ports use it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNHASHABLE_DEFAULT = "lava.magma.compiler.var_model"
LOCK = threading.RLock()
"""Held while Lava is imported, or this program's start method changed: both are the whole process's."""
FORKING: dict[str, Any] = {}
"""While threads run Lava: how many, and the start method that was chosen before the first one did."""
CONV_PARAMETERS = ("kernel_size", "stride", "padding", "dilation", "groups")


def apply() -> None:
    """Import Lava's core with every fix in place. Raises `ImportError` if Lava is not installed.

    One thread at a time: a second one would import what the first has not yet put right.
    """
    with LOCK, _start_method_left_alone():
        _import_unhashable_default()
        importlib.import_module("lava.magma.runtime.runtime")  # the module that sets the start method comes with it
        _widen_conv_parameters()
        _reshape_without_newshape()


@contextmanager
def forking() -> Iterator[None]:
    """Let Lava fork its processes, whatever start method the program chose for its own.

    That choice is put back once no thread needs it any more.
    """
    with LOCK:
        if not FORKING:
            FORKING["chosen"] = multiprocessing.get_start_method(allow_none=True)
            FORKING["threads"] = 0
        FORKING["threads"] += 1
        multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        with LOCK:
            FORKING["threads"] -= 1
            if FORKING["threads"] == 0:
                multiprocessing.set_start_method(FORKING["chosen"], force=True)
                FORKING.clear()


@contextmanager
def _start_method_left_alone() -> Iterator[None]:
    """Let Lava set the start method on import, then go back to the one chosen before, if there was one."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        yield
    finally:
        if chosen is not None:
            multiprocessing.set_start_method(chosen, force=True)


def _import_unhashable_default() -> None:
    """Import the one module with an unhashable default while dataclasses are hashable, which satisfies the check."""
    if UNHASHABLE_DEFAULT in sys.modules:
        importlib.import_module(UNHASHABLE_DEFAULT)  # waits for another thread that may still be importing it
        return
    original = dataclasses.dataclass
    # The decorator is looked up in `dataclasses` while the module runs, so nobody else sees the changed one.
    dataclasses.dataclass = functools.partial(original, unsafe_hash=True)
    try:
        importlib.import_module(UNHASHABLE_DEFAULT)
    finally:
        dataclasses.dataclass = original


def _widen_conv_parameters() -> None:
    models = importlib.import_module("lava.proc.conv.models")
    for parameter in CONV_PARAMETERS:
        getattr(models.AbstractPyConvModel, parameter).d_type = np.int32


def _reshape_without_newshape() -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        return
    port = importlib.import_module("lava.magma.core.process.ports.ports").ReshapePort
    port.get_transform_func_fwd = lambda self: functools.partial(_reshape, to=self.shape)
    port.get_transform_func_bwd = lambda self: functools.partial(_reshape, to=self.old_shape)


def _reshape(data: NDArray[Any], to: tuple[int, ...]) -> NDArray[Any]:
    return np.reshape(data, to)
