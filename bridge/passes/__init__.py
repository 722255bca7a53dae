"""Rewrites from one `bridge.graph.LayerGraph` to the next; each is one file and leaves its argument unchanged."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
