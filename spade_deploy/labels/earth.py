"""The embedded demo data set: land cover and satellite imagery of the whole Earth, cut into tiles.

"Paint a continent, see it from space." Splits are 30-degree bands of longitude, so no tile overlaps another split.
Credits stand in README.md beside this file and go with everything that is written from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, DatasetError, SpadeError
from spade_deploy.files.atomic import atomic_file, atomic_folder, write_text
from spade_deploy.labels.sets import label_set
from spade_deploy.progress import SILENT, Progress
from spade_deploy.settings import check_one_of
from spade_deploy.spec import LabelSpec

SPLITS = ("train", "val", "test")
CREDITS = "Imagery NASA Earth Observatory (Blue Marble Next Generation), land cover NASA LP DAAC MCD12C1 v006 (IGBP)."

_FOLDER = Path(__file__).parents[1] / "data"
_HEIGHT, _WIDTH = 2700, 5400
_BAND = _WIDTH // 12  # 30 degrees
_BANDS = {1: "val", 5: "val", 4: "test", 9: "test"}  # the other bands train; every land form occurs in each split
# North of 50 degrees the photo has seasonal snow that the yearly land cover does not know; south of 56 there is ice.
_TOP, _BOTTOM = (90 - 50) * _HEIGHT // 180, (90 + 56) * _HEIGHT // 180
_WATER = 0
_MIN_LAND, _MIN_CLASSES, _MIN_SHARE = 0.25, 3, 0.02


@dataclass(frozen=True)
class Tile:
    """A square of the world map."""

    split: str
    """The split that it belongs to."""
    index: int
    """Its number within the split."""
    top: int
    """The first row, in pixels of the world map."""
    left: int
    """The first column."""
    size: int
    """Rows and columns."""

    @property
    def stem(self) -> str:
        return f"{self.index:04d}"


def earth_labels() -> LabelSpec:
    """The 17 IGBP classes with their names and colours."""
    return label_set("earth")


@cache
def earth_tiles(split: str, size: int = 128, stride: int = 64) -> tuple[Tile, ...]:
    """Tiles of a split that show something: a quarter land, three classes of 2 % or more.

    size, stride: in pixels (one is 1/15 of a degree), size 16..450. At the default 348 train, 23 val, 76 test.
    Raises ConfigError.
    """
    check_one_of("split", split, SPLITS)
    if not 16 <= size <= _BAND or stride < 1:
        raise ConfigError(f"`size`: earth tiles of {size} pixels at stride {stride}; allowed are 16..{_BAND} and 1..")
    labels, _ = _world()
    corners = (
        (top, left)
        for top in range(_TOP, _BOTTOM - size + 1, stride)
        for left in range(0, _WIDTH - size + 1, stride)
        if _split_of(left, size) == split and _is_interesting(labels[top : top + size, left : left + size])
    )
    return tuple(Tile(split, index, top, left, size) for index, (top, left) in enumerate(corners))


def cut(tile: Tile) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Copies of a tile's label ids, size x size, and of its RGB pixels, size x size x 3."""
    labels, photo = _world()
    rows, columns = slice(tile.top, tile.top + tile.size), slice(tile.left, tile.left + tile.size)
    return labels[rows, columns].copy(), photo[rows, columns].copy()


def write_earth(out: Path, progress: Progress = SILENT) -> dict[str, int]:
    """Write OUT/{train,val,test}/{labels,images}/NNNN.png and OUT/README.txt; label maps are palette PNGs of ids.

    A second call writes only what is missing; a file of such a name with other content is refused, never replaced.
    Returns the number of pairs in each split, and under `written` the number of files written now. Raises DatasetError.
    """
    readme = out / "README.txt"
    text = _readme()
    if readme.exists() and readme.read_bytes() != text.encode():
        raise _occupied(readme)
    tiles = [tile for split in SPLITS for tile in earth_tiles(split)]
    written = 0
    for done, tile in enumerate(tiles, start=1):
        labels, photo = cut(tile)
        folder = out / tile.split
        written += _write_png(folder / "labels" / f"{tile.stem}.png", _palette_image(labels))
        written += _write_png(folder / "images" / f"{tile.stem}.png", Image.fromarray(photo))
        progress.count("writing", done, len(tiles))
    if not readme.exists():
        _guarded(readme, lambda: write_text(readme, text))
    return {**{split: len(earth_tiles(split)) for split in SPLITS}, "written": written}


def write_example_labels(out: Path) -> int:
    """Write the test split's label maps as OUT/NNNN.png, something for `spade infer`; returns how many there are.

    A new folder appears as a whole. Raises DatasetError.
    """
    images = {f"{tile.stem}.png": _palette_image(cut(tile)[0]) for tile in earth_tiles("test")}

    def write() -> None:
        with atomic_folder(out) as folder:
            for name, image in images.items():
                _save(folder / name, image)

    if out.exists():
        for name, image in images.items():
            _write_png(out / name, image)
    else:
        _guarded(out, write)
    return len(images)


@cache
def _world() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The label ids and the photo of the world, 15 and 44 MB. They are decoded once in a process, and read-only."""
    with Image.open(_FOLDER / "world_label.png") as image:
        labels = np.array(image, dtype=np.uint8)
    with Image.open(_FOLDER / "world.jpg") as image:
        photo = np.array(image.convert("RGB"), dtype=np.uint8)
    labels.setflags(write=False)
    photo.setflags(write=False)
    return labels, photo


def _split_of(left: int, size: int) -> str | None:
    """The split that a tile's columns belong to; None for a tile across the edge of a held-out band."""
    first, last = left // _BAND, (left + size - 1) // _BAND
    if first != last and (first in _BANDS or last in _BANDS):
        return None
    return _BANDS.get(first, "train")


def _is_interesting(labels: NDArray[np.uint8]) -> bool:
    shares = np.bincount(labels.ravel(), minlength=earth_labels().num_ids) / labels.size
    return bool(1 - shares[_WATER] > _MIN_LAND and np.count_nonzero(shares > _MIN_SHARE) >= _MIN_CLASSES)


def _palette_image(labels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(labels).convert("L")
    image.putpalette([part for color in earth_labels().palette for part in color])  # turns it into mode P
    return image


def _write_png(path: Path, image: Image.Image) -> int:
    """Write a PNG unless the same pixels are there already. Returns how many files were written, 1 or 0."""
    if path.exists() and (not path.is_file() or path.stat().st_size > 0):  # an empty file is left after a loss of power
        if not _is_same(path, image):
            raise _occupied(path)
        return 0
    _guarded(path, lambda: _save(path, image))
    return 1


def _save(path: Path, image: Image.Image) -> None:
    with atomic_file(path, flush="nothing") as temporary:
        image.save(temporary, format="PNG")


def _is_same(path: Path, image: Image.Image) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as found:
            return found.size == image.size and found.mode == image.mode and found.tobytes() == image.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _guarded(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written ({error})") from error


def _occupied(path: Path) -> SpadeError:
    return DatasetError(f"{path}: exists with other content and is not replaced", hint="choose an empty folder")


def _readme() -> str:
    names = "\n".join(f"{label_id:3d}  {name}" for label_id, name in enumerate(earth_labels().names))
    return (
        "Earth: land cover and satellite imagery, 128 x 128 pixels a tile, 1/15 of a degree a pixel.\n"
        "{train,val,test}/labels/NNNN.png hold class ids (as palette indices), .../images/NNNN.png the photos.\n"
        f"\n{CREDITS}\n\nClasses:\n{names}\n"
    )
