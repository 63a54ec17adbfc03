"""Run folders: where training, importing and exporting put their results, and how the newest is found.

    runs/<name>/config.json                        what was asked for
               /losses.csv, losses.png, samples/, timeline.png, samples.gif, tensorboard/
               /metrics.csv, metrics.png           where something is measured on the way
               /best.json                          which checkpoint was the best by one of the metrics
               /classes.json, skipped.txt          what the data holds, and what of it could not be read
               /checkpoints/step_00000400/         checkpoint.json, generator.safetensors
                                                   and, to resume: discriminator.safetensors, optimizers.pt
               /artifact/                          manifest.json and what it lists

The rule for 'newest'. Inside a run it is the step that counts: clocks go back, steps do not. Between runs it is the
largest `created_unix_ns` written inside checkpoint.json (of a run's last step) or manifest.json, not the file's own
time, which copying changes; of equals the last path. A date in the future is said. An explicit path always wins.
Nothing here reads weights: a deployment without PyTorch uses it too.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spade_deploy.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    NotFoundError,
    SpadeError,
    quoted,
    reason_of,
)
from spade_deploy.files.reading import read_json
from spade_deploy.spec import GeneratorSpec

CHECKPOINT_FORMAT = 1
CHECKPOINTS = "checkpoints"
CHECKPOINT_JSON = "checkpoint.json"
GENERATOR_FILE = "generator.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
OPTIMIZERS_FILE = "optimizers.pt"
ENCODER_FILE = "encoder.safetensors"
BEST_JSON = "best.json"
ARTIFACT = "artifact"
MANIFEST_JSON = "manifest.json"

MAKE_CHECKPOINT = "make one with `spade train`, or `spade import FILE` for a released model"
MAKE_ARTIFACT = "make one with `spade export`"

_DAMAGED_HINT = "the folder was damaged or copied in part; use another one"
FUTURE_NS = 300 * 10**9
"""A date is in the future from here on: the clocks of two machines differ by seconds."""

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"\w[\w.+-]{0,99}")


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of checkpoint.json.

    origin: 'train' or 'import'. source: the file that was imported.
    sha256 of the files that are there, as hexadecimal; those of the training state and of the style encoder are empty
    where there is none.
    train, data: the run's settings as JSON, None for an imported model.
    versions: of the packages that made it.
    guesses: what an import took for granted, one sentence each.
    """

    created_unix_ns: int
    step: int
    origin: str
    generator: GeneratorSpec
    generator_sha256: str
    discriminator_sha256: str = ""
    optimizers_sha256: str = ""
    encoder_sha256: str = ""
    source: str = ""
    train: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    guesses: list[str] | None = None

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
        for name, is_right, wanted in _INFO_FIELDS:
            if not is_right(value.get(name)):
                raise CheckpointError(f"{where}: {name} is {quoted(value.get(name))}, not {wanted}")
        try:
            generator = GeneratorSpec.from_json(value["generator"])
        except (ConfigError, KeyError) as error:
            raise CheckpointError(f"{where}: generator: {reason_of(error)}") from error
        known = {entry.name: value[entry.name] for entry in fields(cls) if value.get(entry.name) is not None}
        return cls(**{**known, "generator": generator})


@dataclass(frozen=True)
class Best:
    """The content of best.json: the step of a run's best checkpoint, and by which metric.

    direction: 'lower' or 'higher', which is better. measured_with: what values must share to be compared.
    """

    step: int
    metric: str
    value: float
    direction: str
    measured_with: dict[str, Any]

    @property
    def described(self) -> str:
        return f"{self.metric} {self.value:.4g} in step {self.step}"

    def is_better_than(self, other: Best) -> bool:
        return self.value < other.value if self.direction == "lower" else self.value > other.value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def new_run(runs_dir: Path, name: str | None = None, prefix: str = "run") -> Path:
    """Make an empty run folder: `name`, or the next free of prefix-001, prefix-002, ... Never one that exists.

    Raises ConfigError for a name that is taken or no plain folder name.
    """
    check_name("--name", name if name is not None else prefix)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (runs_dir / name).mkdir()
            return runs_dir / name
        while True:
            run = runs_dir / f"{prefix}-{_next_number(runs_dir, prefix):03d}"
            try:
                run.mkdir()
            except FileExistsError:  # another process took it just now
                continue
            return run
    except FileExistsError as error:
        raise ConfigError(
            f"--name: {runs_dir / str(name)} exists already",
            hint=f"choose another name, or continue it with `spade train --resume {runs_dir / str(name)}`",
        ) from error
    except OSError as error:
        raise ConfigError(f"{runs_dir}: a run folder cannot be made there ({error.strerror})") from error


def check_name(flag: str, name: str) -> None:
    """Raises ConfigError unless `name` is a plain folder name: no separators, no leading dot, at most 100 letters."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{flag}: {quoted(name)} is not letters, digits, '_', '-', '+' and '.', the first no dot or sign"
        )


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return run / CHECKPOINTS / f"step_{step:08d}"


def read_checkpoint_info(checkpoint: Path) -> CheckpointInfo:
    """What a checkpoint folder says of itself. Raises CheckpointError where it is damaged, missing or newer."""
    path = checkpoint / CHECKPOINT_JSON
    return CheckpointInfo.from_json(_read_json(path, CheckpointError), path)


def run_checkpoints(run: Path) -> list[Path]:
    """Usable checkpoints of one run in the order of their steps; damaged ones are left out."""
    found = []
    for folder in _checkpoints_in(run):
        facts = _peek(folder / CHECKPOINT_JSON)
        if _is_int(facts.get("created_unix_ns")) and _is_int(facts.get("step")):
            found.append((facts["step"], folder.as_posix(), folder))
    return [folder for _, _, folder in sorted(found)]


def damaged_checkpoints(run: Path) -> list[tuple[Path, str]]:
    """The folders that `run_checkpoints` leaves out, and why: a damaged one, or a link that leads nowhere."""
    usable, found = set(run_checkpoints(run)), []
    for folder in _folders(run / CHECKPOINTS):
        if folder not in usable:
            try:
                read_checkpoint_info(folder)
                _require_file(folder / GENERATOR_FILE, CheckpointError)
            except CheckpointError as error:
                found.append((folder, error.message))
    return found


def say_damaged(chosen: Path) -> None:
    """Warn of checkpoints of the same run that come after the one that was chosen, and cannot be used."""
    for folder, why in damaged_checkpoints(chosen.parent.parent):
        if folder.name > chosen.name:
            _LOG.warning("%s is used, since the later checkpoint %s is damaged: %s", chosen, folder.name, why)


def newest_checkpoint(runs_dir: Path) -> Path:
    """The last checkpoint of the run whose last one is the newest. Raises NotFoundError."""
    found = _newest([run_checkpoints(run)[-1:] for run in _runs(runs_dir)], CHECKPOINT_JSON)
    if found is None:
        raise NotFoundError(f"{runs_dir}: no checkpoint in any run", hint=MAKE_CHECKPOINT)
    say_damaged(found)
    return found


def newest_artifact(runs_dir: Path) -> Path:
    """The newest artifact of all runs. Raises NotFoundError."""
    found = _newest([[run / ARTIFACT] for run in _runs(runs_dir)], MANIFEST_JSON)
    if found is None:
        raise NotFoundError(f"{runs_dir}: no artifact in any run", hint=MAKE_ARTIFACT)
    return found


def newest_run_to_resume(runs_dir: Path) -> Path:
    """The run whose last checkpoint with a training state is the newest. Raises NotFoundError."""
    candidates = [[folder for folder in run_checkpoints(run) if is_resumable(folder)][-1:] for run in _runs(runs_dir)]
    found = _newest(candidates, CHECKPOINT_JSON)
    if found is None:
        raise NotFoundError(
            f"{runs_dir}: no run has a checkpoint that training could resume", hint="start one with `spade train`"
        )
    return found.parent.parent


def is_resumable(checkpoint: Path) -> bool:
    """Whether a checkpoint is whole and holds a training state."""
    try:
        info = read_checkpoint_info(checkpoint)
    except CheckpointError:
        return False
    return info.is_resumable and all((checkpoint / name).is_file() for name in (DISCRIMINATOR_FILE, OPTIMIZERS_FILE))


def read_best(run: Path) -> Best | None:
    """What best.json says, None where there is none. Raises CheckpointError where it is damaged."""
    path = run / BEST_JSON
    if not os.path.lexists(path):
        return None
    value = _read_json(path, CheckpointError)
    for name, is_right, wanted in _BEST_FIELDS:
        if not is_right(value.get(name)):
            raise CheckpointError(f"{path}: {name} is {quoted(value.get(name))}, not {wanted}")
    return Best(**{entry.name: value[entry.name] for entry in fields(Best)})


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run by the metric it was trained to keep.

    Raises NotFoundError where none was chosen, CheckpointError where best.json or the checkpoint is damaged.
    """
    best = read_best(run)
    if best is None:
        raise NotFoundError(
            f"{run}: no checkpoint was chosen as the best one ({BEST_JSON} is missing)",
            hint="train with --eval-every N --best-by METRIC, or leave --best out for the newest",
        )
    checkpoint = checkpoint_folder(run, best.step)
    read_checkpoint_info(checkpoint)
    _require_file(checkpoint / GENERATOR_FILE, CheckpointError)
    return checkpoint


def resolve_checkpoint(path: Path | None, runs_dir: Path, *, best: bool = False) -> Path:
    """A checkpoint folder from what the user gave: one, a file inside it, a run (its newest), or None (the newest).

    best: not the newest of that run but its best.
    Raises NotFoundError where there is nothing, CheckpointError where what there is cannot be read, ConfigError where
    a checkpoint is named and the best is asked for.
    """
    if best:
        run = newest_checkpoint(runs_dir).parent.parent if path is None else path
        if (run / CHECKPOINT_JSON).exists() or run.is_file():
            raise ConfigError(f"--best: {run} is a checkpoint already", hint="name the run, or leave --best out")
        if not run.exists():
            raise NotFoundError(f"{run}: does not exist", hint=MAKE_CHECKPOINT)
        return best_checkpoint(run)
    if path is None:
        return newest_checkpoint(runs_dir)
    if not path.exists():
        raise NotFoundError(f"{path}: does not exist", hint=MAKE_CHECKPOINT)
    if path.is_file():
        if path.name not in (GENERATOR_FILE, CHECKPOINT_JSON):
            raise CheckpointError(
                f"{path}: is a file; a checkpoint is a folder with {CHECKPOINT_JSON}",
                hint=f"a released model becomes one with `spade import {path}`",
            )
        path = path.parent
    if (path / CHECKPOINTS).is_dir():
        return _newest_of_run(path)
    if (path / CHECKPOINT_JSON).exists() or (path / GENERATOR_FILE).exists():
        read_checkpoint_info(path)
        _require_file(path / GENERATOR_FILE, CheckpointError)
        return path
    raise NotFoundError(
        f"{path}: is neither a checkpoint ({CHECKPOINT_JSON}) nor a run ({CHECKPOINTS}/)", hint=MAKE_CHECKPOINT
    )


def resolve_artifact(path: Path | None, runs_dir: Path) -> Path:
    """An artifact folder from what the user gave: one, its manifest, the run that holds it, or None (the newest).

    Raises NotFoundError where there is nothing, ArtifactError where the manifest is no JSON.
    """
    if path is None:
        return newest_artifact(runs_dir)
    if not path.exists():
        raise NotFoundError(f"{path}: does not exist", hint=MAKE_ARTIFACT)
    if path.is_file():
        if path.name != MANIFEST_JSON:
            raise ArtifactError(f"{path}: is a file; an artifact is a folder with {MANIFEST_JSON}")
        path = path.parent
    folder = path if (path / MANIFEST_JSON).exists() else path / ARTIFACT
    if not (folder / MANIFEST_JSON).exists():
        raise NotFoundError(
            f"{path}: is neither an artifact ({MANIFEST_JSON}) nor a run with one ({ARTIFACT}/)", hint=MAKE_ARTIFACT
        )
    _read_json(folder / MANIFEST_JSON, ArtifactError)
    return folder


def find_checkpoint_by_digest(sha256: str, near: Path, runs_dir: Path) -> Path | None:
    """The checkpoint whose generator file has this digest: first in the run that holds `near`, then in all runs.

    Reads JSON alone: whether the file still has the digest is checked by whoever loads it.
    """
    near = near.resolve()
    homes = [parent for parent in (near, *near.parents) if (parent / CHECKPOINTS).is_dir()][:1]
    for run in [*homes, *_runs(runs_dir)]:
        for checkpoint in reversed(run_checkpoints(run)):
            if _peek(checkpoint / CHECKPOINT_JSON).get("generator_sha256") == sha256:
                return checkpoint
    return None


def _runs(runs_dir: Path) -> list[Path]:
    return _folders(runs_dir)


def _checkpoints_in(run: Path) -> list[Path]:
    return [folder for folder in _folders(run / CHECKPOINTS) if (folder / GENERATOR_FILE).is_file()]


def _folders(parent: Path) -> list[Path]:
    # A leading dot marks what is being written.
    try:
        return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def _newest(candidates: Sequence[Iterable[Path]], json_name: str) -> Path | None:
    """The candidate whose JSON has the latest date, of those whose JSON can be read; a date in the future is said."""
    dated: list[tuple[int, str, Path]] = []
    for folder in (folder for group in candidates for folder in group):
        found = _peek(folder / json_name).get("created_unix_ns")
        if found is not None and _is_int(found):
            dated.append((found, folder.as_posix(), folder))
    if not dated:
        return None
    created, _, folder = max(dated)
    if created > time.time_ns() + FUTURE_NS:
        _LOG.warning(
            "%s was taken as the newest, but it is dated %s, in the future: this clock or the one that dated it is"
            " wrong. Name the folder that is meant",
            folder,
            _date(created),
        )
    return folder


def _date(created_unix_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(created_unix_ns / 1e9))  # of 64 bits: up to 2262


def _newest_of_run(run: Path) -> Path:
    usable = run_checkpoints(run)
    if usable:
        say_damaged(usable[-1])
        return usable[-1]
    for folder in _folders(run / CHECKPOINTS):
        read_checkpoint_info(folder)  # says what is wrong with it
        _require_file(folder / GENERATOR_FILE, CheckpointError)
    raise NotFoundError(f"{run}: has no checkpoint yet", hint=MAKE_CHECKPOINT)


def _peek(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one where there is none to read: the search goes on."""
    try:
        return _read_json(path, CheckpointError)
    except CheckpointError:
        return {}


def _read_json(path: Path, kind: type[SpadeError]) -> dict[str, Any]:
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


def _next_number(runs_dir: Path, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"-(\d+)")
    numbers = [int(match[1]) for child in runs_dir.iterdir() if (match := pattern.fullmatch(child.name))]
    return max(numbers, default=0) + 1


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


_BEST_FIELDS = (
    ("step", lambda value: _is_int(value) and value >= 0, "a number of steps"),
    ("metric", lambda value: isinstance(value, str), "a text"),
    ("value", lambda value: _is_int(value) or isinstance(value, float), "a number"),
    ("direction", lambda value: value in ("lower", "higher"), "'lower' or 'higher'"),
    ("measured_with", lambda value: isinstance(value, dict), "an object"),
)

_INFO_FIELDS = (
    ("created_unix_ns", lambda value: _is_int(value) and value >= 0, "a time in nanoseconds"),
    ("step", lambda value: _is_int(value) and value >= 0, "a number of steps"),
    ("origin", lambda value: value in ("train", "import"), "'train' or 'import'"),
    ("generator", lambda value: isinstance(value, dict), "an object"),
    ("generator_sha256", _is_digest, "a SHA-256"),
    ("discriminator_sha256", lambda value: value in (None, "") or _is_digest(value), "a SHA-256"),
    ("optimizers_sha256", lambda value: value in (None, "") or _is_digest(value), "a SHA-256"),
    ("encoder_sha256", lambda value: value in (None, "") or _is_digest(value), "a SHA-256"),
    ("source", lambda value: value is None or isinstance(value, str), "a text"),
    ("train", lambda value: value is None or isinstance(value, dict), "an object"),
    ("data", lambda value: value is None or isinstance(value, dict), "an object"),
    ("versions", lambda value: value is None or isinstance(value, dict), "an object"),
    (
        "guesses",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value)),
        "a list of texts",
    ),
)
