"""Files appear whole or not at all, and nothing else is left in their folder, whenever the program is killed.

What is written is first put together in memory, then into a file without a name, which the system removes with the
program, and then given its name at once. Where there are no such files, a hidden one takes their place.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from bridge.errors import FileError, InputError

HIDDEN = ".bridge-"
STALE = 600.0
"""Seconds after which a hidden file is nobody's: one lives for less than a thousandth."""


@contextmanager
def replacing(path: str | Path) -> Iterator[BytesIO]:
    """What the block writes becomes the file at `path` when the block succeeds; else nothing changes.

    Makes the folder if it is missing. A link's target is replaced, not the link, and an old file's permissions stay. A
    pipe or a terminal, such as ``/dev/stdout``, is written to as it is.

    Raises:
        InputError: `path` is no path, or a folder, or a disk.
        FileError: the system does not let it be written: no permission, no space, a name too long.
    """
    if not isinstance(path, str | os.PathLike) or str(path) == "" or "\0" in str(path):
        raise InputError(f"expected the path of a file to write, got {path!r}")
    path = Path(path)
    with _reported(path):
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            content = BytesIO()
            yield content
            _into(path, content)
            return
        target = path.resolve(strict=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _Unnamed(target.parent) as file:  # before anything is computed for it
            content = BytesIO()
            yield content
            file.move_to(target, content, None if mode is None else stat.S_IMODE(mode))


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn the system's errors into this package's."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other, before Python 3.13
        if isinstance(error, RuntimeError) and "loop" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(f"{path}: cannot be written: {reason}") from error


def _mode(path: Path) -> int | None:
    """What there is at `path`, where its links lead; None: nothing yet. Raises `InputError` for what is never meant."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{path}: is a disk or a socket; give the path of a file to write")
    return mode


def _into(path: Path, content: BytesIO) -> None:
    """Write `content` to the pipe or device at `path`; a pipe without a reader is an error, not a long wait."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.getbuffer())


def _remove_stale(folder: Path) -> None:
    """Remove hidden files that a program left which was killed between naming one and putting it in its place."""
    for left in folder.glob(f"{HIDDEN}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


class _Unnamed:
    """A file in a folder that has no name yet, if the system knows such; else a hidden one."""

    def __init__(self, folder: Path) -> None:
        _remove_stale(folder)
        self._hidden = folder / f"{HIDDEN}{secrets.token_hex(6)}"
        self._named = False
        try:
            self._descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):
            self._make_hidden()

    def _make_hidden(self) -> None:
        self._descriptor = os.open(self._hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        self._named = True

    def move_to(self, target: Path, content: BytesIO, mode: int | None) -> None:
        """Put it at `target`, with this `content` and the permissions `mode`; None: those of a new file."""
        self._write(content)
        if not self._named and not self._get_a_name():
            os.close(self._descriptor)
            self._make_hidden()
            self._write(content)
        if mode is not None:
            os.fchmod(self._descriptor, mode)
        self._hidden.replace(target)
        self._named = False

    def _write(self, content: BytesIO) -> None:
        left = content.getbuffer()
        while len(left):
            left = left[os.write(self._descriptor, left) :]

    def _get_a_name(self) -> bool:
        """Give it the hidden name, which an unnamed file gets by way of /proc; false where there is none."""
        try:  # with a descriptor of a folder, Python takes the call that follows the link
            os.link(
                f"/proc/self/fd/{self._descriptor}", self._hidden, src_dir_fd=self._descriptor, follow_symlinks=True
            )
        except OSError:
            return False
        self._named = True
        return True

    def __enter__(self) -> _Unnamed:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
        if self._named:
            with suppress(OSError):
                self._hidden.unlink()
