"""Right or wrong: an artifact against the PyTorch module that it was exported from."""
