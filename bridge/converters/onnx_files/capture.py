"""Capture an ONNX file: its nodes, followed by the reader, become layers as the rules have it.

Files come from anywhere. Nothing in one is executed or unpickled, no size that it declares is believed before the
data is there, external data stays in the file's folder, and whatever is wrong with it is a `BridgeError`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bridge.converters.onnx_files import pools
from bridge.converters.onnx_files.file import load
from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.onnx_files.reader import Rules, read
from bridge.converters.onnx_files.rules import REMEDIES, RULES, STAND_INS, SUPPORTED
from bridge.errors import BridgeError, GraphError
from bridge.graph import LayerGraph

EVERY_RULE = Rules(by_operator=RULES, stand_ins=STAND_INS, remedies=REMEDIES, supported=SUPPORTED)
MAXIMA = {
    "MaxPool": pools.maximum,
    "GlobalMaxPool": pools.global_maximum,
    "ReduceMax": pools.reduce_maximum,
}
"""Rules that the staged schedule has besides."""
STAGED_RULE = replace(EVERY_RULE, by_operator=RULES | MAXIMA)


def capture(path: str | Path, *, maximum: bool = False) -> LayerGraph:
    """The ANN in the ONNX file at `path`, at inference. Maximum pools become layers if `maximum`.

    The file has one input ``[B, C, H, W]``, ``[B, C, N]`` or ``[B, F]`` and one output; only the batch size may be
    symbolic. QCFS is recognised by what it computes: ``λ·clip(floor(z·L/λ + 1/2)/L, 0, 1)`` or
    ``λ·floor(clip(z/λ, 0, 1)·L + 1/2)/L``, in any order of the factors, clipped with Clip or Min and Max, with
    straight-through terms ``x + (floor(x) − x)``, as torch's exporters write them.

    Layers are named after the torch modules they came from where the file tells, else after their nodes.

    Raises:
        ConversionError: an operation has no exact spiking form, or its constants are not what they must be. The message
            lists every such node by name, with what to use instead.
        GraphError: the file is missing, damaged, not ONNX, or contradicts itself.
        BridgeError: onnx is not installed.
    """
    require_onnx()
    path = Path(path)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused where it is used
            return read(load(path), path, STAGED_RULE if maximum else EVERY_RULE)
    except BridgeError:
        raise
    except Exception as error:  # the file is not ours: whatever onnx or protobuf trip over is the file's fault
        reason = str(error).strip() or "no reason given"
        raise GraphError(f"{path}: not a usable ONNX file ({type(error).__name__}: {reason[:500]})") from error
