"""A network as NIR and back: the face of `bridge.converters.nir_graphs.ours` that backends import."""

from bridge.converters.nir_graphs.ours import from_nir, read, to_nir

__all__ = ["from_nir", "read", "to_nir"]
