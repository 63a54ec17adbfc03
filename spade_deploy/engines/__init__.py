"""The engines that run an artifact. Nothing in here imports PyTorch or the training code."""
