"""The steps of benchmarks/gpu_check.py, and what they share."""
