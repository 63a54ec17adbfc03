"""Describe artifacts, checkpoints, runs and this machine, without PyTorch."""
