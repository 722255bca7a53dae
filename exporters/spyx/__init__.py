"""Spyx: layers of Flax's NNX, as Spyx's users write them, and a subclass of Spyx's own ``IF``."""

from exporters.spyx.backend import Spyx

__all__ = ["Spyx"]
