"""Why a function becomes no layer, by its name."""

from __future__ import annotations

from bridge.converters.remedies import (
    ATTENTION,
    BATCH_NORM,
    BY_AVERAGE,
    BY_QCFS,
    DROPS,
    EMBEDDING,
    ENLARGES,
    LEAVE_OUT,
    NOT_AFFINE,
    ONLY_QCFS,
    OUTSIDE,
    PRODUCT,
    QUANTISED,
    RESAMPLES,
    THREE_DIMENSIONS,
    UNEVEN,
)

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("relu", "relu_", "relu6", "relu6_", "clamp_min", "clamp_min_", "threshold"), BY_QCFS),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"), BY_AVERAGE),
    **dict.fromkeys(("max_pool1d_with_indices", "max_pool2d_with_indices", "max", "amax"), BY_AVERAGE),
    **dict.fromkeys(("gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "celu", "selu", "mish"), ONLY_QCFS),
    **dict.fromkeys(("prelu", "softplus", "softsign", "hardswish", "hardsigmoid", "hardtanh", "glu"), ONLY_QCFS),
    **dict.fromkeys(("clamp", "clip", "rrelu", "logsigmoid", "softshrink", "hardshrink", "tanhshrink"), ONLY_QCFS),
    **dict.fromkeys(("floor", "round", "ceil", "sign", "abs", "exp", "log", "sqrt"), ONLY_QCFS),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm"), BATCH_NORM),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "softmin", "gumbel_softmax"), LEAVE_OUT),
    **dict.fromkeys(("multi_head_attention_forward", "scaled_dot_product_attention"), ATTENTION),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "fold", "interpolate"), ENLARGES),
    **dict.fromkeys(("upsample", "grid_sample", "max_unpool1d", "max_unpool2d"), ENLARGES),
    **dict.fromkeys(("quantize_per_tensor", "dequantize", "linear_dynamic", "quantized_linear"), QUANTISED),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), UNEVEN),
    "conv3d": THREE_DIMENSIONS,
    "dropout": DROPS,
    **dict.fromkeys(("argmax", "argmin", "topk", "sort", "argsort"), OUTSIDE),
    "embedding": EMBEDDING,
}
"""By function: why it becomes no layer, and what to do."""

PRODUCTS = {"mul", "multiply", "rmul", "imul", "div", "divide", "truediv", "rdiv", "pow", "square", "addcmul"}
SUMS_OF_PRODUCTS = {"matmul", "bmm", "einsum", "mm", "tensordot", "bilinear", "inner", "outer", "baddbmm"}


def why_not(name: str, module: str, sources: int, larger: bool) -> str:
    """Why the function of this `name`, called in a `module` on so many traced tensors, becomes no layer.

    `larger` says that its result is larger than they are.
    """
    short = name.strip("_")
    if "dropout" in short:
        return DROPS
    if short in PRODUCTS or (sources > 1 and short in SUMS_OF_PRODUCTS):
        return PRODUCT
    if module.startswith(("MultiheadAttention", "TransformerEncoder")):
        return ATTENTION
    if REMEDIES.get(name) == ENLARGES and not larger:
        return RESAMPLES
    return REMEDIES.get(name) or REMEDIES.get(short) or NOT_AFFINE
