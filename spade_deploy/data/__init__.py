"""The embedded Earth data set, cut and written by `earth.py`, and the facts of the known label sets."""
