"""What environment variables say of backends: which Python one runs in, and how long a request to it may take."""

from __future__ import annotations

import os
from contextlib import suppress

from bridge.errors import BackendError

TIME_LIMIT = "QCFS_BRIDGE_TIME_LIMIT"
HOUR = 3600.0


def variable(name: str) -> str:
    """The environment variable that holds the interpreter for the backend `name`."""
    return "QCFS_BRIDGE_PYTHON_" + name.upper().replace("-", "_")


def time_limit() -> float:
    """Seconds that one request may take: an hour, or what ``QCFS_BRIDGE_TIME_LIMIT`` says.

    Raises `BackendError` if that is no number above 0.
    """
    text = os.environ.get(TIME_LIMIT, "") or str(HOUR)
    with suppress(ValueError):
        if (limit := float(text)) > 0:
            return limit
    raise BackendError(f"{TIME_LIMIT}={text}: expected a number of seconds above 0")
