"""ONNX Runtime: the engine that is there on every machine."""
