"""Which label map becomes which result, with which instance map, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError
from spade_deploy.inference.results import is_done
from spade_deploy.label_map import duplicate_stems, is_image_name, list_label_files

RESULT_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Failure:
    """A label file without a result, why, and what to do about it."""

    path: Path
    message: str
    hint: str | None = None


def failure(path: Path, error: Exception) -> Failure:
    """What went wrong with a file; the message names it."""
    message = str(error) if str(path) in str(error) else f"{path}: {error}"
    return Failure(path, message, getattr(error, "hint", None))


@dataclass(frozen=True)
class Job:
    """One result to make."""

    label: Path
    instance: Path | None
    result: Path


@dataclass(frozen=True)
class Plan:
    """What is to be done; skipped: results that are there already; failures: files that pair with nothing."""

    folder: Path
    jobs: tuple[Job, ...]
    skipped: int
    failures: tuple[Failure, ...]


def make_plan(labels: Path, out: Path, instances: Path | None, image_format: str, overwrite: bool) -> Plan:
    """Pair labels, instances and results; no label map is opened yet. Raises ConfigError, NotFoundError."""
    if f".{image_format}" not in RESULT_SUFFIXES:
        raise ConfigError(f"--format: {image_format!r} is not one of png, jpg")
    if not labels.exists():
        raise NotFoundError(f"{labels} does not exist", hint="give a folder of label maps, or one label map")
    files = [labels] if labels.is_file() else list_label_files(labels)
    if not files:
        raise NotFoundError(
            f"{labels} holds no label maps (.png files and the like; folders inside are not searched)",
            hint="`spade data earth OUT` writes label maps to try",
        )
    folder, named = _result_place(labels, out, instances, image_format)
    twice = duplicate_stems(files)
    pairing = _Pairing(labels, instances)
    jobs, failures, skipped = [], [], 0
    for file in files:
        result = named or folder / f"{file.stem}.{image_format}"
        if file.stem in twice:
            others = " and ".join(path.name for path in twice[file.stem] if path != file)
            failures.append(Failure(file, f"{file}: its result would be named like that of {others}; rename one"))
        else:
            try:
                if is_done(result, overwrite=overwrite):
                    skipped += 1
                else:
                    jobs.append(Job(file, pairing.instance_of(file), result))
            except LabelMapError as error:
                failures.append(failure(file, error))
    return Plan(folder, tuple(jobs), skipped, tuple(failures))


def _result_place(labels: Path, out: Path, instances: Path | None, image_format: str) -> tuple[Path, Path | None]:
    """The folder of the results, and the result's own path for a single label file. Inputs are never overwritten."""
    inputs = [labels] if instances is None else [labels, instances]
    result = None
    if labels.is_file():
        is_name = not out.is_dir() and is_image_name(out)
        if is_name and out.suffix.lower() not in RESULT_SUFFIXES:
            raise ConfigError(f"{out}: results are written as {', '.join(RESULT_SUFFIXES)}, not as {out.suffix}")
        result = out if is_name else out / f"{labels.stem}.{image_format}"
    elif out.is_file():
        raise ConfigError(f"{out} is a file; the results of a folder go into a folder")
    places = [out] if result is None else [out, result, result.parent]
    for path in inputs:
        for place in places:
            if path.exists() and place.exists() and place.samefile(path):
                raise ConfigError(f"{place} is an input: results would overwrite it", hint="choose another folder")
    return (out if result is None else result.parent), result


class _Pairing:
    """Label file -> instance file: of the same stem, or the one file for the one label map."""

    def __init__(self, labels: Path, instances: Path | None) -> None:
        self._instances = instances
        if instances is not None and not instances.exists():
            raise NotFoundError(f"--instances: {instances} does not exist", hint="give the folder of instance maps")
        self._single = instances if instances is not None and instances.is_file() else None
        if self._single is not None and labels.is_dir():
            raise ConfigError(f"--instances: {instances} is a file, but {labels} is a folder", hint="give a folder")
        files = list_label_files(instances) if instances is not None and self._single is None else []
        self._twice = duplicate_stems(files)
        self._by_stem = {path.stem: path for path in files}

    def instance_of(self, label: Path) -> Path | None:
        if self._instances is None or self._single is not None:
            return self._single
        if label.stem in self._twice:
            names = " and ".join(path.name for path in self._twice[label.stem])
            raise LabelMapError(f"{label}: {self._instances} holds {names}: which is meant cannot be told")
        if label.stem not in self._by_stem:
            raise LabelMapError(f"{label}: there is no instance map {label.stem}.png in {self._instances}")
        return self._by_stem[label.stem]
