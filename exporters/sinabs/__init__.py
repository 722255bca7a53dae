"""Sinabs: torch's own layers and Sinabs' own ``IAFSqueeze``, which as configured here is exactly the neuron.

Beyond the common shape: `staged` holds the layers of staged networks, `grouped` the neurons of grouped ones.
"""

from exporters.sinabs.backend import Sinabs

__all__ = ["Sinabs"]
