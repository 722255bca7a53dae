"""The Lava backends: integrate-and-fire Processes between Dense and Conv, in floating point and in fixed point.

Importing this package does not import Lava; `exporters.lava.processes` and `.hierarchy` do.
"""

from exporters.lava.backend import Lava, LavaFixed
from exporters.lava.emulator import LavaTwin

__all__ = ["Lava", "LavaFixed", "LavaTwin"]
