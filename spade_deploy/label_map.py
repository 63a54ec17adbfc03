"""Label files -> ids, instance files and photos -> arrays, pixels -> files. NumPy and Pillow only.

Files are read as untrusted input: the format is told by the first bytes and not by the suffix, the size is bounded
before anything is decoded, and whatever goes wrong inside Pillow becomes a LabelMapError that names the file.
An EXIF orientation is not applied: label maps have none, and they lie over the photo's pixels as these are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from spade_deploy.atomic import atomic_file
from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError, SpadeError
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec, Rgb

Size = tuple[int, int]
"""(height, width) in pixels."""
LabelIds = NDArray[Any]
"""uint8 or int32, as `label_dtype` says."""

MAX_PIXELS = 64 * 1024 * 1024
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""What is listed as an image; formats among them that are not read (TIFF, GIF) get an error instead of silence."""
CHECK_HINT = "spade check-labels DIR shows every such file; --fix OUT converts those that can be converted"

_SHOWN_IDS = 5
_INTEGER_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})


def label_dtype(labels: LabelSpec) -> np.dtype[Any]:
    """uint8 where every id fits, else int32."""
    return np.dtype(np.uint8 if labels.num_ids <= 256 else np.int32)


def read_label_map(path: Path, labels: LabelSpec, size: Size | None = None) -> LabelIds:
    """Class ids of a label file, H x W in `label_dtype(labels)`, every one of them in 0..num_ids-1.

    size: resized to it with NEAREST, on the file's own values; the check covers the whole file before that.
    Greyscale files (1, 8, 16 bit) hold ids, palette files hold them as indices, whatever their colours.
    255 means unknown and becomes `labels.unknown_id`. With more than 255 ids it is an ordinary id (files are then
    16 bit) and unknown is written as the unknown id itself. Raises LabelMapError.
    """
    with opened(path, "label map") as image:
        values = _integers(image, path, "label map")
    return labels_from_values(values, labels, path, size)


def labels_from_values(values: LabelIds, labels: LabelSpec, path: Path, size: Size | None = None) -> LabelIds:
    """What `read_label_map` does once the file's values are there: H x W integers -> checked ids."""
    refuse_bad_ids(values, labels, path)
    if size is not None:
        values = resize_nearest(values, size)
    if labels.unknown_id is not None and labels.num_ids <= UNKNOWN_VALUE:
        values = np.where(values == UNKNOWN_VALUE, labels.unknown_id, values)
    return np.ascontiguousarray(values, dtype=label_dtype(labels))


def bad_ids(values: LabelIds, labels: LabelSpec) -> dict[int, int]:
    """File values that mean nothing under `labels` -> how many pixels have them."""
    found, counts = np.unique(values, return_counts=True)
    return {int(v): int(n) for v, n in zip(found, counts, strict=True) if not _is_legal(int(v), labels)}


def refuse_bad_ids(values: LabelIds, labels: LabelSpec, path: Path) -> None:
    """Raise LabelMapError, naming ids and pixel counts, where `bad_ids` finds any."""
    if values.size and int(values.min()) >= 0 and int(values.max()) < labels.num_ids:
        return  # the usual file, without the cost of counting
    bad = bad_ids(values, labels)
    if bad:
        raise LabelMapError(f"{path}: {describe_bad_ids(bad, labels)}", hint=CHECK_HINT)


def describe_bad_ids(bad: dict[int, int], labels: LabelSpec) -> str:
    """One sentence: which ids, how many pixels, what is allowed."""
    if set(bad) == {UNKNOWN_VALUE}:
        return (
            f"{bad[UNKNOWN_VALUE]} pixels are 255 (unknown), and this label set has no unknown (dontcare) id;"
            f" allowed are 0..{labels.num_ids - 1}"
        )
    shown = ", ".join(f"{label_id} ({count} pixels)" for label_id, count in sorted(bad.items())[:_SHOWN_IDS])
    more = f" and {len(bad) - _SHOWN_IDS} more" if len(bad) > _SHOWN_IDS else ""
    unknown = " and 255 for unknown" if _is_legal(UNKNOWN_VALUE, labels) and labels.num_ids <= UNKNOWN_VALUE else ""
    return f"ids out of range: {shown}{more}; allowed are 0..{labels.num_ids - 1}{unknown}"


def read_instance_map(path: Path, size: Size | None = None) -> NDArray[np.int32]:
    """Object ids, H x W int32; `size` resizes with NEAREST. Any 1-, 8- or 16-bit file will do. Raises LabelMapError."""
    with opened(path, "instance map") as image:
        values = _integers(image, path, "instance map").astype(np.int32)
    return values if size is None else resize_nearest(values, size)


def read_photo(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """RGB pixels, H x W x 3 uint8; `size` resizes with bicubic. Other modes are converted. Raises LabelMapError."""
    with opened(path, "photo") as image:
        image.info.pop("transparency", None)  # else Pillow warns that RGB has no place for it
        rgb: Image.Image = image if image.mode == "RGB" else image.convert("RGB")
        if size is not None:
            rgb = rgb.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return np.array(rgb, dtype=np.uint8)


def image_size(path: Path) -> Size:
    """(height, width) from the file's header. Raises LabelMapError."""
    with opened(path, "image") as image:
        return image.height, image.width


def resize_nearest(values: LabelIds, size: Size) -> LabelIds:
    """H x W integers -> size, picking the same pixels as Pillow's NEAREST, which the original uses."""
    if values.shape == size:
        return values
    resized = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=values.dtype)


@contextmanager
def opened(path: Path, what: str) -> Iterator[ImageFile]:
    """An image file that is open, bounded and not yet decoded. Keep the block to calls of Pillow.

    Every exception of the block becomes a LabelMapError: on damaged data Pillow raises OSError, SyntaxError,
    ValueError, struct.error, zlib.error, EOFError, IndexError, MemoryError and more, and promises no list.
    """
    try:
        with path.open("rb") as stream:
            plugin = _plugin(stream.read(16), path, what)
            stream.seek(0)
            # The plugin is called directly: Image.open would emit its decompression bomb warning before our own
            # bound can be checked, and would try formats that have no business here.
            with plugin(stream) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise LabelMapError(
                        f"{path}: {image.width} x {image.height} pixels are more than the {MAX_PIXELS} that are read",
                        hint="resize it, label maps with nearest-neighbour interpolation",
                    )
                yield image
    except SpadeError:
        raise
    except FileNotFoundError as error:
        raise LabelMapError(f"{path}: there is no such file") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise LabelMapError(f"{path}: the {what} is damaged or cannot be read ({reason})") from error


def _plugin(head: bytes, path: Path, what: str) -> type[ImageFile]:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if not head:
        raise LabelMapError(f"{path}: the file is empty")
    known = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}.get(head[:4])
    found = f"a {known} file" if known else "not an image file"
    allowed = "PNG or BMP" if what != "photo" else "PNG, JPEG, BMP or WebP"
    raise LabelMapError(f"{path}: the {what} is {found}; allowed is {allowed}", hint="save it as PNG")


def _integers(image: ImageFile, path: Path, what: str) -> LabelIds:
    """The file's own numbers, H x W: uint8, or int32 for more than 8 bits."""
    if image.format == "JPEG":
        raise LabelMapError(
            f"{path}: the {what} is a JPEG; its lossy compression smears ids into others", hint="save it as PNG"
        )
    if image.mode not in _INTEGER_MODES:
        raise LabelMapError(
            f"{path}: the {what} is a colour image (mode {image.mode}); needed is one number a pixel",
            hint=CHECK_HINT if what == "label map" else "save it as an 8- or 16-bit greyscale PNG of object ids",
        )
    dtype = np.uint8 if image.mode in ("1", "L", "P") else np.int32
    return np.array(image).astype(dtype, copy=False)  # 1 bit: 0 and 1


def _is_legal(value: int, labels: LabelSpec) -> bool:
    return 0 <= value < labels.num_ids or (value == UNKNOWN_VALUE and labels.unknown_id is not None)


def save_pixels(path: Path, pixels: NDArray[np.uint8], *, compress_level: int = 1) -> None:
    """Write H x W x 3 uint8 as PNG or JPEG, by the suffix, atomically.

    compress_level: of PNG, 0..9. 1 is three times as fast as Pillow's 6, its photos are 3 % larger.
    Raises ConfigError for another suffix, LabelMapError where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{path}: images are written as .png or .jpg, not as {suffix or 'a file without a suffix'}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    try:
        with atomic_file(path) as temporary:
            if suffix == ".png":
                image.save(temporary, format="PNG", compress_level=compress_level)
            else:
                image.save(temporary, format="JPEG", quality=95, subsampling=0)
    except OSError as error:
        raise LabelMapError(f"{path}: cannot be written ({error})") from error


def colorize(label_ids: LabelIds, labels: LabelSpec) -> NDArray[np.uint8]:
    """Ids H x W (or N x H x W) -> RGB with a last axis of 3, in the label set's palette or VOC's. For looking at."""
    colors = np.array(effective_palette(labels), dtype=np.uint8)
    if label_ids.size and not 0 <= int(label_ids.min()) <= int(label_ids.max()) < labels.num_ids:
        raise LabelMapError(
            f"ids {label_ids.min()}..{label_ids.max()} cannot be coloured: allowed are 0..{labels.num_ids - 1}"
        )
    return colors[label_ids]


def effective_palette(labels: LabelSpec) -> tuple[Rgb, ...]:
    """The label set's own palette, or `voc_palette` where it has none."""
    return labels.palette or voc_palette(labels.num_ids)


def voc_palette(count: int) -> tuple[Rgb, ...]:
    """PASCAL VOC's colour map: the bits of an id are dealt to red, green and blue in turn, from the top bit down."""
    return tuple(
        (_every_third_bit(label_id), _every_third_bit(label_id >> 1), _every_third_bit(label_id >> 2))
        for label_id in range(count)
    )


def _every_third_bit(value: int) -> int:
    return sum(((value >> (3 * k)) & 1) << (7 - k) for k in range(8))


def list_label_files(folder: Path) -> list[Path]:
    """Image files of a folder by name; not recursive, hidden files left out. Raises NotFoundError without a folder."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: there is no such folder", hint="give a folder that holds label maps")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise NotFoundError(f"{folder}: the folder cannot be listed ({error.strerror})") from error
    return [path for path in entries if is_image_name(path) and path.is_file()]


def is_image_name(path: Path) -> bool:
    """Whether the name alone says image, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def duplicate_stems(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Stems that occur more than once (a.png, a.bmp) -> their files: results named by stem would collide."""
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
