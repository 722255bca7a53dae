"""A torch model before conversion: QCFS activations, their thresholds, checkpoints."""
