"""Nengo: its own ensembles, nodes and convolutions, and a subclass of its own integrate-and-fire neuron.

Beyond the common shape: `staged` holds the neurons of staged networks, and what counts at the first step alone.
"""

from exporters.nengo.backend import Nengo

__all__ = ["Nengo"]
