"""The Lava backends: integrate-and-fire Processes between Dense and Conv, in floating point and in fixed point.

Importing this package does not import Lava; `exporters.lava.processes`, `.hierarchy` and `.network` do.
"""

from exporters.lava.backend import Lava, LavaFixed

__all__ = ["Lava", "LavaFixed"]
