"""Read the header of a PNG file, and its samples of 16 bits, of which Pillow keeps only eight in colour images.

Pillow reports neither the bit depth nor whether it scaled the samples. So the chunks are read here before it decodes
them. That also bounds the memory that Pillow would take for chunks without pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types, as IHDR has them."""

MAX_WIDE_PIXELS = 16 << 20
"""The largest colour image of 16 bits whose exact samples are read, which takes about 50 bytes a pixel."""

_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_MAX_CHUNKS = 200_000  # a file of a million empty chunks would keep Pillow busy for minutes
_MAX_OTHER_BYTES = 32 << 20  # the largest chunk without pixels; colour profiles have a few MB at most
_KEPT_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Each pass of an interlaced image: its first column and row, and the steps to the next ones."""


@dataclass(frozen=True)
class PngFacts:
    """The header of a PNG file, and the contents of the other chunks that matter here."""

    width: int
    """The width in pixels."""

    height: int
    """The height in pixels."""

    bit_depth: int
    """Bits of a sample: 1, 2, 4, 8 or 16."""

    color_type: int
    """One of the colour types, such as RGB."""

    is_interlaced: bool
    """Whether the pixels come in Adam7's seven passes."""

    transparency: bytes = b""
    """The content of the tRNS chunk, which makes colours transparent; empty if there is none."""

    frames: int = 1
    """How many images it holds: an animation has more than one."""

    exif: bytes = b""
    """Metadata as EXIF; empty where there is none."""

    xmp: bytes = b""
    """Metadata as XMP; empty where there is none."""

    @property
    def grey_scale(self) -> int:
        """The factor by which viewers and Pillow multiply grey samples: 255, 85, 17 for 1, 2, 4 bits; else 1."""
        return 255 // (2**self.bit_depth - 1) if self.color_type == GREY and self.bit_depth < 8 else 1

    @property
    def is_wide_color(self) -> bool:
        """Whether Pillow would keep only the upper half of its samples."""
        return self.bit_depth == 16 and self.color_type != GREY


def png_facts(stream: BinaryIO) -> PngFacts:
    """Read the chunks of a PNG file from its start; pixels are skipped over.

    For a file that ends early the facts are those up to its end, and decoding it raises later. Raises ValueError for a
    file that is no PNG, and for chunks that are too many or too large.
    """
    stream.seek(0)
    if stream.read(8) != SIGNATURE:
        raise ValueError("it has no PNG signature")
    header, found = b"", dict[bytes, bytes]()
    for name, length in _chunks(stream):
        if name == b"IHDR" and not header:
            header = stream.read(13)
        elif name in (b"tRNS", b"acTL", b"eXIf"):
            found.setdefault(name, stream.read(min(length, _KEPT_BYTES)))
        elif name in (b"iTXt", b"tEXt") and b"xmp" not in found:
            text = stream.read(min(length, _KEPT_BYTES))
            if text.startswith(b"XML:com.adobe.xmp\0"):
                found[b"xmp"] = text
    if len(header) < 13:
        raise ValueError("it has no header")
    width, height, bit_depth, color_type, _, _, interlace = struct.unpack(">IIBBBBB", header)
    frames = struct.unpack(">I", found[b"acTL"][:4])[0] if len(found.get(b"acTL", b"")) >= 4 else 1
    return PngFacts(
        width,
        height,
        bit_depth,
        color_type,
        interlace != 0,
        found.get(b"tRNS", b""),
        frames,
        found.get(b"eXIf", b""),
        found.get(b"xmp", b""),
    )


def _chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk. While one is handled, the stream's position is at the chunk's content."""
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head)
        if name not in (b"IDAT", b"fdAT") and length > _MAX_OTHER_BYTES:
            raise ValueError(f"a chunk of {length:,} bytes holds no pixels; at most {_MAX_OTHER_BYTES:,} are read")
        yield name, length
        if name == b"IEND":
            return
        at += 12 + length
    raise ValueError(f"it has more than {_MAX_CHUNKS:,} chunks")


def require_whole(stream: BinaryIO, facts: PngFacts) -> None:
    """Raise ValueError if a PNG file does not hold every pixel as it was written. The stream's position is restored.

    Pillow does not compare the CRCs of the chunks with pixels, nor the checksum of their stream once all rows are
    filled, and it leaves missing rows black. Of single flipped bits in a map of 64 x 64, 13 % silently became other
    ids.
    """
    place = stream.tell()
    wanted = sum(h * (1 + (w * _CHANNELS[facts.color_type] * facts.bit_depth + 7) // 8) for w, h in _passes(facts) if w)
    inflater, size = zlib.decompressobj(), 0
    for name, length in _chunks(stream):
        if name not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            continue
        crc = zlib.crc32(name)
        for start in range(0, length, _PIECE_BYTES):
            piece = stream.read(min(_PIECE_BYTES, length - start))
            crc = zlib.crc32(piece, crc)
            while name == b"IDAT" and piece and not inflater.eof and size <= wanted:
                size += len(inflater.decompress(piece, _PIECE_BYTES))
                piece = inflater.unconsumed_tail
        if stream.read(4) != crc.to_bytes(4, "big"):
            raise ValueError(f"the checksum of its chunk {name.decode()} is wrong, or it ends early")
    if size < wanted:
        raise ValueError(f"its pixels end early: {size:,} of {wanted:,} bytes")
    stream.seek(place)


def wide_samples(stream: BinaryIO, facts: PngFacts) -> NDArray[np.uint16]:
    """The samples of a colour image of 16 bits, H x W x channels, exactly.

    PNG's filters work on each byte place of a pixel by itself, so the upper and the lower bytes are two images of
    8 bits with the same filters; Pillow decodes both. Raises ValueError, and what Pillow raises on damaged data.
    """
    if facts.width * facts.height > MAX_WIDE_PIXELS:
        raise ValueError(
            f"{facts.width} x {facts.height} pixels of 16 bits and several channels are more than the"
            f" {MAX_WIDE_PIXELS} that are read"
        )
    channels = _CHANNELS[facts.color_type]
    passes = [(w, h) for w, h in _passes(facts) if w and h]
    data = _inflated(stream, sum(h * (1 + 2 * channels * w) for w, h in passes))
    halves: tuple[list[bytes], list[bytes]] = ([], [])
    at = 0
    for width, height in passes:
        row = 1 + 2 * channels * width
        rows = np.frombuffer(data, np.uint8, row * height, at).reshape(height, row)
        at += row * height
        for place, half in enumerate(halves):
            half.append(np.concatenate([rows[:, :1], rows[:, 1 + place :: 2]], axis=1).tobytes())
    high, low = (_decoded(facts, b"".join(half)) for half in halves)
    return np.asarray(high.astype(np.uint16) << 8 | low, dtype=np.uint16)


def _passes(facts: PngFacts) -> list[tuple[int, int]]:
    """Width and height of each pass: seven for an interlaced image, else one."""
    if not facts.is_interlaced:
        return [(facts.width, facts.height)]
    return [(max(0, -(-(facts.width - x) // dx)), max(0, -(-(facts.height - y) // dy))) for x, y, dx, dy in _ADAM7]


def _inflated(stream: BinaryIO, size: int) -> bytes:
    packed = io.BytesIO()
    for name, length in _chunks(stream):
        if name == b"IDAT":
            packed.write(stream.read(length))
    data = zlib.decompressobj().decompress(packed.getvalue(), size)
    if len(data) < size:
        raise ValueError("it ends early")
    return data


def _decoded(facts: PngFacts, data: bytes) -> NDArray[np.uint8]:
    """Filtered rows of 8-bit samples -> H x W x channels."""
    header = struct.pack(">IIBBBBB", facts.width, facts.height, 8, facts.color_type, 0, 0, int(facts.is_interlaced))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 0)), (b"IEND", b""))
    file = SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    with PngImagePlugin.PngImageFile(io.BytesIO(file)) as image:
        return np.array(image, dtype=np.uint8)
