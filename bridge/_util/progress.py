"""Progress bars that show on a terminal, or in a notebook with ipywidgets, and leave no trace anywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Sequence[Item], description: str) -> Iterable[Item]:
    """The `items`, with a bar that tells how many have been taken and vanishes at the end.

    Without rich, which a backend's own Python need not have, there is no bar.
    """
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return items
    console = Console(stderr=True)
    # Without ipywidgets rich writes a warning into the notebook in place of the bar.
    if not (console.is_terminal or (console.is_jupyter and find_spec("ipywidgets"))):
        return items
    return track(items, description=description, transient=True, console=console)
