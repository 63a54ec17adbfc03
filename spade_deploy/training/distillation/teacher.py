"""The teacher: a trained generator that is run, and never changed, while a student learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, NotFoundError
from spade_deploy.networks.build import Generator
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint
from spade_deploy.runs.layout import SHIPPED
from spade_deploy.runs.records import CheckpointInfo, read_checkpoint_info
from spade_deploy.runs.shipped import shipped_facts, shipped_generator
from spade_deploy.training.distillation.config import TeacherFacts


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher that was named, before its weights are read."""

    facts: TeacherFacts
    """What the student's run says of it."""

    info: CheckpointInfo | None
    """The content of its checkpoint.json; None for a shipped model."""


def find_teacher(named: Path, runs_dir: Path) -> FoundTeacher:
    """The teacher that the user names: a run, a checkpoint or a shipped model. A path comes before a shipped name.

    Raises NotFoundError, CheckpointError.
    """
    if str(named) in SHIPPED and not named.exists():
        shipped = shipped_facts(str(named))
        return FoundTeacher(TeacherFacts(str(named), shipped.sha256, shipped.generator), None)
    try:
        checkpoint = resolve_checkpoint(named, runs_dir).absolute()
    except NotFoundError as error:
        raise NotFoundError(
            f"`teacher`: {error.message}", hint=f"name a run, a checkpoint, or a shipped model: {', '.join(SHIPPED)}"
        ) from error
    info = read_checkpoint_info(checkpoint)
    return FoundTeacher(TeacherFacts(str(checkpoint), info.generator_sha256, info.generator), info)


def load_teacher(facts: TeacherFacts, runs_dir: Path | None = None) -> Generator:
    """The teacher on the CPU, in eval mode, without gradients.

    If its folder was moved or its checkpoint replaced by a newer one, it is looked for by its digest: in its former run
    and in `runs_dir`. Raises CheckpointError where no generator with that digest is found.
    """
    if facts.place in SHIPPED:
        if (found := shipped_facts(facts.place).sha256) != facts.sha256:
            raise CheckpointError(
                f"the teacher {facts.place} of this version has the SHA-256 {found[:12]}, that of the run"
                f" {facts.sha256[:12]}",
                hint="continue with the version of spade-deploy that the run began with, or start a new run",
            )
        return shipped_generator(facts.place).requires_grad_(False)
    return load_generator(teacher_checkpoint(facts, runs_dir)).module.requires_grad_(False)


def teacher_checkpoint(facts: TeacherFacts, runs_dir: Path | None) -> Path:
    """Where a teacher's checkpoint lies now, that of one that is not shipped; see `load_teacher`."""
    place = Path(facts.place)
    try:
        if read_checkpoint_info(place).generator_sha256 == facts.sha256:
            return place
    except CheckpointError:
        pass
    for runs in dict.fromkeys([place.parent.parent.parent, *([runs_dir] if runs_dir is not None else [])]):
        if runs.is_dir() and (found := find_checkpoint_by_digest(facts.sha256, near=place, runs_dir=runs)) is not None:
            return found
    raise CheckpointError(
        f"{place}: the teacher, with the SHA-256 {facts.sha256[:12]}, is no longer there",
        hint="put it back, or among the runs; or name it: `spade distill TEACHER --resume RUN`",
    )


class Teacher:
    """A teacher on a device.

    is_channels_last: its memory layout.
    """

    def __init__(self, module: Generator, device: torch.device, *, is_channels_last: bool) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        if is_channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def image(self, segmap: Tensor, z: Tensor | None, lookup: Sequence[object] = ()) -> Tensor:
        """N x 3 x H x W in [-1, 1]. lookup: the distinct windows of the label maps, or nothing."""
        made: Tensor = self.module(segmap, z, *lookup)
        return made
