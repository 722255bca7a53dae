"""snnTorch: torch's own layers and a subclass of snnTorch's own ``Leaky`` without leak.

Beyond the common shape: `staged` holds the neurons of staged networks, `grouped` those of grouped ones.
"""

from exporters.snntorch.backend import SnnTorch

__all__ = ["SnnTorch"]
