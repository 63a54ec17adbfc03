"""The version of this package, which checkpoints, manifests and reports record."""

__version__ = "0.1.0"
