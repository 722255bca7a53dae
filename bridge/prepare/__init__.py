"""A torch model before conversion: QCFS activations, their thresholds, checkpoints."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
