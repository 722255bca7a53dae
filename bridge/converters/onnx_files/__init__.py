"""ONNX files: read as a layer graph, and written from one."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
