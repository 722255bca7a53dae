"""Loops as machine code, by numba, kept on disk for the next program. To import this needs numba."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger(__name__)

inner = numba.njit(nogil=True, error_model="numpy")
"""Compiles a function that other compiled ones call."""


def outer(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, once: what comes of it is kept on disk where there is a folder for that."""
    compiled = inner(function)
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # no folder that can be written to
        logger.info("%s is not kept for the next program: %s", function.__name__, error)
    return compiled
