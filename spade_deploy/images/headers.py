"""Headers of JPEG, WebP and BMP files and of EXIF, read here where Pillow would spend memory or minutes on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_JPEG_SEGMENTS = 5_000
MAX_JPEG_SCANS = 1_000
MAX_RLE_BYTES = 4 << 20
"""The largest BMP with run-length compression that is read: Pillow decodes it byte by byte, in two seconds a MB."""

_MAX_FILL = 4_096
_ALONE = frozenset({0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # markers that Pillow takes as two bytes alone
_BLOCK = 1 << 20


def refuse_slow_jpeg(stream: BinaryIO) -> None:
    """Raise ValueError where the segments before a JPEG's pixels are more than any camera or program writes.

    Pillow goes through them one by one, and through the bytes that may stand between them, too.
    """
    at, fill = 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        stream.seek(at)
        head = stream.read(4)
        while head[:2] == b"\xff\xff" and fill < _MAX_FILL:
            at, fill = at + 1, fill + 1
            stream.seek(at)
            head = stream.read(4)
        if fill == _MAX_FILL:
            raise ValueError(f"more than {_MAX_FILL} bytes stand between its segments")
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return  # the pixels begin, or Pillow finds no segment either
        at += 2 + (0 if head[1] in _ALONE else max(2, int.from_bytes(head[2:], "big")))
    raise ValueError(f"it has more than {MAX_JPEG_SEGMENTS} segments")


def jpeg_scans(stream: BinaryIO) -> int:
    """About how often a JPEG goes through its pixels; of a progressive one about ten times, of others once."""
    stream.seek(0)
    count, before = 0, b""
    while block := stream.read(_BLOCK):
        count += (before + block).count(b"\xff\xda")
        before = block[-1:] if block.endswith(b"\xff") else b""
    return count


def is_run_length_bmp(head: bytes) -> bool:
    """Whether a BMP's pixels are run-length compressed. head: at least its first 34 bytes."""
    return head[30:34] in (b"\1\0\0\0", b"\2\0\0\0") and head[14:18] != b"\x0c\0\0\0"


def webp_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and first bytes of each chunk of a WebP file."""
    at = 12
    for _ in range(1000):
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        yield head[:4], stream.read(10)
        length = int.from_bytes(head[4:], "little")
        at += 8 + length + length % 2


def webp_size(stream: BinaryIO) -> tuple[int, int]:
    """Width and height of the canvas; zeros if the file does not begin as a WebP, which the decoder then refuses."""
    for name, body in webp_chunks(stream):
        if name == b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if name == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if name == b"VP8 ":
            return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in a block of EXIF; None if it has none or is damaged.

    Pillow's reader warns about damaged blocks, once a file, and reads all of them; one number is needed here.
    """
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order not in ("little", "big"):
        return None

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "little" if order == "little" else "big")

    first = number(4, 4)
    for entry in range(first + 2, min(first + 2 + 12 * number(first, 2), len(exif) - 11), 12):
        if number(entry, 2) == 0x0112:
            return number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
    return None


def hexadecimal_exif(text: Any) -> bytes:
    """ImageMagick's older way to store EXIF in a PNG: a line of its kind, one of its length, then hexadecimal lines."""
    try:
        return bytes.fromhex("".join(str(text).split("\n")[3:]))
    except ValueError:
        return b""
