"""Torch models, run on tensors that note what is computed of them."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
