"""Validate an artifact: compare it with the PyTorch module that it was exported from."""
