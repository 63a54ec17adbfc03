"""Plan the results: which label map becomes which image, with which instance map, and which files are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.inference.jobs import Failure, Job, failure
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.results import is_done
from spade_deploy.labels.files import RESULT_SUFFIXES, is_image_name
from spade_deploy.labels.pairs import Pairing


@dataclass(frozen=True)
class Plan:
    """The images that are to be made, and the files that are left out."""

    folder: Path
    """The folder of the images."""

    jobs: tuple[Job, ...]
    """The images to make, in the order of the label files."""

    skipped: int
    """How many images are there already."""

    failures: tuple[Failure, ...]
    """Files that have no partner, or whose image cannot be written."""

    left_out: tuple[str, ...] = ()
    """A sentence for each photo that lies beside its label map."""


def make_plan(request: InferRequest, found: Pairing, redo_before_ns: int | None = None) -> Plan:
    """Results for the label maps that were found in `labels`; none is opened yet. Raises ConfigError.

    redo_before_ns: results that are older are made again, whatever `overwrite` says.
    """
    labels, out, image_format = request.labels, request.out, request.image_format
    folder, named = _result_place(labels, found, out, image_format)
    named_alike: dict[str, list[Path]] = {}
    for sample in found.samples:
        named_alike.setdefault(sample.stem, []).append(sample.label)
    jobs, skipped = [], 0
    failures = [
        Failure(problem.path, f"{problem.path}: {problem.message}")
        for problem in found.problems
        if problem.code != "photo"
    ]
    for sample in found.samples:
        result = named or folder / f"{sample.stem}.{image_format}"
        others = [path for path in named_alike[sample.stem] if path != sample.label]
        if others:
            message = f"{sample.label}: its result would have the same name as that of {others[0]}"
            failures.append(Failure(sample.label, message, "give the folder of one split at a time"))
            continue
        try:
            if is_done(result, overwrite=request.overwrite) and not _is_older(result, redo_before_ns):
                skipped += 1
            else:
                jobs.append(Job(sample.stem, sample.label, sample.instance, result.name))
        except LabelMapError as error:
            failures.append(failure(sample.label, error))
    left_out = tuple(f"{p.path}: {p.message}" for p in found.problems if p.code == "photo")
    return Plan(folder, tuple(jobs), skipped, tuple(failures), left_out)


def _is_older(result: Path, redo_before_ns: int | None) -> bool:
    return redo_before_ns is not None and result.stat().st_mtime_ns < redo_before_ns


def result_folder(labels: Path, out: Path) -> Path | None:
    """The folder that a run fills; None for a single image whose name is given."""
    return None if labels.is_file() and not out.is_dir() and is_image_name(out) else out


def _result_place(labels: Path, found: Pairing, out: Path, image_format: str) -> tuple[Path, Path | None]:
    """The folder of the results, and the result's own path for a single label file. Inputs are never overwritten."""
    inputs = {labels} | {file.parent for sample in found.samples for file in (sample.label, sample.instance) if file}
    if labels.is_file():
        inputs = {labels} | {sample.instance for sample in found.samples if sample.instance}
    stems = [sample.stem for sample in found.samples]
    result = None
    if labels.is_file():
        is_name = not out.is_dir() and is_image_name(out)
        if is_name and out.suffix.lower() not in RESULT_SUFFIXES:
            raise ConfigError(
                f"{out}: results are written as {', '.join(RESULT_SUFFIXES)}, not as {out.suffix}",
                hint=f"name it {out.with_suffix('.png')}",
            )
        result = out if is_name else out / f"{next(iter(stems), labels.stem)}.{image_format}"
    elif out.is_file():
        raise ConfigError(
            f"{out} is a file; the results of a folder go into a folder", hint="name a folder, which may be a new one"
        )
    places = [out] if result is None else [out, result, result.parent]
    for path in inputs:
        for place in places:
            if path.exists() and place.exists() and place.samefile(path):
                raise ConfigError(f"{place} is an input: results would overwrite it", hint="choose another folder")
    return (out if result is None else result.parent), result
