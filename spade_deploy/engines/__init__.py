"""What runs an artifact. Reaches neither PyTorch nor the training code."""
