"""PNG files bit by bit, without Pillow: the truth that reading is held against must not come from the reader."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
LEGAL = [
    *((GREY, depth) for depth in (1, 2, 4, 8, 16)),
    *((PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((color_type, depth) for color_type in (RGB, GREY_ALPHA, RGB_ALPHA) for depth in (8, 16)),
]
"""Every combination of colour type and bit depth that the PNG specification allows: 15."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    samples: NDArray[np.int64],
    color_type: int,
    depth: int,
    *,
    is_interlaced: bool = False,
    palette: Sequence[tuple[int, int, int]] = (),
    transparency: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """samples: H x W x channels. before, after: whole chunks around IDAT. Rows take the five filters in turn."""
    height, width, channels = samples.shape
    assert channels == CHANNELS[color_type]
    assert samples.max() < 2**depth
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(is_interlaced))
    passes = _ADAM7 if is_interlaced else ((0, 0, 1, 1),)
    data = b"".join(_filtered(samples[y::dy, x::dx], depth) for x, y, dx, dy in passes)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if palette:
        parts.append(chunk(b"PLTE", bytes(part for color in palette for part in color)))
    if transparency is not None:
        parts.append(chunk(b"tRNS", transparency))
    packed = zlib.compress(data)
    half = len(packed) // 2
    parts += [before, chunk(b"IDAT", packed[:half]), chunk(b"IDAT", packed[half:]), after, chunk(b"IEND", b"")]
    return b"".join(parts)


def _filtered(samples: NDArray[np.int64], depth: int) -> bytes:
    height, width, channels = samples.shape
    if not height or not width:
        return b""
    step = max(1, channels * depth // 8)
    before = [0] * (-(-width * channels * depth // 8))
    out = bytearray()
    for number, row in enumerate(samples):
        line = _packed(row.ravel().tolist(), depth)
        kind = number % 5
        out.append(kind)
        for place, value in enumerate(line):
            left = line[place - step] if place >= step else 0
            corner = before[place - step] if place >= step else 0
            out.append((value - _predicted(kind, left, before[place], corner)) % 256)
        before = line
    return bytes(out)


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def _packed(values: list[int], depth: int) -> list[int]:
    if depth == 16:
        return [part for value in values for part in (value >> 8, value & 255)]
    if depth == 8:
        return values
    each = 8 // depth
    values = values + [0] * (-len(values) % each)
    return [
        sum(value << (8 - depth * (place + 1)) for place, value in enumerate(values[first : first + each]))
        for first in range(0, len(values), each)
    ]
