"""Fitting a spiking network to few time steps."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
