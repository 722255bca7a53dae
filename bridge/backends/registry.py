"""The backends, found through the entry-point group ``qcfs_bridge.backends``, in this environment or another."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from bridge.backends.settings import variable
from bridge.errors import BackendError

if TYPE_CHECKING:  # so that to ask which backends there are imports neither numpy nor nir
    from bridge.backends.protocol import Backend

GROUP = "qcfs_bridge.backends"


def names() -> tuple[str, ...]:
    """Names of all registered backends, whether or not their frameworks are installed, sorted."""
    return tuple(sorted(_registered()))


def get(name: str) -> Backend:
    """The backend called `name`, usable or not: in this process, unless `settings.variable` names a Python.

    Raises `BackendError` if there is none, or it cannot be loaded.
    """
    registered = _registered()
    if name not in registered:
        raise BackendError(f"no backend is called {name!r}; there are {', '.join(sorted(registered)) or 'none'}")
    if python := os.environ.get(variable(name)):
        from bridge.backends.subprocess_client import OtherEnvironment

        return cast("Backend", OtherEnvironment(name, f"{registered[name].module}:{registered[name].attr}", python))
    try:
        return cast("Backend", registered[name].load()())
    except Exception as error:  # somebody else's entry point may fail in any way
        raise BackendError(f"backend {name!r} ({registered[name].value}) cannot be loaded: {error}") from error


def usable(backend: str | Backend) -> Backend:
    """The backend of that name, or the one given. Raises `BackendError`, saying what to install, if it is missing."""
    backend = get(backend) if isinstance(backend, str) else backend
    if not hasattr(backend, "available"):
        raise BackendError(f"expected one backend, or its name, such as 'snntorch', got {type(backend).__name__}")
    availability = backend.available()
    if not availability.usable:
        raise BackendError(
            f"backend {backend.name!r} is not usable: {availability.reason}. To get it: {availability.install}"
        )
    return backend


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
