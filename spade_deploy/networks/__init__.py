"""The networks as they are trained. They need only PyTorch; nothing here imports training, runs or export."""
