"""The folder of an artifact: who may write it, what an export may replace, and which engines an export keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spade_deploy.artifact.engines import FOLDER, TIMING_CACHE, visible, whole_engines
from spade_deploy.artifact.folder import Artifact
from spade_deploy.artifact.manifest import MANIFEST, read_manifest
from spade_deploy.errors import ArtifactError, ConfigError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.files.temporary import beside, bring_back, is_temporary

_LITTER = (LOCK, ".DS_Store")


@contextmanager
def writing(target: Path, doing: str) -> Iterator[None]:
    """Hold the lock of an artifact's folder, which need not exist yet. Raises FolderBusyError, which names the holder.

    The lock lies beside the folder, since an export replaces the folder as a whole. If nothing may be written beside
    it, for example because a container sees only this folder, the lock lies inside.
    """
    file = beside(target, LOCK)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError:
        file = target / FOLDER / LOCK
    with locked(target, doing, file=file):
        yield


def foreign_files(folder: Path) -> tuple[str, ...]:
    """The names of the files in an artifact's folder that are no part of it.

    Raises ArtifactError if the folder is no artifact.
    """
    manifest = read_manifest(folder)
    own = {MANIFEST, *manifest.files}
    for engine in visible(folder / FOLDER, ".engine"):
        own |= {f"{FOLDER}/{engine.name}", f"{FOLDER}/{engine.stem}.json"}
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_cache = path.parent == folder / FOLDER and name.endswith(f"-{TIMING_CACHE}")
        is_folder = path.is_dir() and not path.is_symlink()
        is_left = any(is_temporary(part) for part in name.split("/"))  # by a process that was killed
        if not is_folder and name not in own and not is_cache and path.name not in _LITTER and not is_left:
            found.append(name)
    return tuple(found)


def require_replaceable(target: Path) -> None:
    """Raise ConfigError unless there is nothing at `target`, an empty folder, or an artifact and nothing else."""
    bring_back(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    hint = "name another folder; if nothing in it is needed, delete it first"
    try:
        foreign = foreign_files(target)
    except ArtifactError as error:
        raise ConfigError(
            f"`out`: {target} exists and is not an artifact, so it is not replaced ({error.message})", hint=hint
        ) from error
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ConfigError(
            f"`out`: {target} holds files that do not belong to its artifact, so it is not replaced ({shown})",
            hint=hint,
        )


def free_place(target: Path) -> Path:
    """The first of `target`, target-2, target-3, ... that an artifact may take without overwriting other files."""
    for number in range(1, 1000):
        place = target if number == 1 else target.with_name(f"{target.name}-{number}")
        try:
            require_replaceable(place)
        except ConfigError:
            continue
        return place
    raise ConfigError(f"{target}: there is no free name beside it", hint="delete some of them")


def carry_engines(old: Path, new: Path) -> tuple[str, ...]:
    """Copy the engines of the same graphs from an artifact that is replaced into the new one's folder.

    old: the artifact that is replaced, if there is one. Returns sentences about what was kept and what was not.
    """
    if not (old / FOLDER).is_dir():
        return ()
    for cache in visible(old / FOLDER, f"-{TIMING_CACHE}"):
        _copy(cache, new / FOLDER / cache.name)
    digests = {fact.sha256 for fact in read_manifest(new).files.values()}
    kept = []
    for entry in whole_engines(Artifact(old, read_manifest(old))):
        if entry.key.get("onnx_sha256") in digests:
            for name in (f"{entry.name}.engine", f"{entry.name}.json"):  # its manifest comes last
                _copy(old / FOLDER / name, new / FOLDER / name)
            kept.append(entry.name)
    lost = len(visible(old / FOLDER, ".engine")) - len(kept)
    notes = []
    if kept:
        notes.append(f"engines of graphs that are the same as before were kept: {', '.join(kept)}")
    if lost:
        count = "1 engine was" if lost == 1 else f"{lost} engines were"
        notes.append(f"{count} removed with the old artifact: `spade build` makes engines of the new graphs")
    return tuple(notes)


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target, flush="nothing") as temporary:  # the whole folder is flushed later
        shutil.copyfile(source, temporary)
