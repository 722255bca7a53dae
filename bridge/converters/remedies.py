"""What to use instead of an operation without a spiking form, in words that torch modules and ONNX files share."""

ONLY_QCFS = "train with bridge.QCFS instead; only QCFS has an exact spiking twin"
BY_QCFS = "put a bridge.QCFS there with bridge.replace_activations(model, levels=...), then fine-tune"
BY_AVERAGE = (
    'use average pooling, as bridge.replace_activations(..., max_pool="avg") does, and fine-tune: the maximum of '
    "spike trains is not the spike train of the maximum"
)
BATCH_NORM = "use BatchNorm1d/2d: its statistics are constants at inference and fold into the weights"
LEAVE_OUT = "leave it out: the largest output is the same without it"
PRODUCT = "a product of two signals has no exact spiking form (squeeze-and-excitation, gating)"
