"""Lava: integrate-and-fire Processes between Dense and Conv, in floating point and in fixed point.

Importing this package does not import Lava; `exporters.lava.processes` and `.hierarchy` do. Beyond the common shape:
`plan` says what becomes a Process and when it has its input, by way of `lowering` and `layout`; `bounds` checks Loihi's
registers; `processes` are the Processes, the neuron among them, and `hierarchy` the one that is made of them; `runtime`
runs them and always ends them; `compat` makes Lava importable; `emulator` is the backend that needs no Lava.
"""

from exporters.lava.backend import Lava, LavaFixed
from exporters.lava.emulator import LavaTwin

__all__ = ["Lava", "LavaFixed", "LavaTwin"]
