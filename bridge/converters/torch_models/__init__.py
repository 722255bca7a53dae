"""Torch modules, followed by torch.fx."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
