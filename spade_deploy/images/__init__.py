"""Image files that somebody else made -> their samples. NumPy and Pillow."""
