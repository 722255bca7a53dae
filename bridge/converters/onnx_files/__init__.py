"""ONNX files: read as a layer graph, and written from one."""
