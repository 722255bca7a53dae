"""SpikingJelly: its own layers and its own `ActivationAwareIFNode`, single-step or multi-step as the user likes."""

from exporters.spikingjelly.backend import SpikingJelly

__all__ = ["SpikingJelly"]
