"""Label files that hold colours, masks or shuffled palettes -> label files that hold ids.

Nothing is guessed silently: each result says how well the colours matched, and what does not match is refused.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.atomic import atomic_file
from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.label_map import effective_palette, opened, refuse_bad_ids
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec, Rgb

NEAR = 32
"""RGB distance (of at most 441) within which a colour counts as a palette colour that was slightly changed."""

REACH = 2
"""Pixels around an antialiased one among which its class is looked for."""

_MIN_EXACT = 0.25
_CHUNK = 4096  # pixels compared with the whole palette at once: bounds the memory


class FixAction(StrEnum):
    """What became of a file."""

    COPIED = "copied"
    CONVERTED = "converted"
    REFUSED = "refused"


@dataclass(frozen=True)
class FixResult:
    """One file of a `--fix`: target is None where it was refused; message says how, or why not."""

    path: Path
    target: Path | None
    action: FixAction
    message: str


@dataclass(frozen=True)
class ColorMatch:
    """How an RGB image reads under a palette.

    ids: H x W. exact, near: shares of pixels that have a palette colour, or one within NEAR of it.
    ambiguous: ids of the image whose colour other ids have too; the lowest id is taken.
    """

    ids: NDArray[np.int32]
    exact: float
    near: float
    ambiguous: tuple[int, ...]

    @property
    def is_usable(self) -> bool:
        """Whether it can be a colour-coded label map at all.

        Measured with the palettes of all five label sets: at most 5 % of the pixels of the 13 COCO-Stuff photos have
        a palette colour; of colour-coded maps all, and after bilinear resizing by 0.5 at least 33 % (Earth tiles,
        most of whose pixels are borders) or 85 % (others). Closeness says nothing: 98 % of a photo's pixels are near
        one of COCO's 183 colours.
        """
        return self.exact >= _MIN_EXACT

    @property
    def summary(self) -> str:
        text = f"{self.exact:.1%} of the pixels have a palette colour exactly"
        if self.exact < 1:
            text += f", the rest took the nearest ({1 - self.near:.1%} of all lie further than {NEAR} from it)"
        if self.ambiguous:
            text += f"; ids {', '.join(map(str, self.ambiguous))} share their colour with others"
        return text


def match_colors(rgb: NDArray[np.uint8], labels: LabelSpec) -> ColorMatch:
    """H x W x 3 -> ids, by palette colour.

    A mixed colour, as antialiased edges have, goes to the nearest colour that a pixel within REACH has exactly: a mix
    of two classes must not become a third one whose colour merely lies between them. Where no such pixel is near, it
    goes to the nearest colour of the palette that the file has at all.
    """
    palette = np.array(effective_palette(labels), dtype=np.int32)
    palette_codes, lowest, occurrences = np.unique(_pack(palette), return_index=True, return_counts=True)
    pixels = rgb.astype(np.int32)
    codes = _pack(pixels)
    at = np.minimum(np.searchsorted(palette_codes, codes), len(palette_codes) - 1)
    is_exact = palette_codes[at] == codes
    ids = np.where(is_exact, lowest[at], -1).astype(np.int32)
    present = np.isin(lowest, ids)
    exact = float(is_exact.mean())
    near = 1.0
    if exact < 1:
        rows, columns = np.nonzero(~is_exact)
        mixed = pixels[rows, columns]
        chosen, distance = _nearest_around(ids, rows, columns, mixed, palette)
        lost = chosen < 0
        candidates = lowest[present] if present.any() else lowest
        chosen[lost], distance[lost] = _nearest(mixed[lost], palette, candidates)
        ids[rows, columns] = chosen
        near = 1 - np.count_nonzero(distance > NEAR**2) / ids.size
    ambiguous = tuple(int(label_id) for label_id in sorted(lowest[present & (occurrences > 1)]))
    return ColorMatch(ids, exact, near, ambiguous)


def _nearest_around(
    ids: NDArray[np.int32], rows: NDArray[Any], columns: NDArray[Any], colors: NDArray[np.int32], palette: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For each pixel the id within REACH whose colour is nearest (-1 where none is), and its squared distance."""
    padded = np.pad(ids, REACH, constant_values=-1)
    chosen = np.full(len(rows), -1, np.int32)
    distance = np.full(len(rows), np.iinfo(np.int64).max)
    for down in range(2 * REACH + 1):
        for right in range(2 * REACH + 1):
            neighbour = padded[rows + down, columns + right]
            squares = ((palette[neighbour] - colors) ** 2).sum(axis=1, dtype=np.int64)
            closer = (neighbour >= 0) & (squares < distance)
            chosen[closer], distance[closer] = neighbour[closer], squares[closer]
    return chosen, distance


def _nearest(
    colors: NDArray[np.int32], palette: NDArray[Any], candidates: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    chosen, distance = np.empty(len(colors), np.int32), np.empty(len(colors), np.int64)
    for start in range(0, len(colors), _CHUNK):
        rows = slice(start, start + _CHUNK)
        squares = ((colors[rows, None] - palette[None, candidates]) ** 2).sum(axis=2, dtype=np.int64)
        best = squares.argmin(axis=1)
        chosen[rows], distance[rows] = candidates[best], squares[np.arange(len(best)), best]
    return chosen, distance


def reordered_palette(indices: NDArray[Any], colors: list[int] | None, labels: LabelSpec) -> dict[int, int]:
    """Palette index -> id, where a file's colours are the label set's but stand at other indices; else empty.

    An ordinary palette file, whose indices are the ids whatever their colours, gives an empty answer.
    """
    palette = effective_palette(labels)
    ids_of: dict[Rgb, list[int]] = {}
    for label_id, color in enumerate(palette):
        ids_of.setdefault(color, []).append(label_id)
    mapping: dict[int, int] = {}
    for index in map(int, np.unique(indices)):
        part = tuple((colors or [])[3 * index : 3 * index + 3])
        if len(part) != 3 or part not in ids_of:
            return {}
        same = ids_of[part]
        mapping[index] = index if index in same else same[0]
    return mapping if any(index != label_id for index, label_id in mapping.items()) else {}


def fix_file(path: Path, target: Path, labels: LabelSpec, *, is_mask: bool) -> FixResult:
    """Write the ids of `path` to `target` (PNG), or refuse. is_mask: 255 becomes 1. Never raises LabelMapError."""
    try:
        ids, how = _converted(path, labels, is_mask)
        refuse_bad_ids(ids, labels, path)
        with atomic_file(target, flush="file") as temporary:
            Image.fromarray(ids.astype(np.uint8 if labels.num_ids <= 256 else np.uint16)).save(temporary, format="PNG")
    except (LabelMapError, OSError) as error:
        return FixResult(path, None, FixAction.REFUSED, str(error).removeprefix(f"{path}: "))
    return FixResult(path, target, FixAction.CONVERTED, how)


def copy_file(path: Path, target: Path) -> FixResult:
    """A good file, byte by byte."""
    try:
        with atomic_file(target, flush="file") as temporary:
            shutil.copyfile(path, temporary)
    except OSError as error:
        return FixResult(path, None, FixAction.REFUSED, f"cannot be copied ({error})")
    return FixResult(path, target, FixAction.COPIED, "unchanged")


def is_grey_ids(rgb: NDArray[np.uint8], labels: LabelSpec) -> bool:
    """Whether an RGB image is ids or a 0/255 mask stored three times over."""
    red = rgb[..., 0]
    if (red != rgb[..., 1]).any() or (red != rgb[..., 2]).any():
        return False
    values = np.unique(red)
    return bool(((values < labels.num_ids) | (values == UNKNOWN_VALUE)).all())


def _converted(path: Path, labels: LabelSpec, is_mask: bool) -> tuple[NDArray[Any], str]:
    with opened(path, "label map") as image:
        mode, colors = image.mode, image.getpalette()
        pixels = np.array(image if mode in ("1", "L", "P") else image.convert("RGB"))
    if mode == "P" and (mapping := reordered_palette(pixels, colors, labels)):
        table = np.arange(256)
        table[list(mapping)] = list(mapping.values())
        return table[pixels], "palette indices put into the order of the ids"
    if pixels.ndim == 3 and is_grey_ids(pixels, labels):
        pixels = pixels[..., 0]
        if not is_mask:
            return pixels, "greyscale stored as RGB: one of three equal channels taken"
    if pixels.ndim == 3:
        match = match_colors(pixels, labels)
        if not match.is_usable:
            raise LabelMapError(f"{path}: too few pixels have a colour of the palette: {match.summary}")
        return match.ids, match.summary
    if is_mask and set(np.unique(pixels)) <= {0, UNKNOWN_VALUE}:
        return np.where(pixels == UNKNOWN_VALUE, 1, 0), "mask: 255 became id 1"
    raise LabelMapError(f"{path}: nothing here that can be converted")


def read_palette_file(path: Path) -> tuple[tuple[Rgb, ...], tuple[str, ...]]:
    """Colours, and names where every line has one, from a JSON list of [r, g, b] or lines 'R G B [name]'.

    One entry an id, in the order of the ids; '#' starts a comment. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--palette: {path} cannot be read ({error})") from error
    entries = _json_entries(path, text) if text.lstrip().startswith("[") else _line_entries(text)
    colors: list[Rgb] = []
    for where, entry in entries:
        try:
            red, green, blue = (int(part) for part in entry[:3])
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--palette: {path}, {where}: {entry} does not begin with three numbers") from error
        if not all(0 <= part <= 255 for part in (red, green, blue)):
            raise ConfigError(f"--palette: {path}, {where}: {entry[:3]} is not three numbers in 0..255")
        colors.append((red, green, blue))
    if not colors:
        raise ConfigError(f"--palette: {path} has no colours", hint="lines of 'R G B name', or JSON [[r, g, b], ...]")
    names = tuple(" ".join(map(str, entry[3:])) for _, entry in entries)
    return tuple(colors), names if all(names) else ()


def _json_entries(path: Path, text: str) -> list[tuple[str, list[Any]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--palette: {path} is not valid JSON ({error})") from error
    return [(f"entry {n}", entry if isinstance(entry, list) else [entry]) for n, entry in enumerate(value)]


def _line_entries(text: str) -> list[tuple[str, list[Any]]]:
    lines = [(f"line {n}", line.split("#")[0].replace(",", " ").split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(where, parts) for where, parts in lines if parts]


def _pack(rgb: NDArray[np.int32]) -> NDArray[np.int32]:
    packed: NDArray[np.int32] = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    return packed
