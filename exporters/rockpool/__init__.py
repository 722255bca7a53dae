"""Rockpool: its own ``LinearTorch`` and a subclass of its own ``LIFNeuronTorch`` without leak.

Beyond the common shape: `staged` holds the modules of staged networks, `grouped` those of grouped ones and of pools.
"""

from exporters.rockpool.backend import Rockpool

__all__ = ["Rockpool"]
