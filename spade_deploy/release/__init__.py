"""Checkpoint -> validated artifact in its place."""
