"""Nengo: its own ensembles, nodes and convolutions, and a subclass of its own integrate-and-fire neuron."""

from exporters.nengo.backend import Nengo

__all__ = ["Nengo"]
