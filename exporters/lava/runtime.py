"""Running Lava Processes to the end, or to a reason why not, and leaving nothing behind. Importing this imports Lava.

Lava runs every Process in a forked child and waits for its messages without limit: a child that fails is only noticed
if no other waits for it first. Here the children are watched while Lava waits, and are always ended by a signal: by
then the results lie in shared memory, and a stop message to a child that has died would never be answered.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from multiprocessing import connection
from typing import Any

import exporters.lava.processes  # noqa: F401  (first of all: it makes Lava importable)
from bridge.errors import BackendError
from exporters.lava import compat

# isort: split
from lava.magma.compiler.compiler_graphs import ProcGroupDiGraphs
from lava.magma.core.model.model import AbstractProcessModel
from lava.magma.core.process.message_interface_enum import ActorType
from lava.magma.core.process.process import AbstractProcess, ProcessServer
from lava.magma.core.process.variable import VarServer
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.runtime.message_infrastructure.multiprocessing import (
    MultiProcessing,
    SharedMemoryManager,
    SystemProcess,
)
from lava.magma.runtime.mgmt_token_enums import MGMT_RESPONSE, enum_equal
from lava.magma.runtime.runtime import Runtime

CHANNEL_SIZE = 2  # messages a channel holds; Lava's 64 would fill /dev/shm, and in lockstep there is one at a time
PATIENCE = 5.0  # seconds in which a failed child's traceback must arrive
PAUSES = (0.0005, 0.02)  # seconds between two looks at the children: at first, and at most
QUIETENED = (None, "lava.magma.compiler.compiler")  # loggers to which Lava adds a handler with every Process or run


_MODELS: dict[type[AbstractProcess], list[type[AbstractProcessModel]]] = {}


def _run_and_end_with_parent(self: SystemProcess) -> None:
    """What each of Lava's processes does; and it ends when its parent has ended, by whatever signal.

    The last one to be forked notices first: the others' pipes are open in it.
    """
    _watch_parent()
    _run(self)


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _start_memory(self: MultiProcessing) -> None:
    """Start the process that keeps Lava's shared memory: it ends with its parent, too."""
    self._smm = SharedMemoryManager()
    self._smm._manager.start(_watch_parent)


_run = SystemProcess.run
MultiProcessing.start = _start_memory
SystemProcess.run = _run_and_end_with_parent

Models = Mapping[type[AbstractProcess], type[AbstractProcessModel]]


def run_to_end(process: AbstractProcess, steps: int, limit: float, tag: str, models: Models | None = None) -> None:
    """Run `process` and all connected to it for `steps` Lava steps in at most `limit` seconds.

    `tag` is the arithmetic, Lava's ``"floating_pt"`` or ``"fixed_pt"``; `models` names, by kind of Process, models to
    take in place of those that Lava would.

    Raises `BackendError` with the child's own traceback if one fails, or if the limit is passed. In every case the
    children are gone afterwards, and so is what they shared through Lava.
    """
    with compat.forking(), quiet():
        runtime = WatchedRuntime(_compile(process, tag, models or {}), limit)
        try:
            runtime.initialize()
            runtime.run_steps(steps)
        finally:
            runtime.end()


def _compile(process: AbstractProcess, tag: str, models: Models) -> Any:
    """Lava's executable of `process` and all connected to it."""
    try:
        config = Loihi2SimCfg(select_tag=tag, exception_proc_model_map=dict(models))
        with _models_sought_once():
            return process.compile(config, {"pypy_channel_size": CHANNEL_SIZE})
    except Exception as error:
        raise BackendError(f"Lava could not compile its processes: {error!r}") from error


@contextmanager
def _models_sought_once() -> Iterator[None]:
    """Remember which models Lava finds for a kind of Process.

    For each Process it executes all modules beside its own again: most of the time that it takes to start.
    """
    seek = ProcGroupDiGraphs._find_proc_models

    def find(proc: AbstractProcess) -> list[type[AbstractProcessModel]]:
        kind = type(proc)
        if kind not in _MODELS:
            _MODELS[kind] = seek(proc)
        return _MODELS[kind]

    ProcGroupDiGraphs._find_proc_models = staticmethod(find)
    try:
        yield
    finally:
        ProcGroupDiGraphs._find_proc_models = staticmethod(seek)


class WatchedRuntime(Runtime):  # type: ignore[misc]
    """Lava's Runtime, except that it looks after its children while it waits for them."""

    def __init__(self, executable: Any, limit: float) -> None:
        super().__init__(executable, ActorType.MultiProcessing)
        self.limit = limit
        self.deadline = time.monotonic() + limit

    @property
    def children(self) -> list[Any]:
        """The forked processes, as far as they have been started."""
        infrastructure = self._messaging_infrastructure
        return infrastructure.actors if infrastructure is not None else []

    def initialize(self, node_cfg_idx: int = 0) -> None:
        """Fork the children. Raises `BackendError` if one of them cannot be built."""
        try:
            with redirect_stdout(StringIO()):  # Lava prints what it raises
                super().initialize(node_cfg_idx)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"Lava could not start: {getattr(error, 'trace', None) or repr(error)}") from error

    def _start_ports(self) -> None:
        """As in Lava, whose next step is to wait for a word from each child: be sure that it comes."""
        super()._start_ports()
        self._watch_until(lambda: not any(queue.empty() for queue in self.exception_q))

    def run_steps(self, steps: int) -> None:
        """Run `steps` steps. Raises `BackendError` if a child fails or time runs out."""
        self.start(RunSteps(num_steps=steps, blocking=False))
        self._watch_until(lambda: all(port.probe() for port in self.service_to_runtime))
        if not all(enum_equal(port.recv(), MGMT_RESPONSE.DONE) for port in self.service_to_runtime):
            self.deadline = min(self.deadline, time.monotonic() + PATIENCE)
            self._watch_until(lambda: False)

    def _watch_until(self, done: Callable[[], bool]) -> None:
        """Sleep until `done`, as long as the children are well and time is left; else raise `BackendError`."""
        pause, longest = PAUSES
        while not done():
            ended = [child for child in self.children if _has_ended(child)]
            if ended:  # which it does where another has failed, whose traceback may come later
                self.deadline = min(self.deadline, time.monotonic() + PATIENCE)
            if time.monotonic() >= self.deadline:
                if ended:
                    raise BackendError("a Lava process ended before the run did, and none gave a reason")
                raise BackendError(
                    f"Lava did not finish within {self.limit:.0f} s: pass fewer images, or raise `time_limit`"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def end(self) -> None:
        """Kill the children and free what they shared. May be called at any stage, more than once."""
        self._is_started = self._is_running = False  # or Lava sends a stop message when this object is deleted,
        for process in self._executable.proc_builders:
            process.runtime = None  # …or one of these is
        children = self.children
        for child in children:
            with suppress(ValueError):  # already closed
                child.kill()
        for child in children:
            with suppress(Exception):  # on joining, Lava unpickles the child's exception, which can fail
                child.join()
        for port in (*self.runtime_to_service, *self.service_to_runtime):
            port._array = []  # a view of memory that is about to go
            port.join()
        if self._messaging_infrastructure is not None:
            self._messaging_infrastructure.smm.shutdown()
        if self._watchdog_manager is not None:
            self._watchdog_manager.stop()


def _has_ended(child: Any) -> bool:
    """Whether `child` ended by itself, without a word. Raises `BackendError` if it failed or died."""
    alive = child.is_alive()
    try:
        failure = child.exception
    except Exception as error:  # an exception that cannot be unpickled
        failure = (error, f"an error that cannot be shown: {error!r}")
    if failure is not None:
        raise BackendError(f"a Lava process failed:\n{failure[1]}") from failure[0]
    if not alive and child.exitcode != 0:
        code = child.exitcode
        hint = "; signal 7 (SIGBUS) means that /dev/shm is full, 9 that memory is" if code and code < 0 else ""
        raise BackendError(f"a Lava process died with exit code {code}{hint}")
    return not alive


@contextmanager
def quiet() -> Iterator[None]:
    """Take back the log handlers that Lava adds to the program's loggers for every Process and every compilation."""
    loggers = [logging.getLogger(name) for name in QUIETENED]
    handlers = [list(logger.handlers) for logger in loggers]
    try:
        yield
    finally:
        for logger, before in zip(loggers, handlers, strict=True):
            logger.handlers[:] = before


def forget(processes: Iterable[AbstractProcess]) -> None:
    """Drop `processes` and their Vars from Lava's registers, which would hold them and their weights for ever."""
    gone = {id(process) for process in processes}
    register, variables = ProcessServer(), VarServer()
    register.processes[:] = [process for process in register.processes if id(process) not in gone]
    variables.vars[:] = [variable for variable in variables.vars if id(variable.process) not in gone]
