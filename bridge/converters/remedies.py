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
DEPENDS_ON_DATA = (
    "forward depends on the data here, which the wiring of a spiking network cannot; decide by shapes or by constants"
)
IN_PLACE = (
    "it does not compute what its layers do: a tensor is changed in place while a view of it is read elsewhere "
    "(write a = a + b), or a forward is overridden (remove the override)"
)
ONE_BIAS = (
    "it adds constants that differ between the positions of a channel, and NIR's layers have one bias per channel; "
    "add one constant per channel, or flatten first"
)
ENLARGES = (
    "it enlarges a map, which no NIR node does (NIR has neither a transposed convolution nor upsampling); "
    "keep the size that convolutions give it"
)
NOT_AFFINE = (
    "it is neither a bridge.QCFS nor a sum of constants times data, and nothing else has an exact spiking form; "
    "leave it out, or train with a bridge.QCFS in its place"
)
