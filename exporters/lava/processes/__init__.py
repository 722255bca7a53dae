"""Lava Processes for QCFS's spiking twin, to be used in any Lava program beside Lava's own Dense and Conv.

Lava executes every module of the folder in which it looks for ProcessModels, so this one holds nothing else. Importing
it makes Lava importable where it is not (see `exporters.lava.compat`).
"""

from exporters.lava import compat

compat.apply()  # before the first module that imports Lava

from exporters.lava.processes.exact import SpikeCount, Thresholds, WindowFire  # noqa: E402
from exporters.lava.processes.neurons import IntegrateFire, Readout  # noqa: E402
from exporters.lava.processes.pools import GroupSum, MaxPool  # noqa: E402
from exporters.lava.processes.streams import CurrentSource, Delay, Sink, shared_array  # noqa: E402
from exporters.lava.processes.synapses import TorchConv, TorchDense  # noqa: E402

__all__ = [
    "CurrentSource",
    "Delay",
    "GroupSum",
    "IntegrateFire",
    "MaxPool",
    "Readout",
    "Sink",
    "SpikeCount",
    "Thresholds",
    "TorchConv",
    "TorchDense",
    "WindowFire",
    "shared_array",
]
