"""Read label files as ids and instance files as arrays, and write pixels to files. Needs only NumPy and Pillow.

`images/image_file.py` decodes a file; here its samples become ids, or the file is refused with a hint on what to do.
Samples are taken as they are: nothing is scaled, turned or taken from colours.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.images.image_file import ImageSource, Samples, Size, read_samples
from spade_deploy.labels.palettes import effective_palette, moved_palette
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

LabelIds = NDArray[Any]
"""An array of ids, uint8 or int32 as `label_dtype` says."""

RESULT_SUFFIXES = (".png", ".jpg", ".jpeg")
"""What `save_pixels` writes."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""Suffixes of files that are listed as images. TIFF and GIF are among them so that they are refused, not overlooked."""
FOLDER = "a folder"
CHECK_HINT = (
    "spade check-labels DIR shows every such file;"
    " spade check-labels DIR --fix OUT converts those that can be converted"
)

PALETTE_HINT = (
    "spade check-labels DIR --fix OUT takes the colours; where the indices are meant, spade check-labels DIR"
    " --ignore palette-order --fix OUT writes those"
)

_SHOWN_IDS = 5
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}


def label_dtype(labels: LabelSpec) -> np.dtype[Any]:
    """`LabelSpec.id_type` as NumPy's type."""
    return np.dtype(labels.id_type)


def read_label_map(path: ImageSource, labels: LabelSpec, size: Size | None = None) -> LabelIds:
    """Class ids of a label file, H x W in `label_dtype(labels)`, every one of them in 0..num_ids-1.

    size: resized to it with NEAREST, on the file's own values; the check covers the whole file before that.
    Greyscale files (1, 2, 4, 8, 16 bit) hold ids, palette files hold them as indices.
    255 means unknown and becomes `labels.unknown_id`, as `labels.ignore_id` does. With more than 255 ids it is an
    ordinary id (files are then 16 bit) and unknown is written as the unknown id itself. Raises LabelMapError, also for
    a palette whose colours say that its indices are not the ids (`moved_palette`).
    """
    samples = read_samples(path, "label map")
    values = _integers(samples, path, "label map")
    moved = moved_palette(values, samples.palette, labels) if samples.palette else None
    # A label set without colours of its own cannot contradict colours in a palette; a palette of greys still can.
    if moved is not None and moved.is_certain and (moved.is_grey or labels.palette):
        raise LabelMapError(f"{path}: {moved.message}", hint=PALETTE_HINT)
    return labels_from_values(values, labels, path, size)


def labels_from_values(values: LabelIds, labels: LabelSpec, path: ImageSource, size: Size | None = None) -> LabelIds:
    """The second half of `read_label_map`: a file's values, H x W integers -> checked ids."""
    refuse_bad_ids(values, labels, path)
    if size is not None:
        values = resize_nearest(values, size)
    unknown_id = labels.unknown_id
    if unknown_id is not None:
        for value in labels.unknown_values - {unknown_id}:
            values = np.where(values == value, unknown_id, values)
    return np.ascontiguousarray(values, dtype=label_dtype(labels))


def bad_ids(values: LabelIds, labels: LabelSpec) -> dict[int, int]:
    """The values of a file that are no ids of `labels`, each with its number of pixels."""
    found, counts = np.unique(values, return_counts=True)
    return {int(v): int(n) for v, n in zip(found, counts, strict=True) if not _is_legal(int(v), labels)}


def refuse_bad_ids(values: LabelIds, labels: LabelSpec, path: ImageSource) -> None:
    """Raise LabelMapError, naming ids and pixel counts, where `bad_ids` finds any."""
    if values.size and int(values.min()) >= 0 and int(values.max()) < labels.num_ids:
        return  # a right file needs no counting
    bad = bad_ids(values, labels)
    if bad:
        raise LabelMapError(f"{path}: {describe_bad_ids(bad, labels)}", hint=CHECK_HINT)


def describe_bad_ids(bad: dict[int, int], labels: LabelSpec) -> str:
    """A sentence on wrong ids: which they are, how many pixels have them, and what is allowed."""
    if set(bad) == {UNKNOWN_VALUE}:
        return (
            f"{bad[UNKNOWN_VALUE]} pixels are 255 (unknown), and this label set has no unknown (dontcare) id;"
            f" allowed are 0..{labels.num_ids - 1}"
        )
    shown = ", ".join(f"{label_id} ({count} pixels)" for label_id, count in sorted(bad.items())[:_SHOWN_IDS])
    more = f" and {len(bad) - _SHOWN_IDS} more" if len(bad) > _SHOWN_IDS else ""
    beyond = [str(value) for value in sorted(labels.unknown_values) if value >= labels.num_ids]
    unknown = f" and {' and '.join(beyond)} for unknown" if beyond else ""
    return f"ids out of range: {shown}{more}; allowed are 0..{labels.num_ids - 1}{unknown}"


def read_instance_map(path: ImageSource, size: Size | None = None) -> NDArray[np.int32]:
    """Object ids, H x W int32; `size` resizes with NEAREST. Any 1-, 8- or 16-bit file will do. Raises LabelMapError."""
    values = _integers(read_samples(path, "instance map"), path, "instance map").astype(np.int32)
    return values if size is None else resize_nearest(values, size)


def resize_nearest(values: LabelIds, size: Size) -> LabelIds:
    """H x W integers -> size, picking the same pixels as Pillow's NEAREST, which the original uses."""
    if values.shape == size:
        return values
    resized = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=values.dtype)


def _integers(samples: Samples, path: ImageSource, what: str) -> LabelIds:
    """The file's own numbers, H x W: uint8, or int32 for more than 8 bits."""
    if samples.is_lossy:
        kind = "JPEG" if samples.is_jpeg else "WebP with lossy compression"
        raise LabelMapError(
            f"{path}: the {what} is a {kind}, which changes ids; or is it a photo?", hint="save it as PNG"
        )
    if samples.frames > 1:
        raise LabelMapError(f"{path}: the {what} is an animation of {samples.frames} images", hint="save one of them")
    if samples.orientation != 1:
        raise LabelMapError(
            f"{path}: the {what} has EXIF orientation {samples.orientation}, and it is not clear whether it fits"
            " the photo before or after turning",
            hint="turn its pixels so that they fit the photo, and save it without EXIF",
        )
    if samples.values is None:
        raise LabelMapError(
            f"{path}: the {what} is a colour image (mode {samples.kind}); one number per pixel is needed",
            hint=CHECK_HINT if what == "label map" else "save it as an 8- or 16-bit greyscale PNG of object ids",
        )
    return samples.values


def _is_legal(value: int, labels: LabelSpec) -> bool:
    is_unknown = value in labels.unknown_values or (value == UNKNOWN_VALUE and labels.unknown_id is not None)
    return 0 <= value < labels.num_ids or is_unknown


def save_pixels(
    path: Path, pixels: NDArray[np.uint8], *, compress_level: int = 1, told: Mapping[str, str] | None = None
) -> None:
    """Write H x W x 3 uint8 as PNG or JPEG, by the suffix, atomically.

    compress_level: of PNG, 0..9. 1 is three times as fast as Pillow's 6, its photos are 3 % larger. told: texts that a
    PNG file keeps beside its pixels, by their names.
    Raises ConfigError for another suffix, LabelMapError where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in RESULT_SUFFIXES:
        raise ConfigError(f"{path}: images are written as .png or .jpg, not as {suffix or 'a file without a suffix'}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    try:
        with atomic_file(path) as temporary:
            if suffix == ".png":
                texts = PngInfo()
                for name, text in (told or {}).items():
                    texts.add_text(name, text)
                image.save(temporary, format="PNG", compress_level=compress_level, pnginfo=texts)
            else:
                image.save(temporary, format="JPEG", **_JPEG)
    except OSError as error:
        raise LabelMapError(f"{path}: cannot be written ({error})") from error


def jpeg_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of the file that `save_pixels` writes as JPEG."""
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="JPEG", **_JPEG)
    return stream.getvalue()


def colorize(label_ids: LabelIds, labels: LabelSpec) -> NDArray[np.uint8]:
    """Paint ids, H x W or N x H x W, in the label set's palette or VOC's: RGB with a last axis of 3."""
    colors = np.array(effective_palette(labels), dtype=np.uint8)
    if label_ids.size and not 0 <= int(label_ids.min()) <= int(label_ids.max()) < labels.num_ids:
        raise LabelMapError(
            f"ids {label_ids.min()}..{label_ids.max()} cannot be coloured: allowed are 0..{labels.num_ids - 1}"
        )
    return colors[label_ids]


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, in the order of their names."""

    files: tuple[Path, ...]
    """The regular files."""
    skipped: tuple[tuple[Path, str], ...]
    """Paths that have an image's name and are no regular file, each with what it is."""


def list_images(folder: Path) -> Listing:
    """List the images of a folder, without hidden files and subfolders. Raises NotFoundError if there is no folder."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: there is no such folder", hint="give a folder that holds label maps")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise NotFoundError(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    named = [(path, what_else(path)) for path in entries if is_image_name(path)]
    return Listing(
        tuple(path for path, other in named if other is None),
        tuple((path, other) for path, other in named if other and other != FOLDER),
    )


def list_label_files(folder: Path) -> list[Path]:
    """The files of `list_images`. Raises NotFoundError without a folder."""
    return list(list_images(folder).files)


def what_else(path: Path) -> str | None:
    """A few words on a path that is no regular file; None for a regular file. Links are followed."""
    link = "a link to " if path.is_symlink() else ""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})" if link else f"unreadable ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    return link + (FOLDER if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket")


def is_image_name(path: Path) -> bool:
    """Whether a name is that of an image and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def duplicate_stems(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Stems that several files share (a.png, a.bmp), with these files: results named by stem would collide."""
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path)
    return {stem: found for stem, found in by_stem.items() if len(found) > 1}


def synthetic_label_maps(
    labels: LabelSpec, height: int, width: int, count: int, seed: int
) -> tuple[LabelIds, NDArray[np.int32]]:
    """Label and instance maps of Voronoi regions, to try a model without data: N x H x W each.

    Deterministic. Over the maps every id occurs, as far as regions of at least one pixel can hold them.
    instances: the number of the region, so that neighbours of one class still have an edge between them.
    """
    rng = np.random.default_rng(seed)
    regions = min(max(12, -(-labels.num_ids // count)), height * width)
    deck = _shuffled_ids(rng, labels.num_ids, regions * count)
    instances = np.stack([_voronoi(rng, height, width, regions) for _ in range(count)])
    ids = np.stack([deck[n * regions : (n + 1) * regions][instances[n]] for n in range(count)])
    return ids.astype(label_dtype(labels)), instances


def _shuffled_ids(rng: np.random.Generator, num_ids: int, count: int) -> LabelIds:
    rounds = [rng.permutation(num_ids) for _ in range(-(-count // num_ids))]
    return np.concatenate(rounds)[:count]


def _voronoi(rng: np.random.Generator, height: int, width: int, regions: int) -> NDArray[np.int32]:
    # Sites are distinct pixels, so each region holds at least its own site.
    sites = rng.choice(height * width, size=regions, replace=False)
    rows, columns = np.mgrid[:height, :width].astype(np.int64)
    nearest = np.full((height, width), np.iinfo(np.int64).max)
    owner = np.zeros((height, width), np.int32)
    for region, site in enumerate(sites):
        distance = (rows - site // width) ** 2 + (columns - site % width) ** 2
        closer = distance < nearest
        nearest[closer] = distance[closer]
        owner[closer] = region
    return owner
