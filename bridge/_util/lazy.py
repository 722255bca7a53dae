"""Packages whose names and modules are imported when they are first asked for."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Sequence[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of `package` (PEP 562): its public names, and all modules in it.

    Args:
        package: its ``__name__``.
        homes: by module, the names to take from it.
    """
    home = {name: module for module, names in (homes or {}).items() for name in names}

    def get(name: str) -> Any:
        if name in home:
            return getattr(import_module(home[name]), name)
        if not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def shown() -> list[str]:
        modules = (module.name for module in pkgutil.iter_modules(sys.modules[package].__path__))
        return sorted({*home, *(name for name in modules if not name.startswith("_"))})

    return get, shown
