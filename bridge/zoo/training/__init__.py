"""Training the zoo's networks with QCFS."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
