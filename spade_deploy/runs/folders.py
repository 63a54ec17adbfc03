"""Find checkpoints and artifacts in run folders: the newest, the best, or the one that the user names.

The rule for 'newest': inside a run the step decides, since clocks may go back and steps do not. Between runs the
largest `created_unix_ns` decides, which stands inside checkpoint.json (that of a run's last step) or manifest.json; the
time of the file itself would change when it is copied. Of equal dates the last path wins. A date in the future is
reported. An explicit path always wins.
Nothing here reads weights, so that a deployment without PyTorch can use it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spade_deploy.errors import ArtifactError, CheckpointError, ConfigError, NotFoundError
from spade_deploy.runs.layout import (
    ARTIFACT,
    BEST_JSON,
    CHECKPOINT_JSON,
    CHECKPOINTS,
    DISCRIMINATOR_FILE,
    GENERATOR_FILE,
    MANIFEST_JSON,
    OPTIMIZERS_FILE,
    checkpoint_folder,
)
from spade_deploy.runs.records import read_best, read_checkpoint_info, read_object, require_generator

MAKE_CHECKPOINT = "make one with `spade train`, or `spade import FILE` for a released model"
MAKE_ARTIFACT = "make one with `spade export`"
_CHECK_PATH = "check the path, or "

FUTURE_NS = 300 * 10**9
"""How far ahead of the clock a date may be before a warning: the clocks of two machines differ by seconds."""

_LOG = logging.getLogger(__name__)


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
                require_generator(folder)
            except CheckpointError as error:
                found.append((folder, error.message))
    return found


def say_damaged(chosen: Path) -> None:
    """Warn of damaged checkpoints of the same run that come after the one that was chosen."""
    for folder, why in damaged_checkpoints(chosen.parent.parent):
        if folder.name > chosen.name:
            _LOG.warning("%s is used, since the later checkpoint %s is damaged: %s", chosen, folder.name, why)


def newest_checkpoint(runs_dir: Path) -> Path:
    """The last checkpoint of the run whose last one is the newest. Raises NotFoundError."""
    found = _newest([run_checkpoints(run)[-1:] for run in _folders(runs_dir)], CHECKPOINT_JSON)
    if found is None:
        raise NotFoundError(f"{runs_dir}: no checkpoint in any run", hint=MAKE_CHECKPOINT)
    say_damaged(found)
    return found


def newest_artifact(runs_dir: Path) -> Path:
    """The newest artifact of all runs. Raises NotFoundError."""
    found = _newest([[run / ARTIFACT] for run in _folders(runs_dir)], MANIFEST_JSON)
    if found is None:
        raise NotFoundError(f"{runs_dir}: no artifact in any run", hint=MAKE_ARTIFACT)
    return found


def newest_run_to_resume(runs_dir: Path) -> Path:
    """The run whose last checkpoint with a training state is the newest. Raises NotFoundError."""
    runs = _folders(runs_dir)
    candidates = [[folder for folder in run_checkpoints(run) if is_resumable(folder)][-1:] for run in runs]
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


def best_checkpoint(run: Path) -> Path:
    """The best checkpoint of a run by the metric it was trained to keep.

    Raises NotFoundError where none was chosen, CheckpointError where best.json or the checkpoint is damaged.
    """
    best = read_best(run)
    if best is None:
        raise NotFoundError(
            f"{run}: no checkpoint was chosen as the best one ({BEST_JSON} is missing)",
            hint="train with `spade train --eval-every N --best-by METRIC`, or leave `best` out for the newest",
        )
    checkpoint = checkpoint_folder(run, best.step)
    read_checkpoint_info(checkpoint)
    require_generator(checkpoint)
    return checkpoint


def resolve_checkpoint(path: Path | None, runs_dir: Path, *, best: bool = False) -> Path:
    """The checkpoint folder that a path of the user means: that folder, a file inside it, or a run with checkpoints.

    Of a run it is the newest checkpoint, or with `best` the best one; for None it is the newest of all runs.
    Raises NotFoundError if there is none, CheckpointError if it cannot be read, ConfigError if a checkpoint is named
    and the best one is asked for.
    """
    if best:
        run = newest_checkpoint(runs_dir).parent.parent if path is None else path
        if (run / CHECKPOINT_JSON).exists() or run.is_file():
            raise ConfigError(f"`best`: {run} is a checkpoint already", hint="name the run, or leave `best` out")
        if not run.exists():
            raise NotFoundError(f"{run}: does not exist", hint=_CHECK_PATH + MAKE_CHECKPOINT)
        return best_checkpoint(run)
    if path is None:
        return newest_checkpoint(runs_dir)
    if not path.exists():
        raise NotFoundError(f"{path}: does not exist", hint=_CHECK_PATH + MAKE_CHECKPOINT)
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
        require_generator(path)
        return path
    raise NotFoundError(
        f"{path}: is neither a checkpoint ({CHECKPOINT_JSON}) nor a run ({CHECKPOINTS}/)", hint=MAKE_CHECKPOINT
    )


def resolve_artifact(path: Path | None, runs_dir: Path) -> Path:
    """The artifact folder that a path of the user means: that folder, its manifest, or the run that holds it.

    For None it is the newest of all runs. Raises NotFoundError if there is none, ArtifactError if the manifest is no
    JSON.
    """
    if path is None:
        return newest_artifact(runs_dir)
    if not path.exists():
        raise NotFoundError(f"{path}: does not exist", hint=_CHECK_PATH + MAKE_ARTIFACT)
    if path.is_file():
        if path.name != MANIFEST_JSON:
            raise ArtifactError(
                f"{path}: is a file; an artifact is a folder with {MANIFEST_JSON}", hint="name the artifact's folder"
            )
        path = path.parent
    folder = path if (path / MANIFEST_JSON).exists() else path / ARTIFACT
    if not (folder / MANIFEST_JSON).exists():
        raise NotFoundError(
            f"{path}: is neither an artifact ({MANIFEST_JSON}) nor a run with one ({ARTIFACT}/)", hint=MAKE_ARTIFACT
        )
    read_object(folder / MANIFEST_JSON, ArtifactError)
    return folder


def usual_name(artifact: Path) -> str:
    """What an artifact is called where it is not named: that of the run of runs/earth-001/artifact is earth-001."""
    name = artifact.parent.name if artifact.name == ARTIFACT else artifact.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def find_checkpoint_by_digest(sha256: str, near: Path, runs_dir: Path) -> Path | None:
    """The checkpoint whose generator file has this digest: first in the run that holds `near`, then in all runs.

    Only JSON is read; loading the checkpoint checks whether its file still has the digest.
    """
    near = near.resolve()
    homes = [parent for parent in (near, *near.parents) if (parent / CHECKPOINTS).is_dir()][:1]
    for run in [*homes, *_folders(runs_dir)]:
        for checkpoint in reversed(run_checkpoints(run)):
            if _peek(checkpoint / CHECKPOINT_JSON).get("generator_sha256") == sha256:
                return checkpoint
    return None


def _checkpoints_in(run: Path) -> list[Path]:
    return [folder for folder in _folders(run / CHECKPOINTS) if (folder / GENERATOR_FILE).is_file()]


def _folders(parent: Path) -> list[Path]:
    # Names that begin with a dot are those of folders that are being written.
    try:
        return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:
        return []


def _newest(candidates: Sequence[Iterable[Path]], json_name: str) -> Path | None:
    """The candidate whose JSON has the latest date, of those whose JSON can be read; warns of a date in the future."""
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
            "%s was taken as the newest, but its date %s is in the future: this clock or the one that dated it is"
            " wrong. Name the folder that you mean",
            folder,
            _date(created),
        )
    return folder


def _date(created_unix_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(created_unix_ns / 1e9))  # 64 bits: up to 2262


def _newest_of_run(run: Path) -> Path:
    usable = run_checkpoints(run)
    if usable:
        say_damaged(usable[-1])
        return usable[-1]
    for folder in _folders(run / CHECKPOINTS):
        read_checkpoint_info(folder)  # its error says what is wrong
        require_generator(folder)
    raise NotFoundError(f"{run}: has no checkpoint yet", hint=MAKE_CHECKPOINT)


def _peek(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if it cannot be read, so that the search goes on."""
    try:
        return read_object(path, CheckpointError)
    except CheckpointError:
        return {}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
