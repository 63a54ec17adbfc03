"""Label files that hold colours, masks or shuffled palettes -> label files that hold ids.

Nothing is guessed silently: each result says how well the colours matched, and what does not match is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, LabelMapError, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import open_regular, read_regular
from spade_deploy.images.image_file import Samples, read_samples
from spade_deploy.labels.files import refuse_bad_ids
from spade_deploy.labels.palettes import effective_palette, moved_palette
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec, Rgb

NEAR = 32
"""RGB distance (of at most 441) within which a colour counts as a palette colour that was slightly changed."""

REACH = 2
"""Pixels around an antialiased one among which its class is looked for."""

_MIN_EXACT = 0.25
_MAX_PALETTE_BYTES = 4 << 20
_MAX_NAME = 80
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


def fix_file(path: Path, target: Path, labels: LabelSpec, *, is_mask: bool, by_index: bool = False) -> FixResult:
    """Write the ids of `path` to `target` (PNG), or refuse. Never raises LabelMapError.

    is_mask: 255 becomes 1. by_index: of a palette file the indices are taken, whatever its colours say.
    """
    try:
        ids, how = _converted(path, labels, is_mask, by_index)
        refuse_bad_ids(ids, labels, path)
        with atomic_file(target, flush="file") as temporary:
            Image.fromarray(ids.astype(np.uint8 if labels.num_ids <= 256 else np.uint16)).save(temporary, format="PNG")
    except (LabelMapError, OSError) as error:
        return FixResult(path, None, FixAction.REFUSED, str(error).removeprefix(f"{path}: "))
    return FixResult(path, target, FixAction.CONVERTED, how)


def copy_file(path: Path, target: Path) -> FixResult:
    """A good file, byte by byte."""
    try:
        with (
            open_regular(path) as source,
            atomic_file(target, flush="file") as temporary,
            temporary.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy)
    except OSError as error:
        return FixResult(path, None, FixAction.REFUSED, f"cannot be copied ({error})")
    return FixResult(path, target, FixAction.COPIED, "unchanged")


def eight_bit(colors: NDArray[Any]) -> NDArray[np.uint8] | None:
    """H x W x 3 of 8 or 16 bits -> 8 bits, where nothing is lost by it; else None.

    Programs store 8-bit values in 16 bits as they are, or times 257, so that white stays white.
    """
    if int(colors.max(initial=0)) <= 255:
        return colors.astype(np.uint8)
    return (colors // 257).astype(np.uint8) if not (colors % 257).any() else None


def grey_ids(colors: NDArray[Any], labels: LabelSpec) -> NDArray[Any] | None:
    """H x W ids of a colour image that is ids, or a 0/255 mask, stored three times over; else None."""
    red = colors[..., 0]
    if (red != colors[..., 1]).any() or (red != colors[..., 2]).any():
        return None
    for values in (red, eight_bit(red)):
        if values is not None:
            found = np.unique(values)
            if ((found < labels.num_ids) | (found == UNKNOWN_VALUE)).all():
                return values
    return None


def unclear(samples: Samples) -> tuple[str, str] | None:
    """The linter's code and a sentence where the pixels of a file cannot be taken for ids or colours; else None."""
    if samples.is_lossy:
        # Colours neither: of colour-coded maps as JPEG of quality 75 the nearest palette colour gave back 43 %
        # (Cityscapes) to 98 % (facades) of the ids.
        kind = "JPEG" if samples.is_jpeg else "WebP with lossy compression"
        return (
            "jpeg",
            f"a {kind}: it turns ids and colours into others along all borders; save it as PNG; or is it a photo?",
        )
    if samples.frames > 1:
        return "animation", f"an animation of {samples.frames} images; save one of them"
    if samples.orientation != 1:
        text = f"to be turned (EXIF orientation {samples.orientation}): whether it lies over the photo before or after"
        return "exif", f"{text} that cannot be told; turn its pixels as they belong and save it without EXIF"
    if samples.transparent:
        text = f"{samples.transparent} pixels are transparent, and which id is behind them is not in the file"
        return "transparent", text
    return None


def _converted(path: Path, labels: LabelSpec, is_mask: bool, by_index: bool) -> tuple[NDArray[Any], str]:
    samples = read_samples(path, "label map")
    if (found := unclear(samples)) is not None:
        raise LabelMapError(f"{path}: {found[1]}")
    values, how = samples.values, "nothing here that can be converted"
    if samples.colors is not None:
        values = grey_ids(samples.colors, labels)
        how = "greyscale stored as colour: one of three equal channels taken"
        if values is None:
            return _by_color(path, samples, labels)
        if not is_mask:
            return values, how
    elif samples.palette and values is not None:
        moved = moved_palette(values, samples.palette, labels)
        if by_index:
            return values, "the palette's indices taken as ids, its colours left out"
        if moved is not None and moved.is_certain:
            table = np.arange(256)
            table[list(moved.mapping)] = list(moved.mapping.values())
            values, how = table[values], "palette indices put into the order of the ids"
            if moved.is_grey:
                how = "greys of the palette taken as ids"
            if not is_mask:
                return values, how
    if is_mask and values is not None and set(np.unique(values)) <= {0, UNKNOWN_VALUE}:
        return np.where(values == UNKNOWN_VALUE, 1, 0), "mask: 255 became id 1"
    raise LabelMapError(f"{path}: {how}")


def _by_color(path: Path, samples: Samples, labels: LabelSpec) -> tuple[NDArray[Any], str]:
    rgb = eight_bit(samples.colors) if samples.colors is not None else None
    if rgb is None:
        raise LabelMapError(f"{path}: its colours have 16 bits and are no colours of 8 bits")
    match = match_colors(rgb, labels)
    if not match.is_usable:
        raise LabelMapError(f"{path}: too few pixels have a colour of the palette: {match.summary}")
    return match.ids, match.summary


def read_palette_file(path: Path) -> tuple[tuple[Rgb, ...], tuple[str, ...]]:
    """Colours, and names where every line has one, from a JSON list of [r, g, b] or lines 'R G B [name]'.

    One entry an id, in the order of the ids; '#' starts a comment. Raises ConfigError.
    """
    try:
        # utf-8-sig: Windows' editor puts a byte order mark before the text.
        text = read_regular(path, _MAX_PALETTE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--palette: {path} cannot be read: it is no UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"--palette: {path} cannot be read ({error.strerror})") from error
    entries = _json_entries(path, text) if text.lstrip().startswith("[") else _line_entries(text)
    colors: list[Rgb] = []
    for where, entry in entries:
        red, green, blue = (_part(part) for part in (*entry[:3], *[None] * 3)[:3])
        if red is None or green is None or blue is None:
            raise ConfigError(
                f"--palette: {path}, {where}: {_shown(entry)} does not begin with three whole numbers in 0..255"
            )
        colors.append((red, green, blue))
    if not colors:
        raise ConfigError(f"--palette: {path} has no colours", hint="lines of 'R G B name', or JSON [[r, g, b], ...]")
    names = tuple(" ".join(map(str, entry[3:])) for _, entry in entries)
    for (where, _), name in zip(entries, names, strict=True):
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise ConfigError(
                f"--palette: {path}, {where}: {_shown(name)} is no name; allowed are {_MAX_NAME} printable characters"
            )
    return tuple(colors), names if all(names) else ()


def _part(value: Any) -> int | None:
    """A part of a colour, of JSON or of a line; None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= 255 else None


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json_entries(path: Path, text: str) -> list[tuple[str, list[Any]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--palette: {path} is not valid JSON ({reason_of(error)})") from error
    return [(f"entry {n}", entry if isinstance(entry, list) else [entry]) for n, entry in enumerate(value)]


def _line_entries(text: str) -> list[tuple[str, list[Any]]]:
    lines = [(f"line {n}", line.split("#")[0].replace(",", " ").split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(where, parts) for where, parts in lines if parts]


def _pack(rgb: NDArray[np.int32]) -> NDArray[np.int32]:
    packed: NDArray[np.int32] = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    return packed
