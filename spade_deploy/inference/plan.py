"""Plan the results: which label map becomes which image, where they go, and which files are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.inference.jobs import Failure, Job, failure
from spade_deploy.inference.log import logged_files
from spade_deploy.inference.places.found import Found
from spade_deploy.inference.places.listing import is_pattern
from spade_deploy.inference.places.names import before_wildcards
from spade_deploy.inference.places.packs import SUFFIXES, PackStore, pack_parts
from spade_deploy.inference.places.sources import is_plain
from spade_deploy.inference.places.store import FolderStore, Store
from spade_deploy.inference.places.url_store import UrlStore
from spade_deploy.inference.places.urls import is_url, shown
from spade_deploy.inference.request import InferRequest
from spade_deploy.labels.files import RESULT_SUFFIXES, is_image_name
from spade_deploy.spec import Naming


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

    naming: Naming = Naming.STEM
    """How the images are named."""


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
    return Plan(tuple(jobs), tuple(kept), tuple(failures), found.left_out, found.naming)


def destination(request: InferRequest) -> Destination:
    """The place of the results. Raises ConfigError."""
    labels, out = request.labels, request.out
    if Path(str(out)).suffix.lower() in SUFFIXES and not (isinstance(out, Path) and out.is_dir()):
        return Destination(_packs(request, out), has_record=True)
    is_single = _is_single(request)
    if is_url(out) or (not is_plain(labels) and is_image_name(Path(out)) and not Path(out).is_dir()):
        if is_image_name(Path(str(out))):
            raise ConfigError(f"`out`: {shown(out)} names an image; results go into a folder", hint="name a folder")
        if is_url(out):
            return Destination(UrlStore(str(out)), has_record=True)
    out = Path(out)
    if not is_single or out.is_dir() or not is_image_name(out):
        if not is_single and out.is_file():
            raise ConfigError(
                f"{out} is a file; the results of a folder go into a folder",
                hint="name a folder, which may be a new one",
            )
        return Destination(FolderStore(out), has_record=True)
    if out.suffix.lower() not in RESULT_SUFFIXES:
        raise ConfigError(
            f"{out}: results are written as {', '.join(RESULT_SUFFIXES)}, not as {out.suffix}",
            hint=f"name it {out.with_suffix('.png')}",
        )
    return Destination(FolderStore(out.parent), has_record=False, named=out.name)


def _is_single(request: InferRequest) -> bool:
    return is_plain(request.labels) and Path(request.labels).is_file()


def _packs(request: InferRequest, out: Path | str) -> PackStore:
    folder, pattern = pack_parts(out)
    inner = FolderStore(folder) if isinstance(folder, Path) else UrlStore(folder)
    if request.overwrite:
        raise ConfigError(
            "`overwrite`: images in shards are not replaced", hint="name other shards, or remove these and run again"
        )
    logged = (logged_files(inner) or {}) if isinstance(inner, UrlStore) else {}
    return PackStore(inner, pattern, request.shard_size, logged.values())


def refuse_inputs(request: InferRequest, found: Found, to: Destination) -> None:
    """Raise ConfigError where results would lie among the label maps or instance maps, which they could overwrite."""
    if not isinstance(to.store, FolderStore):
        return
    labels, out = Path(str(request.labels)), to.store.path
    known = [file for item in found.items for file in (item.label, item.instance)]
    files = [file for file in (*known, *(one.path for one in found.failures)) if isinstance(file, Path)]
    if _is_single(request):
        inputs = {labels} | {item.instance for item in found.items if isinstance(item.instance, Path)}
        stem = next((item.id for item in found.items), labels.stem)
        result = out / (to.named or f"{stem}.{request.image_format}")
        places = {result, result.parent}
    else:
        inputs = {labels} | {file.parent for file in files}
        places = {out} | {out / item.id.rpartition("/")[0] for item in found.items if "/" in item.id}
    if is_pattern(labels) and Path(before_wildcards(labels)).resolve() in out.resolve().parents:
        inside = next((path for path in sorted(inputs) if out.resolve() in path.resolve().parents), None)
        if inside is not None:
            raise ConfigError(
                f"`out`: the pattern {labels} also names files in {inside}, where results are",
                hint="choose a folder that the pattern does not reach",
            )
    taken = {_identity(path) for path in inputs} - {None}
    for place in sorted(places):
        if _identity(place) in taken:
            raise ConfigError(f"{place} is an input: results would overwrite it", hint="choose another folder")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file or folder from all others, whatever it is called; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
