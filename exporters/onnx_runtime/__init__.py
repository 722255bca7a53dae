"""ONNX: the spiking network as plain ONNX models, over T steps and for one; ONNX Runtime runs them.

Beyond the common shape: `names` and `rules` say what the values are called and how each layer is written, the neuron
among them, and `models` makes the two models of these.
"""

from exporters.onnx_runtime.backend import OnnxRuntime

__all__ = ["OnnxRuntime"]
