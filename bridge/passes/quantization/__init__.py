"""From floating point to integers."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
