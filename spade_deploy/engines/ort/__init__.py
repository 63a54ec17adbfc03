"""ONNX Runtime: the engine that runs on every machine."""
