"""A network as NIR and back: the face of `bridge.converters.nir_graphs` that backends import."""

from bridge.converters.nir_graphs.files import read
from bridge.converters.nir_graphs.ours import from_nir, to_nir

__all__ = ["from_nir", "read", "to_nir"]
