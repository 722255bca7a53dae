"""Norse: torch's own layers and a cell built on Norse's own ``SNNCell``, with Norse's soft reset.

Beyond the common shape: `staged` holds the cells of staged networks, `grouped` the neurons of grouped ones.
"""

from exporters.norse.backend import Norse

__all__ = ["Norse"]
