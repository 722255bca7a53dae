"""``python -m bridge.cli``, the same as ``qcfs-bridge``."""

from bridge.cli import app

app()
