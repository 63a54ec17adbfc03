"""Where label maps come from: which kind of source a request names, and what it holds."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from spade_deploy.errors import ConfigError, NotFoundError, quoted
from spade_deploy.inference.jobs import Failure
from spade_deploy.inference.places.found import Found, Item
from spade_deploy.inference.places.listed import find_by_pattern, find_in_folder, find_in_list
from spade_deploy.inference.places.listing import is_pattern
from spade_deploy.inference.places.shards import find_in_shards
from spade_deploy.inference.places.tables import Columns, find_in_tables
from spade_deploy.inference.places.urls import is_url, shown
from spade_deploy.inference.request import InferRequest
from spade_deploy.labels.find import find_label_maps
from spade_deploy.labels.nested import has_images
from spade_deploy.labels.pairs import Pairing, require_instances
from spade_deploy.spec import LabelSpec, Naming

_PACKED = (".gz", ".tgz", ".zst", ".bz2", ".xz")
_HOLDS_INSTANCES = {
    ".tar": "shards hold the instance map of NAME.label.png as NAME.instance.png",
    ".parquet": "a table has instance maps in a column, which `instance_column` names",
}
"""Where packed sources have their instance maps."""
_NO_EDGES = "or `no_instances` to leave the edge channel empty (looks worse)"


def find(request: InferRequest, spec: LabelSpec, naming: Naming) -> Found:
    """The label maps that a request names; instance maps only for a model with an edge channel.

    naming: how files are named that are not those of a plain folder.
    Raises NotFoundError where there are none, ConfigError where instance maps are missing altogether, PlaceError,
    MissingDependencyError.
    """
    labels, needs_instances = request.labels, spec.has_edges and not request.no_instances
    instances = request.instances if needs_instances else None
    if not str(labels).partition("?")[0].lower().endswith(".parquet"):
        _refuse_columns(request)
    if is_plain(labels):
        return _plain(request, spec)
    suffix = Path(str(labels).partition("?")[0] if is_url(labels) else str(labels)).suffix.lower()
    if suffix in _PACKED:
        raise NotFoundError(
            f"{shown(labels)}: shards are read as plain .tar files, since members of a compressed one cannot be found",
            hint="unpack it, as with gunzip: label maps in PNG files are compressed already",
        )
    if instances is not None and suffix in _HOLDS_INSTANCES:
        raise ConfigError(
            f"`instances`: {shown(labels)} is not paired with instance maps in other files",
            hint=f"leave it out: {_HOLDS_INSTANCES[suffix]}",
        )
    if suffix == ".tar":
        found = find_in_shards(labels)
    elif suffix == ".parquet":
        instance_column = request.instance_column if needs_instances else None
        found = find_in_tables(labels, Columns(request.label_column, request.id_column, instance_column))
    elif suffix == ".txt":
        found = find_in_list(labels, instances, naming)
    elif is_pattern(labels):
        found = find_by_pattern(labels, instances, naming)
    else:
        found = find_in_folder(str(labels), instances, naming)
    return _with_instances(found, suffix) if needs_instances else _without_instances(found)


def _refuse_columns(request: InferRequest) -> None:
    for one in fields(request):
        if one.name.endswith("_column") and (value := getattr(request, one.name)) != one.default:
            raise ConfigError(
                f"`{one.name}` {value}: {shown(request.labels)} has no columns, since it is not a Parquet file",
                hint="leave it out",
            )


def is_plain(labels: Path | str) -> bool:
    """Whether a source is a folder or an image on this machine, as every command reads them."""
    if is_url(labels) or is_pattern(labels):
        return False
    return Path(labels).is_dir() or Path(labels).suffix.lower() not in (".tar", ".parquet", ".txt", *_PACKED)


def not_searched(request: InferRequest, found: Found) -> str | None:
    """A sentence if a folder of label maps has folders inside with images, which `find` leaves alone; else None.

    Data sets, whose layout has folders, and the folders of instance maps and results say nothing.
    """
    labels = request.labels
    if not (isinstance(labels, Path) and is_plain(labels) and labels.is_dir()):
        return None
    if any(not isinstance(item.label, Path) or item.label.parent != labels for item in found.items):
        return None
    others = {Path(place).resolve() for place in (request.out, request.instances) if isinstance(place, Path)}
    inside = sorted(
        entry.name
        for entry in os.scandir(labels)
        if entry.is_dir() and not entry.name.startswith(".") and Path(entry).resolve() not in others
    )
    full = [name for name in inside if has_images(labels / name)]
    if not full:
        return None
    those = f"the folder {quoted(full[0])}" if len(full) == 1 else f"{len(full)} folders, such as {quoted(full[0])}"
    return f"{labels}: images in {those} are left alone; '{labels}/**/*.png' names those in folders, too"


def _plain(request: InferRequest, spec: LabelSpec) -> Found:
    labels, instances = Path(request.labels), request.instances
    if isinstance(instances, str):
        raise ConfigError(f"`instances`: {shown(instances)} is a URL, but {labels} is a folder", hint="give a folder")
    try:
        found = find_label_maps(labels, instances, spec, preset=request.preset, no_instances=request.no_instances)
    except NotFoundError as error:
        if not labels.is_dir():
            raise
        raise NotFoundError(
            error.message, hint=f"'{labels}/**/*.png' names those in folders, too; {error.hint}"
        ) from error
    if instances is None and not request.no_instances:
        require_instances(found, spec, "`instances`", f"give their folder, {_NO_EDGES}")
    return from_pairing(found)


def from_pairing(found: Pairing) -> Found:
    """What is found in a folder, as any other source gives it. Files that share a stem are all failures."""
    alike: dict[str, list[Path]] = {}
    for sample in found.samples:
        alike.setdefault(sample.stem, []).append(sample.label)
    failures = [
        Failure(problem.path, f"{problem.path}: {problem.message}")
        for problem in found.problems
        if problem.code != "photo"
    ]
    items = []
    for sample in found.samples:
        others = [path for path in alike[sample.stem] if path != sample.label]
        if others:
            message = f"{sample.label}: its result would have the same name as that of {others[0]}"
            failures.append(
                Failure(
                    sample.label,
                    message,
                    "give one split at a time, or a pattern such as 'DIR/**/*.png', which keeps the folders",
                )
            )
        else:
            items.append(Item(sample.stem, sample.label, sample.instance))
    left_out = tuple(f"{problem.path}: {problem.message}" for problem in found.problems if problem.code == "photo")
    return Found(tuple(items), tuple(failures), left_out)


def _with_instances(found: Found, suffix: str) -> Found:
    """Refuse the samples without an instance map, and the source if none has one."""
    if found.items and not any(item.instance is not None for item in found.items):
        give = {
            ".tar": "shards have them as NAME.instance.png",
            ".parquet": "`instance_column` names their column",
            ".txt": "give their folder, or name each after a tab",
        }.get(suffix, "give their folder")
        raise ConfigError(
            "`instances`: this model has an edge channel, made of instance maps", hint=f"{give}, {_NO_EDGES}"
        )
    missing = tuple(
        Failure(item.label, f"{item.label}: there is no instance map for it", id=item.id)
        for item in found.items
        if item.instance is None
    )
    items = tuple(item for item in found.items if item.instance is not None)
    return replace(found, items=items, failures=(*found.failures, *missing))


def _without_instances(found: Found) -> Found:
    return replace(found, items=tuple(Item(item.id, item.label) for item in found.items))
