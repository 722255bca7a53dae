"""What a result was made with: versions, machine, command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("qcfs-bridge", "torch", "numpy", "nir")


def environment() -> dict[str, Any]:
    """By name: Python, packages, system, number of processors, command line (program names without folders), time."""
    command = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str:
    """The installed version of `package`; "not installed" if there is none: a checkout also runs from where it lies."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
