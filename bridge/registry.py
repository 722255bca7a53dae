"""The backends installed here, found through the entry-point group ``qcfs_bridge.backends``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from bridge.errors import BackendError

if TYPE_CHECKING:  # the protocol's type alone: at run time bridge knows no exporter but by its entry point
    from exporters.base import Backend

GROUP = "qcfs_bridge.backends"


def names() -> tuple[str, ...]:
    """Names of all registered backends, whether or not their frameworks are installed, sorted."""
    return tuple(sorted(_registered()))


def get(name: str) -> Backend:
    """The backend called `name`, usable or not. Raises `BackendError` if there is none, or it cannot be loaded."""
    registered = _registered()
    if name not in registered:
        raise BackendError(f"no backend is called {name!r}; there are {', '.join(sorted(registered)) or 'none'}")
    try:
        return cast("Backend", registered[name].load()())
    except Exception as error:  # somebody else's entry point may fail in any way
        raise BackendError(f"backend {name!r} ({registered[name].value}) cannot be loaded: {error}") from error


def usable(backend: str | Backend) -> Backend:
    """The backend of that name, or the one given. Raises `BackendError`, saying what to install, if it is missing."""
    backend = get(backend) if isinstance(backend, str) else backend
    availability = backend.available()
    if not availability.usable:
        raise BackendError(
            f"backend {backend.name!r} is not usable: {availability.reason}. To get it: {availability.install}"
        )
    return backend


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
