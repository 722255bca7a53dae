"""NIR graphs: this package's own networks, written and read, and other tools' networks."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
