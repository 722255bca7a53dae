"""Progress shows on a terminal and in a notebook, moves while a batch runs, and is nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient
from support import networks

import bridge
from bridge._util import progress
from bridge.validation import backend_runs

VALIDATE = """
    import sys
    sys.path.insert(0, "tests")
    from support import networks
    import bridge
    model, shape = networks.cnn()
    x = networks.dyadic_images(200, shape)
    print("agreed", bridge.convert(model, x).validate(x, 4, ["onnxruntime"]).agreed)
"""


def on_a_terminal(program: str) -> str:
    """What a Python program writes to a terminal that is its standard output and error."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def test_a_validation_in_python_moves_on_a_terminal():
    """By itself, without the command line."""
    written = on_a_terminal(VALIDATE)
    assert "validating: onnxruntime" in written
    assert "agreed True" in written


def test_it_moves_within_a_batch(monkeypatch):
    """It tells of the reference and of every backend of each batch, so that a single batch has more than one step."""
    seen: list[tuple[str, int]] = []
    moves: list[int] = []

    class Bar:
        def __init__(self, description, total):
            seen.append((description, total))

        def __enter__(self):
            return lambda: moves.append(1)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(backend_runs, "bar", Bar)
    model, shape = networks.cnn()
    x = networks.dyadic_images(70, shape)
    bridge.convert(model, x).validate(x, 2, ["snntorch", "onnxruntime"], images={"snntorch": 3})
    assert seen == [("validating: snntorch, onnxruntime", 6)]
    assert len(moves) == 6


def test_one_in_another_shows_nothing(monkeypatch):
    shown: list[str] = []

    class Kind:
        def __init__(self, description, total):
            shown.append(description)

        def __enter__(self):
            return lambda: None

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(progress, "_kind", lambda: Kind)
    for _ in progress.progress(range(2), "outer"):
        assert list(progress.progress(range(3), "inner")) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), progress.bar("failing", 2):
        _ = 1 / 0
    assert list(progress.progress(range(2), "after")) == [0, 1]
    assert list(progress.progress([1], "of one")) == [1]
    assert shown == ["outer", "failing", "after"]


def test_in_a_notebook_without_widgets(monkeypatch):
    """A line of text that moves, and is emptied at the end; a short cell has no trace of it."""
    loop = "for i in progress(range({0}), 'counting'):\n    time.sleep({1})"
    cells = ["import time\nfrom bridge._util.progress import progress", loop.format(8, 0.6), loop.format(3, 0.01)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    states: list[str] = []
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    process = client.process_message

    def noting(message, *rest):
        if message["msg_type"] in ("display_data", "update_display_data"):
            states.append(message["content"]["data"]["text/plain"])
        return process(message, *rest)

    monkeypatch.setattr(client, "process_message", noting)
    client.execute()
    assert len(states) >= 3
    assert all(re.fullmatch(r"counting: \d of 8, \d s", state) for state in states[:-1])
    assert states[-1] == ""
    assert notebook.cells[2].outputs == []
