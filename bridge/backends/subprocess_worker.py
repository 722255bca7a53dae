"""The far end of `bridge.backends.subprocess_client`: one backend, in the Python environment that has its framework.

``python -m bridge.backends.subprocess_worker MODULE:CLASS``, started by that module in a temporary folder. A request is
one line of JSON on standard input and its answer one line on standard output; networks, images and records are files in
the folder. All else that is printed here, by whatever a framework starts, goes to standard error.

A request is ``{"do": a method of Served, **arguments}``, an answer ``{"done": result}`` or
``{"error": [class in bridge.errors, or null, message]}``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import queue
import select
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

OLDEST = (3, 11)
LOOK = 1.0  # seconds between two looks at whether the process that started this one is still there

NETWORK, IMAGES, RECORD = "network.nir", "images.npy", "record.npz"


class Served:
    """The backend ``MODULE:CLASS`` and, once exported, a network. The one who reads a file removes it."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.native: Any = None

    def available(self) -> dict[str, Any]:
        """The fields of the backend's `exporters.base.Availability`, and this Python's version."""
        try:
            found = _backend(self.target).available()
        except Exception as error:  # the backend's own module lacks something here, which may show in any way
            reason = f"import {self.target.partition(':')[0]} failed: {type(error).__name__}: {error}"
            return {
                "usable": False,
                "versions": {},
                "reason": reason,
                "install": "",
                "engine": False,
                "python": platform.python_version(),
            }
        return {
            "usable": found.usable,
            "versions": dict(found.versions),
            "reason": found.reason,
            "install": found.install,
            "engine": found.engine,
            "python": platform.python_version(),
        }

    def export(self) -> None:
        """Export the network in the folder."""
        import nir

        path = self.folder / NETWORK
        # nir checks types on reading, and can be told not to, from 1.0.7 on; it takes kernels for square
        unchecked = {"type_check": False} if "type_check" in inspect.signature(nir.read).parameters else {}
        graph = nir.read(path, **unchecked)
        path.unlink()
        self.native = _backend(self.target).export(graph)

    def run(self, steps: int, membranes: bool) -> None:
        """Run the network on the images in the folder, and leave its record there."""
        import numpy as np

        path = self.folder / IMAGES
        images = np.load(path)
        path.unlink()
        _backend(self.target).run(self.native, images, steps, membranes=membranes).save(self.folder / RECORD)


def _backend(target: str) -> Any:
    """A new backend: they have no state."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)()


def _answer(served: Served, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if sys.version_info < OLDEST:
            raise RuntimeError(f"Python {platform.python_version()} is too old, it takes 3.11")
        return {"done": getattr(served, request.pop("do"))(**request)}
    except Exception as error:  # whatever a framework raises
        known = next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "bridge.errors"), None)
        if known is None:
            traceback.print_exc()
        return {"error": [known, str(error) if known else f"{type(error).__name__}: {error}"]}


def _listen(requests: int, waiting: queue.SimpleQueue[dict[str, Any]], folder: Path) -> None:
    """Put what comes in on the file descriptor `requests` into `waiting`, for as long as there is somebody to answer.

    Then end this process and all that it started, even in the middle of a run. The end shows in the pipe, or, if a
    forked child of that process still holds it open, in this process getting another parent.
    """
    parent = os.getppid()
    rest = b""
    while os.getppid() == parent:
        if not select.select([requests], [], [], LOOK)[0]:
            continue
        received = os.read(requests, 65536)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            waiting.put(json.loads(line))
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def main(target: str) -> None:
    """Answer requests until the process that sends them is gone."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    folder = Path.cwd()
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting, folder), daemon=True).start()
    served = Served(target, folder)
    while True:
        os.write(answers, json.dumps(_answer(served, waiting.get())).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
