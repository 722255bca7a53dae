"""The `onnx` package, imported only where it is used."""

from __future__ import annotations

import importlib
from typing import Any

from bridge.errors import BridgeError


def require_onnx() -> Any:
    """The `onnx` package, which is an optional extra. Raises `BridgeError` saying how to install it."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise BridgeError(f'ONNX files need the onnx package ({error}): pip install "onnx>=1.21"') from error
