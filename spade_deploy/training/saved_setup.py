"""The settings that a checkpoint was trained with, read back so that training goes on as it began."""

from __future__ import annotations

from pathlib import Path

from spade_deploy.errors import CheckpointError, ConfigError, reason_of
from spade_deploy.runs import CHECKPOINT_JSON
from spade_deploy.runs.checkpoint import resumable_info
from spade_deploy.runs.tensors import DAMAGED_HINT
from spade_deploy.training.config import Setup


def load_setup(checkpoint: Path) -> Setup:
    """The settings that a checkpoint was trained with. Raises CheckpointError where there are none, or damaged ones."""
    info = resumable_info(checkpoint)
    try:
        return Setup.from_json({"train": info.train, "generator": info.generator.to_json(), "data": info.data})
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint / CHECKPOINT_JSON}: {reason_of(error)}", hint=DAMAGED_HINT) from error
