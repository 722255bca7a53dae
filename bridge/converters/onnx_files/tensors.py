"""The numbers in an ONNX file, read as far as they are really there, and a limit to how many may be made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bridge.converters.onnx_files.library import require_onnx
from bridge.converters.onnx_files.values import kind_name, shown
from bridge.errors import BridgeError, GraphError

if TYPE_CHECKING:
    from onnx import TensorProto

FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
INTEGERS = ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL")
LARGEST = 2**27
"""Numbers that one tensor may hold, without batch; 40 times the largest of VGG-16 on ImageNet."""


class Tensors:
    """Reads the data of tensors of the file at `path`, and accounts for every array that is made."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.data_files: set[Path] = set()
        self.budget = 2 * LARGEST + path.stat().st_size

    def read(self, tensor: TensorProto) -> NDArray[Any]:
        """The data of `tensor`. Allocates no more than what is really in the file."""
        onnx = require_onnx()
        what = f"tensor {shown(tensor.name)} {list(tensor.dims)[:9]}"
        if tensor.data_type not in [getattr(onnx.TensorProto, name) for name in (*FLOATS, *INTEGERS)]:
            raise GraphError(f"{what} holds {kind_name(tensor.data_type)}; expected numbers")
        if any(size < 0 for size in tensor.dims):
            raise GraphError(f"{what} has a negative size")
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._check_data_file(tensor, what)
            array: NDArray[Any] = onnx.numpy_helper.to_array(tensor, str(self.folder))
        except BridgeError:
            raise
        except Exception as error:
            raise GraphError(f"{what}: its data cannot be read, or does not fit its shape ({error})") from error
        self.spend(array.size)
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            return array.astype(np.float32)
        return array

    def _check_data_file(self, tensor: TensorProto, what: str) -> None:
        """External data must be a plain file in the model's folder; onnx checks the same again as it opens it."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        folder = self.folder.resolve()
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
            raise GraphError(f"{what}: its data is in {shown(location)}, which is outside the model's folder")
        if not file.is_file():
            raise GraphError(f"{what}: its data is in {shown(location)}, which is not a file beside the model")
        size = file.stat().st_size
        given = int(entries["length"]) if "length" in entries else size - int(entries.get("offset", 0))
        wanted = math.prod(tensor.dims) * require_onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if given != wanted:  # before anything is read
            raise GraphError(f"{what}: its data in {shown(location)} takes {given} bytes, expected {wanted}")
        if file not in self.data_files:
            self.data_files.add(file)
            self.budget += size

    def spend(self, count: int) -> None:
        """Account for an array of `count` numbers. A small file cannot make the reader fill the memory."""
        self.budget -= count
        if self.budget < 0:
            raise GraphError("it would take far more memory than the file has data")
