"""The reference simulator and the ANN's own forward pass, both over a `bridge.graph.LayerGraph`."""

from bridge.simulate.ann import activations
from bridge.simulate.reference import simulate

__all__ = ["activations", "simulate"]
