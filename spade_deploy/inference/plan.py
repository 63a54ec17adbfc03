"""Plan the results: which label map becomes which image, where they go, and which files are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.inference.jobs import Failure, Job, failure
from spade_deploy.inference.log import logged_files
from spade_deploy.inference.places.found import Found
from spade_deploy.inference.places.packs import SUFFIXES, PackStore, pack_parts
from spade_deploy.inference.places.sources import is_plain
from spade_deploy.inference.places.store import FolderStore, Store
from spade_deploy.inference.places.url_store import UrlStore
from spade_deploy.inference.places.urls import is_url, shown
from spade_deploy.inference.request import InferRequest
from spade_deploy.labels.files import RESULT_SUFFIXES, is_image_name


@dataclass(frozen=True)
class Destination:
    """Where the results of a run go."""

    store: Store
    """The place."""

    has_record: bool
    """Whether it is a place for many images, with a record and a list; False for a single image with a name."""

    named: str | None = None
    """The name of the only result, if the request gives it."""


@dataclass(frozen=True)
class Plan:
    """The images that are to be made, and the files that are left out."""

    jobs: tuple[Job, ...]
    """The images to make, in the order of the label files."""

    kept: tuple[tuple[str, str], ...]
    """The id and the name of each image that is there already."""

    failures: tuple[Failure, ...]
    """Files that have no partner, or whose image cannot be written."""

    left_out: tuple[str, ...] = ()
    """A sentence for each photo that lies beside its label map."""


def make_plan(request: InferRequest, found: Found, to: Destination, redo_before_ns: int | None = None) -> Plan:
    """Results for the label maps that were found in `labels`; none is opened yet.

    redo_before_ns: results that are older are made again, whatever `overwrite` says.
    """
    jobs, kept, failures = [], [], list(found.failures)
    for item in found.items:
        result = to.named or f"{item.id}.{request.image_format}"
        try:
            if to.store.holds(result, overwrite=request.overwrite, redo_before_ns=redo_before_ns):
                kept.append((item.id, result))
            else:
                jobs.append(Job(item.id, item.label, item.instance, result))
        except LabelMapError as error:
            failures.append(failure(item.label, error, item.id))
    return Plan(tuple(jobs), tuple(kept), tuple(failures), found.left_out)


def destination(request: InferRequest, found: Found) -> Destination:
    """The place of the results. Inputs are never overwritten. Raises ConfigError."""
    out = request.out
    if Path(str(out)).suffix.lower() in SUFFIXES and not (isinstance(out, Path) and out.is_dir()):
        return Destination(_packs(request, out), has_record=True)
    is_single = is_plain(request.labels) and Path(request.labels).is_file()
    if is_url(out) or (not is_plain(request.labels) and is_image_name(Path(out)) and not Path(out).is_dir()):
        if is_image_name(Path(str(out))):
            raise ConfigError(f"`out`: {shown(out)} names an image; results go into a folder", hint="name a folder")
        if is_url(out):
            return Destination(UrlStore(str(out)), has_record=True)
    folder, named = _result_place(request, found)
    store = FolderStore(folder if named is None else named.parent)
    is_named = is_single and not Path(out).is_dir() and is_image_name(Path(out))
    return Destination(store, has_record=not is_named, named=None if named is None else named.name)


def _packs(request: InferRequest, out: Path | str) -> PackStore:
    folder, pattern = pack_parts(out)
    inner = FolderStore(folder) if isinstance(folder, Path) else UrlStore(folder)
    if request.overwrite:
        raise ConfigError(
            "`overwrite`: images in shards are not replaced", hint="name other shards, or remove these and run again"
        )
    logged = (logged_files(inner) or {}) if isinstance(inner, UrlStore) else {}
    return PackStore(inner, pattern, request.shard_size, logged.values())


def _result_place(request: InferRequest, found: Found) -> tuple[Path, Path | None]:
    """The folder of the results, and the result's own path for a single label file. Inputs are never overwritten."""
    labels, out, image_format = Path(str(request.labels)), Path(request.out), request.image_format
    is_single = is_plain(request.labels) and labels.is_file()
    known = [file for item in found.items for file in (item.label, item.instance)]
    files = [file for file in (*known, *(one.path for one in found.failures)) if isinstance(file, Path)]
    inputs = {labels} | {file.parent for file in files}
    if is_single:
        inputs = {labels} | {item.instance for item in found.items if isinstance(item.instance, Path)}
    result = None
    if is_single:
        is_name = not out.is_dir() and is_image_name(out)
        if is_name and out.suffix.lower() not in RESULT_SUFFIXES:
            raise ConfigError(
                f"{out}: results are written as {', '.join(RESULT_SUFFIXES)}, not as {out.suffix}",
                hint=f"name it {out.with_suffix('.png')}",
            )
        stem = next((item.id for item in found.items), labels.stem)
        result = out if is_name else out / f"{stem}.{image_format}"
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
