"""Train a generator: settings, data, losses and the training loop. All of it needs PyTorch."""
