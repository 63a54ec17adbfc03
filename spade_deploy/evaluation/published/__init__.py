"""Judges with published weights: the Inception network of FID, and LPIPS. They need PyTorch, and never download."""
