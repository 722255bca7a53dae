"""The fast engine: the reference's spikes, in int8 arithmetic or floating point, in as little time as possible."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
