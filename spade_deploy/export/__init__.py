"""Folds, the traced deploy model and the ONNX graphs it becomes."""
