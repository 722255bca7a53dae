"""The command ``qcfs-bridge``."""

from bridge.cli.commands import app

__all__ = ["app"]
