"""Folds the trained networks, traces them as deploy models, and writes these as ONNX graphs."""
