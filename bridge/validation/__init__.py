"""Holding backends against the reference and the ANN: which spikes differ, where, and why."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
