"""What NetX lacks to run a converted network exactly: a neuron's ProcessModel.

Lava executes every module of the folder in which it looks for ProcessModels, so this one holds nothing else. Importing
it makes Lava importable where it is not (see `exporters.lava_dl.compat`).
"""

from exporters.lava_dl import compat

compat.apply()  # before the first module that imports Lava

from exporters.lava_dl.processes.neurons import PySoftResetModel  # noqa: E402

__all__ = ["PySoftResetModel"]
