"""int8 graphs: calibrate, rank the layers, write."""
