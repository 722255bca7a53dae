"""Loops as machine code, by numba, kept on disk for the next program. To import this needs numba."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba

logger = logging.getLogger(__name__)

ANY_ORDER = {"reassoc", "contract", "nsz", "nnan"}
"""Lets sums of floats be taken in any order, several at once: for sums of which the last bits do not matter."""

inner = numba.njit(nogil=True, error_model="numpy")
"""Compiles a function that other compiled ones call."""


def outer(function: Callable[..., Any], *, any_order: bool = False) -> Any:
    """Compile a function that Python calls, once: what comes of it is kept on disk where there is a folder for that.

    With `any_order`, floats may be added in another order than the function's.
    """
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=ANY_ORDER if any_order else False)(function)
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # no folder that can be written to
        logger.info("%s is not kept for the next program: %s", function.__name__, error)
    return compiled
