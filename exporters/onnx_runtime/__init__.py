"""ONNX: the spiking network as plain ONNX models, over T steps and for one; ONNX Runtime runs them."""

from exporters.onnx_runtime.backend import OnnxRuntime
from exporters.onnx_runtime.network import OnnxNetwork

__all__ = ["OnnxNetwork", "OnnxRuntime"]
