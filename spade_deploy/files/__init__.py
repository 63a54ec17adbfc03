"""Read and write files so that no half-written file is used and no foreign file can do harm."""
