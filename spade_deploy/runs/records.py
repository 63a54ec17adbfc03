"""The content of checkpoint.json and best.json. Nothing here reads weights, so that no PyTorch is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from spade_deploy.errors import CheckpointError, ConfigError, SpadeError, quoted, reason_of
from spade_deploy.fields import Count, CountOrNone, Rule, Sha256, Sha256OrNone, from_json, to_json
from spade_deploy.files.reading import read_json
from spade_deploy.runs.layout import BEST_JSON, CHECKPOINT_JSON, GENERATOR_FILE
from spade_deploy.spec import GeneratorSpec

CHECKPOINT_FORMAT = 1

_DAMAGED_HINT = "the folder was damaged or copied in part; use another one"

Origin = Annotated[str, Rule(lambda text: text in ("train", "import"), "'train' or 'import'")]
Direction = Annotated[str, Rule(lambda text: text in ("lower", "higher"), "'lower' or 'higher'")]


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of checkpoint.json. A field that is null or missing there has its default."""

    created_unix_ns: Count
    """When it was written, in nanoseconds since 1970."""

    step: Count
    """The training step after which it was written."""

    origin: Origin
    """Where the weights come from: 'train' or 'import'."""

    generator: GeneratorSpec
    """How the generator is built."""

    generator_sha256: Sha256
    """The SHA-256 of the generator's weights."""

    parameters: CountOrNone = None
    """How many trained numbers the generator has; None in checkpoints of older versions."""

    discriminator_sha256: Sha256OrNone = ""
    """The SHA-256 of the discriminator's weights; empty without a training state."""

    optimizers_sha256: Sha256OrNone = ""
    """The SHA-256 of the rest of the training state; empty without one."""

    encoder_sha256: Sha256OrNone = ""
    """The SHA-256 of the style encoder's weights; empty where there is no encoder."""

    bank_sha256: Sha256OrNone = ""
    """The SHA-256 of the memory bank of SIMS; empty for another network."""

    source: str = ""
    """The file that was imported."""

    train: dict[str, Any] | None = None
    """The run's settings of training, as JSON; None for an imported model."""

    data: dict[str, Any] | None = None
    """The run's settings of data, as JSON; None for an imported model."""

    versions: dict[str, Any] | None = None
    """The packages that wrote it, and their versions."""

    guesses: list[str] | None = None
    """What an import assumed, one sentence each."""

    @property
    def init(self) -> str:
        """The weights that its run began from, as in `train`: of a student the teacher; empty for random ones."""
        teacher = self.teacher
        return teacher[0] if teacher is not None else str((self.train or {}).get("init") or "")

    @property
    def teacher(self) -> tuple[str, str] | None:
        """The place and the digest of the teacher, if its run was that of a student."""
        found = ((self.train or {}).get("distill") or {}).get("teacher")
        if not isinstance(found, dict):
            return None
        return str(found.get("place", "")), str(found.get("sha256", ""))

    @property
    def is_resumable(self) -> bool:
        return bool(self.origin == "train" and self.discriminator_sha256 and self.optimizers_sha256)

    def to_json(self) -> dict[str, Any]:
        rest = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "generator"}
        return {"format_version": CHECKPOINT_FORMAT, **rest, "generator": self.generator.to_json()}

    @classmethod
    def from_json(cls, value: Any, where: Path) -> CheckpointInfo:
        """`where` is the file that `value` comes from, for messages. Raises CheckpointError."""
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: holds {type(value).__name__}, not an object")
        version = value.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise CheckpointError(f"{where}: format_version is {quoted(version)}, not a number")
        if version > CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{where}: format {version} is newer than {CHECKPOINT_FORMAT}, the newest that this version reads",
                hint="upgrade with `pip install --upgrade spade-deploy`",
            )
        given = {name: entry for name, entry in value.items() if entry is not None}
        try:
            return from_json(cls, given, ignore_unknown=True)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {reason_of(error)}") from error


@dataclass(frozen=True)
class Best:
    """The content of best.json: which checkpoint of a run is the best."""

    step: Count
    """The step of the checkpoint."""

    metric: str
    """The metric by which it is the best."""

    value: float
    """The metric's value."""

    direction: Direction
    """Which values are better."""

    measured_with: dict[str, Any]
    """The facts about the measurement that two values must share to be comparable."""

    @property
    def described(self) -> str:
        return f"{self.metric} {self.value:.4g} in step {self.step}"

    def is_better_than(self, other: Best) -> bool:
        return self.value < other.value if self.direction == "lower" else self.value > other.value

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


def read_checkpoint_info(checkpoint: Path) -> CheckpointInfo:
    """Read checkpoint.json. Raises CheckpointError if it is damaged, missing or of a newer format."""
    path = checkpoint / CHECKPOINT_JSON
    return CheckpointInfo.from_json(read_object(path, CheckpointError), path)


def read_best(run: Path) -> Best | None:
    """Read best.json; None if there is none. Raises CheckpointError if it is damaged."""
    path = run / BEST_JSON
    if not os.path.lexists(path):
        return None
    value = read_object(path, CheckpointError)
    try:
        return from_json(Best, value, ignore_unknown=True)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {reason_of(error)}") from error


def require_generator(checkpoint: Path) -> None:
    """Raises CheckpointError unless the file of weights is there."""
    _require_file(checkpoint / GENERATOR_FILE, CheckpointError)


def read_object(path: Path, kind: type[SpadeError]) -> dict[str, Any]:
    """The JSON object in a file. Raises `kind` where there is none to read."""
    _require_file(path, kind)
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot be read as JSON ({reason_of(error)})", hint=_DAMAGED_HINT) from error


def _require_file(path: Path, kind: type[SpadeError]) -> None:
    if not path.is_file():
        what = (
            "is not a regular file" if path.exists() else "is a link to nothing" if path.is_symlink() else "is missing"
        )
        raise kind(f"{path}: {what}", hint=_DAMAGED_HINT)
