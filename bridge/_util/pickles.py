"""Pickles that would take for ever, found before they are loaded.

A tuple of two references to one tuple, and so on, is short in a file, and its hash takes twice the steps at each level:
as a key of a dictionary, sixty levels take longer than anybody waits. The files that are read here have few.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from bridge.errors import InputError

DEEPEST = 20
"""Tuples within each other; a tensor in a checkpoint takes four."""
MEMORY, EXPANSION = 384 * 2**20, 8
"""What a checkpoint may take in memory: so many bytes, and so many times its size beside it. torch packs nothing."""
NESTING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
"""Operations that make what can be hashed out of what can."""


def expect_shallow(pickled: bytes, path: Path) -> None:
    """Raise `InputError` if the pickle from the file at `path` nests tuples deeper than `DEEPEST`."""
    if _deepest_tuple(pickled) > DEEPEST:
        raise InputError(f"{path}: nests tuples more than {DEEPEST} deep, which could take for ever to read")


def expect_checkpoint_in_bounds(path: Path) -> None:
    """Raise `InputError` if the file of torch's at `path` would take far more time or memory than one of its size.

    What cannot be opened passes: whoever reads it says why.
    """
    try:
        path.open("rb").close()
    except OSError:
        return
    try:
        if not zipfile.is_zipfile(path):
            expect_shallow(path.read_bytes(), path)
            return
        with zipfile.ZipFile(path) as archive:
            declared, bound = sum(one.file_size for one in archive.infolist()), MEMORY + EXPANSION * path.stat().st_size
            if declared > bound:
                raise InputError(
                    f"{path}: declares {declared} bytes, which is more than the {bound} of a file of its size"
                )
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    expect_shallow(archive.read(name), path)
    except InputError:
        raise
    except Exception as error:  # zipfile tells damage in many ways
        raise InputError(f"{path}: not a checkpoint, or damaged: {error}") from error


def _deepest_tuple(pickled: bytes) -> int:
    """How deep the pickle nests tuples, by following its operations without carrying them out; 0 if it is damaged."""
    deepest = 0
    stack: list[int | None] = []  # of each value, how deep it is; None is a mark
    memo: dict[int, int] = {}
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            name = operation.name
            if name == "MARK":
                stack.append(None)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                top = stack[-1]
                memo[len(memo) if argument is None else int(argument)] = 0 if top is None else top
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                taken: list[int | None] = []
                for kind in reversed(operation.stack_before):
                    if kind.name == "stackslice":
                        while stack[-1] is not None:
                            taken.append(stack.pop())
                    else:
                        taken.append(stack.pop())
                depth = max((one for one in taken if one is not None), default=0) + 1 if name in NESTING else 0
                deepest = max(deepest, depth)
                stack += [depth] * len(operation.stack_after)
    except Exception:  # a damaged one can lead to anything; reading it says what
        return deepest
    return deepest
