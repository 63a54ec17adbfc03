"""What an artifact, a checkpoint or a run is, and what this machine can do: told without PyTorch."""
