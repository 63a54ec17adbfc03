"""Turn images of colours into ids, by a label set's palette.

Nothing is guessed silently: each result says how well the colours matched, and the caller refuses what does not match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.labels.palettes import effective_palette
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec, Rgb

NEAR = 32
"""RGB distance (of at most 441) within which a colour counts as a palette colour that was slightly changed."""

REACH = 2
"""Pixels around an antialiased one among which its class is looked for."""

MIN_EXACT = 0.25
"""The least share of pixels with a colour of the palette that a colour-coded label map has."""
_CHUNK = 4096  # pixels compared with the whole palette at once: bounds the memory


@dataclass(frozen=True)
class Foreign:
    """A colour that fills areas of a colour-coded label map, and that no class has."""

    color: Rgb
    """The colour."""
    share: float
    """The share of pixels that have it."""

    @property
    def described(self) -> str:
        """For people: 'the colour 0 0 0 fills areas (31.5% of the pixels), and no class has it'."""
        color = " ".join(map(str, self.color))
        return f"the colour {color} fills areas ({self.share:.1%} of the pixels), and no class has it"


@dataclass(frozen=True)
class ColorMatch:
    """How an RGB image reads under a palette."""

    ids: NDArray[np.int32]
    """H x W."""
    exact: float
    """The share of pixels that have a palette colour."""
    near: float
    """The share of pixels that have a palette colour, or one within NEAR of it."""
    ambiguous: tuple[int, ...]
    """Ids in the image that share their colour with other ids; of these the lowest is taken."""
    foreign: tuple[Foreign, ...] = ()
    """Colours that fill areas and are not in the palette, the most frequent first."""

    @property
    def is_usable(self) -> bool:
        """Whether it can be a colour-coded label map at all.

        Measured with the palettes of all five label sets: at most 5 % of the pixels of the 13 COCO-Stuff photos have
        a palette colour; of colour-coded maps all, and after bilinear resizing by 0.5 at least 33 % (Earth tiles,
        most of whose pixels are borders) or 85 % (others). Closeness says nothing: 98 % of a photo's pixels are near
        one of COCO's 183 colours. A colour that fills areas and is no class's is not made of two others by smoothing.
        """
        return self.exact >= MIN_EXACT and not self.foreign

    @property
    def summary(self) -> str:
        if self.foreign:
            return self.foreign[0].described
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
    near, foreign = 1.0, tuple[Foreign, ...]()
    if exact < 1:
        rows, columns = np.nonzero(~is_exact)
        mixed = pixels[rows, columns]
        chosen, distance = _nearest_around(ids, rows, columns, mixed, palette)
        lost = chosen < 0
        candidates = lowest[present] if present.any() else lowest
        chosen[lost], distance[lost] = _nearest(mixed[lost], palette, candidates)
        ids[rows, columns] = chosen
        near = 1 - np.count_nonzero(distance > NEAR**2) / ids.size
        foreign = _foreign(codes, is_exact, palette) if exact >= MIN_EXACT else ()
    ambiguous = tuple(int(label_id) for label_id in sorted(lowest[present & (occurrences > 1)]))
    return ColorMatch(ids, exact, near, ambiguous, foreign)


def _foreign(codes: NDArray[np.int32], is_exact: NDArray[np.bool_], palette: NDArray[Any]) -> tuple[Foreign, ...]:
    """Packed colours, H x W, that fill 3 x 3 pixels and lie further than NEAR from every colour of the palette.

    Smoothing makes ramps between two colours, which hardly ever have nine equal pixels.
    """
    flat = ~is_exact
    for axis in (0, 1):
        for step in (-1, 1):
            flat &= codes == np.roll(codes, step, axis)
    for down in (-1, 1):
        for right in (-1, 1):
            flat &= codes == np.roll(codes, (down, right), (0, 1))
    found = np.unique(codes[1:-1, 1:-1][flat[1:-1, 1:-1]])
    colors = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    _, distance = _nearest(colors, palette, np.arange(len(palette)))
    is_far = distance > NEAR**2
    values, counts = np.unique(codes, return_counts=True)
    shares = counts[np.searchsorted(values, found[is_far])] / codes.size
    told = zip(colors[is_far].tolist(), shares.tolist(), strict=True)
    return tuple(sorted((Foreign((r, g, b), share) for (r, g, b), share in told), key=lambda one: -one.share))


def _nearest_around(
    ids: NDArray[np.int32], rows: NDArray[Any], columns: NDArray[Any], colors: NDArray[np.int32], palette: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For each pixel the id within REACH with the nearest colour, -1 if there is none, and the squared distance."""
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


def eight_bit(colors: NDArray[Any]) -> NDArray[np.uint8] | None:
    """H x W x 3 of 8 or 16 bits -> 8 bits; None if something would be lost by that.

    Programs store 8-bit values in 16 bits as they are, or times 257, so that white stays white.
    """
    if int(colors.max(initial=0)) <= 255:
        return colors.astype(np.uint8)
    return (colors // 257).astype(np.uint8) if not (colors % 257).any() else None


def is_grey(colors: NDArray[Any]) -> bool:
    """Whether the three channels of H x W x 3 are equal."""
    return bool((colors[..., :1] == colors[..., 1:]).all())


def grey_values(colors: NDArray[Any]) -> NDArray[Any] | None:
    """H x W x 3 of 8 or 16 bits with equal channels -> H x W values, as `eight_bit` reads them; else None."""
    return eight_bit(colors[..., 0]) if is_grey(colors) else None


def grey_ids(colors: NDArray[Any], labels: LabelSpec) -> NDArray[Any] | None:
    """H x W ids of a colour image whose three channels are equal and hold ids or a 0/255 mask; else None."""
    red = colors[..., 0]
    for values in (red, eight_bit(red)) if is_grey(colors) else ():
        if values is not None:
            found = np.unique(values)
            if ((found < labels.num_ids) | (found == UNKNOWN_VALUE)).all():
                return values
    return None


def _pack(rgb: NDArray[np.int32]) -> NDArray[np.int32]:
    packed: NDArray[np.int32] = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    return packed
