"""Sinabs: torch's own layers and Sinabs' own ``IAFSqueeze``, which as configured here is exactly the neuron."""

from exporters.sinabs.backend import Sinabs

__all__ = ["Sinabs"]
