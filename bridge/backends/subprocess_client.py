"""A backend whose framework lives in another Python environment: records in, records out, a NIR file as the contract.

``QCFS_BRIDGE_PYTHON_SINABS=/path/to/venv/bin/python`` says where (`variable`). One process there,
`bridge.backends.subprocess_worker`, holds one exported network; its framework is imported once, not at every run. It
ends with the network, with this process, however that ends, and after anything unexpected; a time limit holds for every
request.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import nir
import numpy as np
from numpy.typing import NDArray

from bridge import errors
from bridge._util.checks import time_steps
from bridge.backends.protocol import Availability
from bridge.backends.settings import TIME_LIMIT, time_limit, variable
from bridge.backends.subprocess_worker import IMAGES, NETWORK, RECORD
from bridge.errors import BackendError, GraphError
from bridge.records import SpikeRecord

PROBE_LIMIT = 120.0  # seconds to start Python and import a framework, from a slow disk too
LOOK = 0.5  # seconds between two looks at whether a process that says nothing still lives
PATIENCE = 5.0  # seconds for a killed process to go
OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")  # where this Python finds its packages is not where that one does


@dataclass(frozen=True)
class OtherEnvironment:
    """The backend of the entry point `target`, run by the interpreter `python`.

    Errors of `bridge.errors` are the same as in this process. Anything else that goes wrong over there is a
    `BackendError`, and its message says where the log is: a framework's failure, a process that died, one that did
    not answer within `time_limit` seconds, a Python that is not there.
    """

    name: str
    target: str
    python: str
    time_limit: float = field(default_factory=time_limit)

    def available(self) -> Availability:
        """What the backend says of itself in that environment. Takes two minutes at most."""
        try:
            worker = Worker(self)
            try:
                found = worker.ask("available", min(self.time_limit, PROBE_LIMIT))
            finally:
                worker.end()
        except BackendError as error:
            advice = f"let {variable(self.name)} name a working Python 3.11 or newer, or unset it to use this one"
            return Availability(usable=False, reason=str(error), install=advice, environment=self.python)
        advice = found["install"] or "pip install torch numpy nir h5py, and what that backend needs"
        return Availability(
            usable=found["usable"],
            versions=found["versions"],
            reason=found["reason"],
            install="" if found["usable"] else f"with the pip of {self.python}: {advice}",
            environment=f"{self.python} (Python {found['python']})",
            engine=found["engine"],
        )

    def export(self, graph: nir.NIRGraph) -> RemoteNetwork:
        """The network in a process of that environment. Raises what the backend's own ``export`` does."""
        file = io.BytesIO()
        try:
            nir.write(file, graph, compression=None)
        except Exception as error:  # nir and h5py raise whatever their parts raise
            raise GraphError(f"cannot be written as a NIR file ({type(error).__name__}: {error})") from error
        network = RemoteNetwork(self, file.getvalue())
        network.start()
        return network

    def run(self, native: RemoteNetwork, x: NDArray[np.float32], steps: int, *, membranes: bool = False) -> SpikeRecord:
        """As the backend's own ``run``."""
        return native.run(x, steps, membranes)


class RemoteNetwork:
    """A network in another environment. Runs take turns; threads that are to run at once need one each.

    A pickled one, and a copy, start a process of their own when they are first run. So does a network whose process
    has died.
    """

    def __init__(self, backend: OtherEnvironment, graph: bytes) -> None:
        """`graph` is the content of a NIR file."""
        self.backend = backend
        self.graph = graph
        self._worker: Worker | None = None
        self._turn = threading.Lock()
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[type[RemoteNetwork], tuple[OtherEnvironment, bytes]]:
        return RemoteNetwork, (self.backend, self.graph)

    def start(self) -> Worker:
        """The process that holds the network, a new one unless there is one. Raises what exporting does."""
        if self._worker is not None and self._worker.end.alive:
            return self._worker
        worker = Worker(self.backend)
        try:
            (worker.folder / NETWORK).write_bytes(self.graph)
            worker.ask("export", self.backend.time_limit)
        except BaseException:
            worker.end()
            raise
        self._worker = worker
        return worker

    def run(self, x: NDArray[np.float32], steps: int, membranes: bool) -> SpikeRecord:
        """Run images `x` ``[B, *input]`` over there for `steps` time steps."""
        steps = time_steps(steps)
        if os.getpid() != self._owner:
            raise BackendError(
                f"backend {self.backend.name!r}: this network was exported before this process was forked, and what "
                "it runs in belongs to the other one; export it here, or send it here with pickle"
            )
        with self._turn:
            worker = self.start()
            try:
                np.save(worker.folder / IMAGES, x, allow_pickle=False)
                worker.ask("run", self.backend.time_limit, steps=steps, membranes=membranes)
                record = SpikeRecord.load(worker.folder / RECORD)
                (worker.folder / RECORD).unlink()
            except OSError as error:  # the disk is full, or somebody has removed the folder
                worker.end()
                raise BackendError(f"backend {self.backend.name!r}: cannot pass files on: {error}") from error
            return record


class Worker:
    """One process of the other environment, and the folder in which it works.

    ``end()`` ends it and whatever it has started, and removes the folder; it is called by itself when the object is
    deleted, at the end of this process, and when a request fails unexpectedly. ``end.alive`` tells whether it has not
    been called.
    """

    def __init__(self, backend: OtherEnvironment) -> None:
        """Start it. Raises `BackendError` if there is no such interpreter."""
        self.backend = backend
        self.python = shutil.which(str(Path(backend.python).expanduser()))
        if self.python is None:
            raise BackendError(
                f"backend {backend.name!r}: there is no program {backend.python!r}; "
                f"{variable(backend.name)} is to be the path of a Python interpreter, such as /path/to/venv/bin/python"
            )
        self.folder = Path(tempfile.mkdtemp(prefix="qcfs-bridge-"))
        try:
            _lay_out(self.folder, backend.target)
            with (self.folder / "log").open("wb") as log:
                self.process = subprocess.Popen(
                    [Path(self.python).absolute(), "-m", "bridge.backends.subprocess_worker", backend.target],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self.folder,
                    env={k: v for k, v in os.environ.items() if k not in OURS} | {"PYTHONPATH": str(self.folder)},
                    start_new_session=True,
                )
        except BaseException as error:
            shutil.rmtree(self.folder)
            if isinstance(error, OSError):
                raise BackendError(f"backend {backend.name!r}: {backend.python} does not start: {error}") from error
            raise
        self.end = weakref.finalize(self, _end, os.getpid(), self.process, self.folder)

    def ask(self, do: str, limit: float, **arguments: Any) -> Any:
        """The result of the request `do` of `bridge.backends.subprocess_worker`, which may take `limit` seconds.

        Raises the errors of `bridge.errors` that it raised there. Everything else is a `BackendError` and ends the
        process: what state it would be in is not known.
        """
        try:
            try:
                cast(IO[bytes], self.process.stdin).write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            except OSError:
                self._fail(f"its process {self._how_it_ended()} before {do!r}")
            line = self._line(do, limit)
            try:
                answer = json.loads(line)
                if "done" in answer:
                    return answer["done"]
                known, message = answer["error"]
            except (ValueError, KeyError, TypeError):
                self._fail(f"to {do!r}, {self.python} answered {line[:80]!r}; is it a Python interpreter?")
            if known is None:
                self._fail(f"{do!r} failed in {self.python}: {message}")
        except BaseException:
            self.end()
            raise
        raise cast(type[Exception], getattr(errors, known))(message)

    def _line(self, do: str, limit: float) -> bytes:
        """The next line that it writes."""
        output = cast(IO[bytes], self.process.stdout).fileno()
        deadline = time.monotonic() + limit
        received = b""
        while b"\n" not in received:
            left = deadline - time.monotonic()
            if left <= 0:
                advice = f"pass fewer images, or set {TIME_LIMIT} to more seconds"
                self._fail(f"{self.python} did not answer {do!r} within {limit:g} s: {advice}")
            if wait([output], min(LOOK, left)):
                part = os.read(output, 65536)
                received += part
                gone = not part
            else:  # when it is gone, something that it has started may still hold the pipe open
                gone = self.process.poll() is not None
            if gone:
                self._fail(f"its process {self._how_it_ended()} during {do!r}")
        return received

    def _how_it_ended(self) -> str:
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if status >= 0:
            return f"ended with status {status}"
        return f"was killed by signal {-status} ({signal.strsignal(-status)})"

    def _fail(self, what: str) -> NoReturn:
        """Raise `BackendError`, with the last line of the log and the place where it is kept."""
        log = self.folder / "log"
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        said = [line.strip() for line in lines if line.strip()]
        if said:
            handle, kept = tempfile.mkstemp(prefix=f"qcfs-bridge-{self.backend.name}-", suffix=".log")
            os.close(handle)
            shutil.copyfile(log, kept)
            what += f"; log: {kept}" if said[-1] in what else f"; the last line of {kept}: {said[-1]}"
        raise BackendError(f"backend {self.backend.name!r}: {what}")


def _lay_out(folder: Path, target: str) -> None:
    """Let Python find bridge, exporters and the package of `target` in `folder`; nothing else of this environment."""
    for package in {"bridge", "exporters", target.partition(":")[0].partition(".")[0]}:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise BackendError(f"{target}: there is no package {package!r} here")
        folders = spec.submodule_search_locations
        (folder / (package if folders else f"{package}.py")).symlink_to(folders[0] if folders else str(spec.origin))


def _end(owner: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill `process` and all that it has started, and remove its `folder`; not in a fork of the process `owner`."""
    if os.getpid() != owner:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    for pipe in (process.stdin, process.stdout):
        cast(IO[bytes], pipe).close()
    shutil.rmtree(folder, ignore_errors=True)
