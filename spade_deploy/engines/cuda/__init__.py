"""CUDA memory, streams and graphs, through whichever library is installed."""
