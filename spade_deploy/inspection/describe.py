"""Describe a path: an artifact, an engine, a checkpoint or a run. Only its files are read, without PyTorch or ONNX."""

from __future__ import annotations

import os
from pathlib import Path

from spade_deploy.artifact import MANIFEST, Artifact
from spade_deploy.errors import NotFoundError, reason_of
from spade_deploy.inspection.artifacts import describe_artifact, describe_engine
from spade_deploy.inspection.description import Description, for_a_terminal
from spade_deploy.inspection.runs import describe_checkpoint, describe_run
from spade_deploy.runs import (
    ARTIFACT,
    CHECKPOINT_JSON,
    CHECKPOINTS,
    GENERATOR_FILE,
    resolve_checkpoint,
)

_WHAT = "give an artifact's folder, a checkpoint's, or a run's; `spade train` and `spade export` make them"


def inspect_path(path: Path, *, with_times: bool = False) -> Description:
    """Describe an artifact's folder, a checkpoint's, or a run's; a file that names one stands for its folder.

    with_times: runs an engine on its card and gives the milliseconds of its layers.
    Raises NotFoundError for any other path, ArtifactError and CheckpointError for damaged files.
    """
    try:
        return for_a_terminal(_describe(path, with_times))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be looked at: {reason_of(error)}") from error


def _describe(path: Path, with_times: bool) -> Description:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", hint=_WHAT)
    folder = path.parent if path.is_file() and path.name in (MANIFEST, CHECKPOINT_JSON, GENERATOR_FILE) else path
    if path.suffix == ".engine" or (path.parent.name == "engines" and path.suffix == ".json"):
        return describe_engine(path, with_times)
    if os.path.lexists(folder / MANIFEST):
        return describe_artifact(Artifact.open(folder))
    if (folder / CHECKPOINT_JSON).is_file() or (folder / GENERATOR_FILE).is_file():
        return describe_checkpoint(resolve_checkpoint(folder, folder))
    if (folder / CHECKPOINTS).is_dir() or (folder / ARTIFACT / MANIFEST).is_file():
        return describe_run(folder)
    raise NotFoundError(f"{path} is neither an artifact, nor a checkpoint, nor a run", hint=_next_step(path))


def _next_step(path: Path) -> str:
    """What the user can do next about a path that cannot be described."""
    if path.is_dir():
        inside = next((child for child in sorted(path.iterdir()) if (child / CHECKPOINTS).is_dir()), None)
        return _WHAT if inside is None else f"it holds runs: spade inspect {inside}"
    if (path.parent / CHECKPOINT_JSON).is_file():
        return f"it belongs to a checkpoint: spade inspect {path.parent}"
    if path.suffix in (".pth", ".pt"):
        return f"`spade import {path}` makes a run of a released model; then inspect the run"
    if path.suffix == ".onnx":
        if (path.parent / MANIFEST).is_file():
            return f"it belongs to an artifact: spade inspect {path.parent}"
        return f"a graph alone does not say what its labels mean: {_WHAT}"
    return _WHAT
