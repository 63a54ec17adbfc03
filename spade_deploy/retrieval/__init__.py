"""The memory of SIMS: segments of training photos, found again by shape and surroundings. NumPy and Pillow only."""
