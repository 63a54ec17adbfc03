"""Run folders, checkpoints, and weights that come from elsewhere.

The names in `__all__` need no PyTorch: the layout of run folders, their JSON files, and the search for checkpoints.
Weights are read by `checkpoint` (our own), `importer` (those of others) and `shipped` (the model of this package).
"""

from spade_deploy.runs.folders import (
    MAKE_CHECKPOINT,
    best_checkpoint,
    damaged_checkpoints,
    find_checkpoint_by_digest,
    is_resumable,
    newest_artifact,
    newest_checkpoint,
    newest_run_to_resume,
    resolve_artifact,
    resolve_checkpoint,
    run_checkpoints,
    say_damaged,
)
from spade_deploy.runs.layout import (
    ARTIFACT,
    BEST_JSON,
    CHECKPOINT_JSON,
    CHECKPOINTS,
    DISCRIMINATOR_FILE,
    ENCODER_FILE,
    GENERATOR_FILE,
    MANIFEST_JSON,
    OPTIMIZERS_FILE,
    check_name,
    checkpoint_folder,
    new_run,
)
from spade_deploy.runs.records import Best, CheckpointInfo, read_best, read_checkpoint_info

__all__ = [
    "ARTIFACT",
    "BEST_JSON",
    "CHECKPOINTS",
    "CHECKPOINT_JSON",
    "DISCRIMINATOR_FILE",
    "ENCODER_FILE",
    "GENERATOR_FILE",
    "MAKE_CHECKPOINT",
    "MANIFEST_JSON",
    "OPTIMIZERS_FILE",
    "Best",
    "CheckpointInfo",
    "best_checkpoint",
    "check_name",
    "checkpoint_folder",
    "damaged_checkpoints",
    "find_checkpoint_by_digest",
    "is_resumable",
    "new_run",
    "newest_artifact",
    "newest_checkpoint",
    "newest_run_to_resume",
    "read_best",
    "read_checkpoint_info",
    "resolve_artifact",
    "resolve_checkpoint",
    "run_checkpoints",
    "say_damaged",
]
