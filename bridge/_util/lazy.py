"""Packages whose public names are imported when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Sequence[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of `package` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: by module, the public names to take from it.
        submodules: of the package; they, too, are public.
    """
    home = {name: module for module, names in homes.items() for name in names}
    rooms = frozenset(submodules)

    def get(name: str) -> Any:
        if name in home:
            return getattr(import_module(home[name]), name)
        if name in rooms:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted([*home, *rooms])
