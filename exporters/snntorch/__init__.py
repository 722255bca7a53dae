"""snnTorch: torch's own layers and a subclass of snnTorch's own ``Leaky`` without leak."""

from exporters.snntorch.backend import SnnTorch

__all__ = ["SnnTorch"]
