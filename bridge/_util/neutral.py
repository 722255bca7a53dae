"""The caller's settings of torch, which decide in which type and where tensors are made: set aside for a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices whose autocast is turned off."""
PROCESSES = [os.getpid()]
"""The process that loaded this module, and if it is a fork of that one, this process."""


@contextmanager
def neutral() -> Iterator[None]:
    """No autocast; tensors are float32 and on the CPU unless they are made otherwise. For this package's own work.

    In a process that was forked torch computes in one thread: the others were its parent's, and it would wait for them.

    The caller's settings are back afterwards. Autocast and the default device are each thread's own. The default type
    is the whole process's: it stays float32 until the last thread has left.
    """
    with ExitStack() as stack:
        if PROCESSES[-1] != os.getpid():
            PROCESSES.append(os.getpid())
            torch.set_num_threads(1)
        stack.enter_context(without_autocast())
        if torch.get_default_device().type != "cpu":  # such a context costs something at every call of torch
            stack.enter_context(torch.device("cpu"))
        DEFAULT_TYPE.enter()
        stack.callback(DEFAULT_TYPE.leave)
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast, and all else as the caller has it: the forward of the caller's own model may rely on that."""
    with ExitStack() as stack:
        for kind in DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _DefaultType:
    """Torch's default type, which several threads may need to be float32 at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._callers = torch.float32

    def enter(self) -> None:
        with self._lock:
            self._notice()
            self._inside += 1
            torch.set_default_dtype(torch.float32)

    def leave(self) -> None:
        with self._lock:
            self._notice()
            self._inside = max(0, self._inside - 1)
            if not self._inside:
                torch.set_default_dtype(self._callers)

    def forked(self) -> None:
        """The process is a fork of another one, without its other threads: it starts with the caller's type."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            torch.set_default_dtype(self._callers)

    def _notice(self) -> None:
        """A type that is set while some thread is inside is meant to last."""
        now = torch.get_default_dtype()
        if not self._inside or now != torch.float32:
            self._callers = now


DEFAULT_TYPE = _DefaultType()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=DEFAULT_TYPE.forked)
