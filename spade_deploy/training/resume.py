"""Restore a run from its checkpoint, and check that settings and facts are the same as before."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import CheckpointError
from spade_deploy.runs.checkpoint import load_generator, load_training_state
from spade_deploy.runs.data_record import DataRecord, changed_samples, refuse_other_samples
from spade_deploy.runs.folders import run_checkpoints
from spade_deploy.training.processes.world import World
from spade_deploy.training.saved_setup import load_setup
from spade_deploy.training.steps import Learner

MAY_CHANGE = frozenset(
    {"steps", "epochs", "workers", "save_every", "sample_every", "log_every", "keep_checkpoints", "device", "compile"}
    | {"init"}
    | {"eval_every", "eval_samples", "extractor", "segmenter", "best_by", "tensorboard"}
    # Data, VGG weights and a teacher may have been moved: the length of an epoch and the files' digests are compared.
    | {"root", "labels_dir", "images_dir", "instances_dir", "perceptual_file"}
    | {"place"}
    | {"val_labels_dir", "val_images_dir", "val_instances_dir"}
)
"""Settings that a resumed run may change: they do not change what a step computes."""

_MUST_BE_EQUAL = (("steps_per_epoch", "the data set's steps an epoch"), ("perceptual", "`perceptual_file`'s SHA-256"))


@dataclass(frozen=True)
class Restored:
    """The other contents of a checkpoint whose networks were restored."""

    step: int
    """The step that the checkpoint was saved after."""

    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    counts: Mapping[str, Any] | None
    """The class counts so far; None if the checkpoint has none."""


def restore(learner: Learner, checkpoint: Path, facts: dict[str, Any], record: DataRecord) -> Restored:
    """Put a checkpoint's state into the learner.

    facts: facts of this run, which are compared with those in the checkpoint. record: the training samples.
    Raises CheckpointError if the checkpoint is damaged, or a setting or a fact that a step depends on differs.
    """
    saved = load_setup(checkpoint)
    _refuse_other_settings(checkpoint, saved.to_json(), learner.setup.to_json())
    loaded, state = load_generator(checkpoint), load_training_state(checkpoint)
    before = state.rest.get("facts", {})
    refuse_other_samples(checkpoint, before.get("samples"), record)
    for name, what in _MUST_BE_EQUAL:
        if before.get(name) != facts[name]:
            raise CheckpointError(
                f"{checkpoint}: {what} was {str(before.get(name) or 'none')[:80]} and is now {facts[name] or 'none'}",
                hint="resume with the same files, or start a new run",
            )
    learner.restore(loaded.module, state, loaded.info.step, loaded.encoder)
    changed = changed_samples(checkpoint.parent.parent, record)
    notes = (changed,) if changed else ()
    if before.get("steps") != facts["steps"]:
        falls_from = int(facts["steps"] * learner.setup.train.decay_start)
        length = f"the run had {str(before.get('steps'))[:80]} steps and has {facts['steps']} now"
        notes = (*notes, f"{length}: its learning rates fall after step {falls_from}")
    return Restored(loaded.info.step, notes, state.rest.get("classes"))


def _refuse_other_settings(checkpoint: Path, saved: Any, now: Any, path: str = "") -> None:
    """Raises CheckpointError that names the first setting that differs, of those that a step depends on."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for name in now:
            if name not in MAY_CHANGE:
                _refuse_other_settings(checkpoint, saved.get(name), now[name], f"{path}.{name}" if path else name)
    elif saved != now:
        raise CheckpointError(
            f"{checkpoint}: {path} was {saved!r} and is now {now!r}",
            hint="resume with the settings it was trained with, or start a new run",
        )


def resume_hint(run: Path, world: World) -> str:
    """The command that goes on with a run."""
    command = f"spade train --resume {shlex.quote(str(run))}"
    if world.size == 1:
        return f"continue with `{command}`"
    return f"continue with `torchrun ... -m {command.replace('spade', 'spade_deploy', 1)}`, on any number of processes"


def newest_checkpoint(run: Path, resume: Path | None) -> Path | None:
    """The last good checkpoint of a run: its newest one, else the one from which it was resumed."""
    return next(reversed(run_checkpoints(run)), resume)
