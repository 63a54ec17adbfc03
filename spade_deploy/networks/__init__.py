"""The networks as they are trained. PyTorch only; nothing here knows of training, runs or export."""
