"""What an evaluation says where a checkpoint is judged and PyTorch is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spade_deploy.errors import MissingDependencyError


@contextmanager
def needed_pytorch(path: Path) -> Iterator[None]:
    """A block of imports that need PyTorch."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{path}: a checkpoint needs PyTorch, and {error.name} is not installed",
            hint="pip install 'spade-deploy[train]', or evaluate the artifact that `spade export` makes of it",
        ) from error
