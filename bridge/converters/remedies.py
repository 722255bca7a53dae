"""Why an operation has no spiking form, and what to use instead, in words that torch models and ONNX files share."""

ONLY_QCFS = "train with bridge.QCFS instead, which alone has an exact spiking twin; at the end of a model leave it out"
BY_QCFS = "put a bridge.QCFS there with bridge.replace_activations(model, levels=...), then fine-tune"
BY_AVERAGE = (
    'use average pooling, as bridge.replace_activations(..., max_pool="avg") does, and fine-tune: the maximum of '
    'spike trains is not the spike train of the maximum; or keep it, with convert(..., schedule="staged")'
)
BATCH_NORM = "use BatchNorm1d/2d: its statistics are constants at inference and fold into the weights"
LEAVE_OUT = "it divides by a sum of signals; at the end of a classifier leave it out: top-1 is the same without it"
PRODUCT = (
    "a product of two signals has no exact spiking form (squeeze-and-excitation, gating, attention); "
    "use a block without it"
)
ATTENTION = "attention multiplies signals with each other, which has no exact spiking form; mix tokens by a Linear"
DEPENDS_ON_DATA = (
    "forward depends on the data here, which the wiring of a spiking network cannot; decide by shapes or by constants"
)
IN_PLACE = (
    "it does not compute what its layers do: a tensor is changed in place while a view of it is read elsewhere "
    "(write a = a + b), or a forward is overridden (remove the override)"
)
WRITES = "it writes data into a tensor that was made beforehand; join the parts with torch.cat or torch.stack"
ONE_BIAS = (
    "it adds constants that differ between the positions of a channel, and NIR's layers have one bias per channel; "
    "add one constant per channel, or flatten first"
)
ENLARGES = (
    "no NIR node enlarges a map (NIR has neither a transposed convolution nor upsampling); "
    "keep the size that convolutions give it"
)
RESAMPLES = "no NIR node resamples a map; use a convolution with a stride, or average pooling"
OUTSIDE = "it chooses by the data; do it with the network's output, outside the model"
ONE_NUMBER = "the model returns one number for each image, [B]; return [B, 1]"
REPEATS = "NIR pads with zeros alone, and this pads with values of the map itself; use zero padding"
UNFLATTENS = "no NIR node makes a map of a vector; keep the map until the last layers"
TURNS = (
    "no NIR node turns or mirrors a map, or moves its channels; keep the batch first and the channels second, and let "
    "a convolution, a pool or a Linear follow a flip or a transposition"
)
AS_MATRIX = "it mixes positions, which takes a matrix, and a matrix gives a vector; do it where no map is read any more"
UNEVEN = "it pools windows of several sizes, which takes a matrix; choose an output size that divides the map's"
MIRRORED = (
    "it reads a mirrored map with a stride that leaves out its last values, and no NIR node mirrors a map; "
    "choose a size that the stride divides"
)
MIXES_IMAGES = "it mixes the images of a batch, or the batch is not first; keep it first, and each image to itself"
NOT_AFFINE = (
    "it is neither a bridge.QCFS nor a sum of constants times data, and nothing else has an exact spiking form; "
    "leave it out, or train with a bridge.QCFS in its place"
)
SCRIPTED = "a TorchScript module cannot be looked into; pass the Python model that it was made of"
OUT_OF_SIGHT = (
    "a constant in it is NaN, as is what TorchScript or another compiled function computes of the data out of sight; "
    "call the Python function that it was made of"
)
QUANTISED = "it computes with quantised weights; pass the float model, and quantize the spiking network"
THREE_DIMENSIONS = "NIR has no convolution in three dimensions; use Conv1d or Conv2d"
DROPS = "it drops at inference too; pass training=self.training"
EMBEDDING = "indices are no analog input; pass what the embedding gives to the model"
RUNNING = (
    "it keeps no running statistics, or does not use them; train with track_running_stats=True, and export in eval mode"
)
NO_BATCH = "one image without a batch, or images without channels"
NOT_REPEATED = (
    "its forward gives another output when it is called again on the same images, as with random numbers, a counter, "
    "or what catches every exception; make it depend on its input alone"
)
