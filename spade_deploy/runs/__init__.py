"""Run folders, checkpoints, and weights that come from elsewhere."""
