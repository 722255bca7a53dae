"""Which backends can be used here, and the exact command for each that cannot."""

from __future__ import annotations

import platform
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from bridge.backends import registry
from bridge.errors import BackendError


def diagnose(console: Console) -> bool:
    """Print a row a backend and, below, how to get those that are missing. Whether all are usable."""
    core = ", ".join(f"{name} {version(name)}" for name in ("qcfs-bridge", "torch", "nir", "numpy"))
    console.print(f"Python {platform.python_version()}, {core}")
    rows = Table("backend", "usable", "versions", "runs in")
    advice = []
    for name in registry.names():
        try:
            found = registry.get(name).available()
        except BackendError as error:
            rows.add_row(name, "[red]no", "", "")
            advice.append(f"{error}")
            continue
        versions = ", ".join(f"{package} {number}" for package, number in found.versions.items())
        where = found.environment or "this process"
        rows.add_row(name, "[green]yes" if found.usable else "[red]no", versions, where)
        if not found.usable:
            advice.append(f"{name}: {found.reason}\n    {found.install}")
    console.print(rows)
    for line in advice:
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    return not advice
