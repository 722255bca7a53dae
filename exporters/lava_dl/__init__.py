"""lava-dl: SLAYER as a backend, and files for NetX, its importer for Loihi.

Importing this package imports neither; `exporters.lava_dl.processes` does.
"""

from exporters.lava_dl.slayer import Slayer

__all__ = ["Slayer"]
