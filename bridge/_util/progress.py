"""Progress bars that show on a terminal or in a notebook, and leave no trace anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, TypeVar

Item = TypeVar("Item")
Advance = Callable[[], None]

PATIENCE = 2.0
"""Seconds before a line of text shows in a notebook that has no widgets: short cells keep no trace of it."""
OFTEN = 0.5
"""Seconds between two states of that line."""

_shown: ContextVar[bool] = ContextVar("shown", default=False)
"""Whether a bar is there: what runs within it shows no other."""


def progress(items: Sequence[Item], description: str) -> Iterable[Item]:
    """The `items`, with a bar that tells how many have been taken and vanishes at the end."""
    with bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A bar that moves by one of `total` each time that what is returned is called, and vanishes at the end.

    Without rich, which a backend's own Python need not have, there is no bar.
    """
    kind = None if _shown.get() or total < 2 else _kind()
    if kind is None:
        yield lambda: None
        return
    token = _shown.set(True)
    try:
        with kind(description, total) as advance:
            yield advance
    finally:
        _shown.reset(token)


def _kind() -> Callable[[str, int], Any] | None:
    """What can be shown here."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    if console.is_jupyter and not find_spec("ipywidgets"):  # there rich would write a warning in place of the bar
        return _line
    return _rich if console.is_terminal or console.is_jupyter else None


@contextmanager
def _rich(description: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(description, total=total)
        yield lambda: shown.advance(task)


@contextmanager
def _line(description: str, total: int) -> Iterator[Advance]:
    """A line of text, in a notebook."""
    from IPython.display import display as _display

    display: Callable[..., Any] = _display
    begun = last = time.monotonic()
    handle: Any = None
    done = 0

    def advance() -> None:
        nonlocal handle, last, done
        done += 1
        now = time.monotonic()
        if now - begun < PATIENCE or now - last < OFTEN:
            return
        last = now
        text = {"text/plain": f"{description}: {done} of {total}, {now - begun:.0f} s"}
        if handle is None:
            handle = display(text, raw=True, display_id=True)
        else:
            handle.update(text, raw=True)

    yield advance
    if handle is not None:
        handle.update({"text/plain": ""}, raw=True)
