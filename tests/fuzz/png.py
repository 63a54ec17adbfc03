"""A second reading of PNG files, written from the specification (ISO/IEC 15948) alone, and their writing.

It is strict where a wrong value could come out: the CRCs of the header and the palette, the CRCs of the pixels' chunks
or else the checksum of their stream (either covers all pixels), every row there. It shares no code with Pillow, so that
what both read is what the file says.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
MAX_SAMPLES = 1 << 24


class PngError(Exception):
    """Why a file is no whole PNG image."""


@dataclass(frozen=True)
class Png:
    """samples: H x W x channels, the file's own numbers. palette: N x 3 bytes of PLTE."""

    color_type: int
    depth: int
    samples: NDArray[np.int64]
    palette: bytes = b""
    ancillary: dict[bytes, bytes] = field(default_factory=dict)


class _Unsure(bytes):
    """The data of a chunk whose CRC is wrong."""


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) up to IEND or the end of the file; the data of the last one may be cut.

    Raises PngError at a header or palette whose CRC is wrong: nothing else vouches for these.
    """
    if not content.startswith(SIGNATURE):
        raise PngError("no PNG")
    place = 8
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        crc = content[place + 8 + length : place + 12 + length]
        if kind in (b"IHDR", b"PLTE") and crc != struct.pack(">I", zlib.crc32(kind + data)):
            raise PngError(f"the CRC of {kind.decode()} is wrong")
        yield kind, data if crc == struct.pack(">I", zlib.crc32(kind + data)) else _Unsure(data)
        if kind == b"IEND":
            return
        place += 12 + length


def read_png(content: bytes) -> Png:
    """Raises PngError where the file does not hold every pixel as it was written."""
    header, palette, stream, others = b"", b"", b"", {}
    is_vouched = True
    for kind, data in chunks(content):
        if kind == b"IHDR" and not header:
            header = data
        elif kind == b"PLTE":
            palette = data
        elif kind == b"IDAT":
            stream += data
            is_vouched = is_vouched and not isinstance(data, _Unsure)
        else:
            others[kind] = data
    if len(header) != 13:
        raise PngError("no IHDR of 13 bytes")
    width, height, depth, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if color_type not in CHANNELS or depth not in DEPTHS[color_type]:
        raise PngError(f"colour type {color_type} of {depth} bits")
    channels = CHANNELS[color_type]
    if not 0 < width * height * channels <= MAX_SAMPLES:
        raise PngError(f"{width} x {height} pixels")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(stream, 2 * MAX_SAMPLES + 10_000_000)
    except zlib.error as error:
        raise PngError(f"the pixels' stream: {error}") from error
    if not (is_vouched or inflater.eof):
        raise PngError("neither the CRCs of the pixels' chunks nor the checksum of their stream vouch for them")
    samples = np.zeros((height, width, channels), np.int64)
    place = 0
    for top, left, down, right in _PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[top::down, left::right]
        if part.size:
            found, place = _rows(raw, place, part.shape[0], part.shape[1], channels, depth)
            part[:] = found
    return Png(color_type, depth, samples, palette, others)


def _rows(raw: bytes, place: int, height: int, width: int, channels: int, depth: int) -> tuple[NDArray[np.int64], int]:
    """One pass: filtered rows -> samples; and where the next pass begins."""
    row_bytes = (width * channels * depth + 7) // 8
    step = max(1, channels * depth // 8)
    if place + height * (row_bytes + 1) > len(raw):
        raise PngError(f"{len(raw)} bytes of pixels, at least {place + height * (row_bytes + 1)} are needed")
    above = bytearray(row_bytes)
    rows = []
    for _ in range(height):
        kind, line = raw[place], bytearray(raw[place + 1 : place + 1 + row_bytes])
        place += 1 + row_bytes
        _unfilter(kind, line, above, step)
        rows.append(bytes(line))
        above = line
    flat = np.frombuffer(b"".join(rows), np.uint8).reshape(height, row_bytes)
    if depth == 16:
        wide = flat.reshape(height, width * channels, 2).astype(np.int64)
        values = wide[..., 0] << 8 | wide[..., 1]
    elif depth == 8:
        values = flat.astype(np.int64)
    else:
        bits = np.unpackbits(flat, axis=1)[:, : width * channels * depth].reshape(height, width * channels, depth)
        values = bits.astype(np.int64) @ (1 << np.arange(depth)[::-1])
    return values[:, : width * channels].reshape(height, width, channels), place


def _unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> None:
    if kind > 4:
        raise PngError(f"filter {kind}")
    if kind == 0:
        return
    for index in range(len(line)):
        left = line[index - step] if index >= step else 0
        up = above[index]
        corner = above[index - step] if index >= step else 0
        guess = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
        line[index] = (line[index] + guess) & 0xFF


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    distances = (abs(guess - left), abs(guess - up), abs(guess - corner))
    return (left, up, corner)[distances.index(min(distances))]


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk, its CRC right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(
    samples: NDArray[np.int64], color_type: int, depth: int, *, interlaced: bool, extra: bytes = b""
) -> bytes:
    """H x W x channels -> a PNG without filters; extra: chunks between IHDR and IDAT, such as a PLTE."""
    height, width, _ = samples.shape
    raw = b""
    for top, left, down, right in _PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[top::down, left::right]
        if part.size:
            raw += b"".join(b"\0" + _packed(row.reshape(-1), depth) for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def _packed(values: NDArray[np.int64], depth: int) -> bytes:
    if depth == 16:
        return values.astype(">u2").tobytes()
    if depth == 8:
        return values.astype(np.uint8).tobytes()
    bits = (values[:, None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()
