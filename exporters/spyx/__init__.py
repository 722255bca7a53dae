"""Spyx: layers of Flax's NNX, as Spyx's users write them, and a subclass of Spyx's own ``IF``.

Beyond the common shape: `staged` holds the layers of staged networks, `grouped` those of grouped ones and of pools.
"""

from exporters.spyx.backend import Spyx

__all__ = ["Spyx"]
