"""A whole spiking network as one hierarchical Lava Process, and what reads its state, for use in any Lava program.

Lava executes every module of the folder in which it looks for ProcessModels, so this one holds nothing else.
"""

import exporters.lava.processes  # noqa: F401  (first of all: it makes Lava importable)
from exporters.lava.hierarchy.network import NetworkProcess
from exporters.lava.hierarchy.probe import Probe

__all__ = ["NetworkProcess", "Probe"]
