"""SpikingJelly: its own layers and its own `ActivationAwareIFNode`, single-step or multi-step as the user likes.

Beyond the common shape: `staged` holds the nodes of staged networks, `grouped` those of grouped ones.
"""

from exporters.spikingjelly.backend import SpikingJelly

__all__ = ["SpikingJelly"]
