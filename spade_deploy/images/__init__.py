"""Read image files that somebody else made. Needs NumPy and Pillow."""
