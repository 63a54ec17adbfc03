"""Artifact -> the folder that another server takes: a model repository of the Triton Inference Server."""
