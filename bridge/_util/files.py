"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds, and is removed when it fails.

    Makes the folder if it is missing; a link's target is replaced, not the link. Raises `InputError` if `path` is no
    path, or a folder, or cannot be written.
    """
    path = _writable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that nobody else can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _writable(path: str | Path) -> Path:
    if not isinstance(path, str | os.PathLike) or str(path) == "":
        raise InputError(f"expected the path of a file to write, got {path!r}")
    path = Path(path).resolve()
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file to write")
    return path
