"""Make a validated artifact of a checkpoint, and put it in its place."""
