"""Rockpool: its own ``LinearTorch`` and a subclass of its own ``LIFNeuronTorch`` without leak."""

from exporters.rockpool.backend import Rockpool

__all__ = ["Rockpool"]
