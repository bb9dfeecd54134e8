"""RUN: inference engines (PyTorch, OpenVINO, ONNX Runtime), quantisation, export."""
