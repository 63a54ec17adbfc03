"""The steps of gpu_check.py, and what they share."""
