"""lava-dl: SLAYER, its training library, as a backend, and files for NetX, its importer for Loihi.

Importing this package imports neither; `exporters.lava_dl.processes` does. Beyond the common shape: `netx_plan` says
what is in a NetX file, `netx` writes it, and `netx_run` runs it with the neuron in `processes`; `thresholds` are what
SLAYER and NetX both ask of a network; `compat` makes lava-dl importable.
"""

from exporters.lava_dl.backend import Slayer

__all__ = ["Slayer"]
