"""Label maps that are files or objects of their own: in a folder behind a URL, of a pattern, or in a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from spade_deploy.errors import LabelMapError, NotFoundError
from spade_deploy.inference.jobs import Origin
from spade_deploy.inference.places.found import Finder, Found
from spade_deploy.inference.places.instance_maps import InstanceMaps
from spade_deploy.inference.places.listing import beside, expanded, lines_of, list_url, origin_of
from spade_deploy.inference.places.names import absolute, around, before_wildcards, below, chosen, pure, stem, whole
from spade_deploy.inference.places.urls import shown
from spade_deploy.labels.collect import JPEG_SUFFIXES
from spade_deploy.labels.files import is_image_name, what_else
from spade_deploy.spec import Naming


def find_by_pattern(labels: Path | str, instances: Path | str | None, naming: Naming) -> Found:
    """The images that a glob names. Their paths begin behind the folder in front of its first wildcard."""
    finder = Finder()
    files = maps_of(_images(expanded(labels, "files"), finder), finder)
    add_files(files, before_wildcards(labels), finder, instances, naming)
    return _some(finder, labels)


def find_in_folder(labels: str, instances: Path | str | None, naming: Naming) -> Found:
    """The images in a folder behind a URL, or a single one."""
    finder = Finder()
    is_one = is_image_name(Path(whole(labels)))
    entries = [labels] if is_one else list_url(labels)
    files = maps_of(_images(entries, finder), finder)
    add_files(files, whole(labels).rpartition("/")[0] if is_one else whole(labels), finder, instances, naming)
    return _some(finder, labels)


def find_in_list(labels: Path | str, instances: Path | str | None, naming: Naming) -> Found:
    """The label maps that a text file lists: a path or URL a line, and after a tab that of the instance map.

    Relative paths begin in the folder of the list. Empty lines, and those that begin with #, are comments.
    """
    finder, given, files = Finder(), {}, []
    for line in lines_of(labels):
        label, _, instance = (part.strip() for part in line.partition("\t"))
        place = beside(labels, label)
        files.append((whole(absolute(place)), origin_of(place)))
        if instance:
            given[len(files) - 1] = origin_of(beside(labels, instance))
    base = around(labels, (path for path, _ in files))
    add_files(files, base, finder, instances, naming, given)
    return _some(finder, labels)


def maps_of(files: Iterable[tuple[str, Origin]], finder: Finder) -> list[tuple[str, Origin]]:
    """The files without photos: a JPEG whose stem another kind of file has, too, is left out.

    files: path and origin of each.
    """
    stems: dict[str, list[tuple[str, Origin]]] = {}
    for file in files:
        stems.setdefault(stem(file[0]), []).append(file)
    found = []
    for alike in stems.values():
        maps = [file for file in alike if not _is_jpeg(file[0])]
        if maps:
            name = maps[0][0].rpartition("/")[2]
            finder.left_out += [
                f"{origin}: a photo (JPEG) beside the label map {name}: left out"
                for path, origin in alike
                if _is_jpeg(path)
            ]
        found += maps or alike
    return found


def add_files(
    files: list[tuple[str, Origin]],
    base: str,
    finder: Finder,
    instances: Path | str | None,
    naming: Naming,
    given: dict[int, Origin] | None = None,
) -> None:
    """Add label maps with the names that they get, and with their instance maps.

    files: path and origin of each. base: the folder below which their paths begin. given: the instance maps that are
    known, by their place among the files.
    """
    paths = [below(pure(path), base) for path, _ in files]
    finder.naming = chosen(naming, paths)
    known = InstanceMaps(instances, finder.naming)
    for number, (path, (_, origin)) in enumerate(zip(paths, files, strict=True)):
        name = path if finder.naming is Naming.PATH else path.rpartition("/")[2]
        try:
            found = (given or {}).get(number)
            finder.add(name, origin, known.of(name) if found is None else found)
        except LabelMapError as error:
            finder.refuse(origin, error.message, error.hint, name)


def _is_jpeg(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in JPEG_SUFFIXES


def _images(places: Iterable[Path | str], finder: Finder) -> Iterator[tuple[str, Origin]]:
    for place in places:
        if not is_image_name(Path(whole(place))):
            continue
        other = what_else(place) if isinstance(place, Path) else None
        if other is None:
            yield whole(place), origin_of(place)
        elif isinstance(place, Path) and not place.is_dir():
            finder.refuse(place, f"is {other}, not a file")


def _some(finder: Finder, labels: Path | str) -> Found:
    found = finder.found()
    if not (found.items or found.failures):
        raise NotFoundError(
            f"{shown(labels)} names no label maps (.png files and the like)",
            hint="each line is the path or URL of a label map, relative to the list; patterns are like 'a/**/*.png'",
        )
    return found
