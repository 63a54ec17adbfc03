"""Networks, data and the training loop: the one stage that needs PyTorch to learn."""
