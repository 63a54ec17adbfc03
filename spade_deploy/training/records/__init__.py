"""The files that a run writes while it trains: logs, plots, pictures and checkpoints."""
