"""The Lava backend: integrate-and-fire Processes between Lava's own Dense and Conv, in floating point.

Importing this package does not import Lava; `exporters.lava.processes` and `exporters.lava.network` do.
"""

from exporters.lava.backend import Lava

__all__ = ["Lava"]
