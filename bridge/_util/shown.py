"""What an object shows of itself: arrays by type and shape, collections by number, in one line or in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

LONGEST = 160
"""Letters of a line; a longer one is cut."""
FEW = 4
"""Names and values that are listed; more are counted."""


class Words(str):
    """Text that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Shown:
    """Gives its class a `repr` of one line, and a table in a notebook, of what `_shown_facts` says."""

    def _shown_facts(self) -> dict[str, object]:
        """What is shown, by name: the fields of a dataclass, unless a class knows better."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.repr}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={brief(value)}" for name, value in self._shown_facts().items())
        return f"{type(self).__name__}({inside if len(inside) <= LONGEST else f'{inside[:LONGEST]}…'})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(brief(value))}</td></tr>"
            for name, value in self._shown_facts().items()
        )
        return f"<b>{html.escape(type(self).__name__)}</b><table>{rows}</table>"


def brief(value: Any) -> str:
    """`value` in a few words."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {list(value.shape)}" if len(value.shape) else repr(value.item())
    if isinstance(value, str | Path):
        shown = repr(value) if isinstance(value, Words) else repr(str(value))
        return shown if len(shown) <= LONGEST // 2 else f"{shown[: LONGEST // 2]}…"
    if isinstance(value, Mapping):
        names = ", ".join(map(str, list(value)[:FEW]))
        return f"{len(value)}: {names}{', …' * (len(value) > FEW)}" if value else "none"
    if isinstance(value, tuple | list | set | frozenset):
        plain = all(isinstance(item, int | float | str | None) for item in value)
        if plain and len(value) <= FEW:
            return repr(value)
        return f"{len(value)} {'values' if plain else 'items'}" if value else "none"
    if isinstance(value, Shown):
        return type(value).__name__
    line = repr(value).splitlines()[0] if repr(value) else ""
    return line if len(line) <= LONGEST // 2 else f"{line[: LONGEST // 2]}…"
