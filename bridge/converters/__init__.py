"""From a trained model or a NIR file to a `bridge.graph.LayerGraph`, and back to files. One folder a source."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
