"""Packages that only some tests need."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def needs(module: str, extra: str) -> ModuleType:
    """The `module`, which the extra `extra` brings. Where it is missing: skips on a user's machine, fails in CI."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f'{module} cannot be imported ({error}); pip install -e ".[{extra}]"'
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
