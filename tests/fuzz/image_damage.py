"""Label maps, instance maps and photos: good files of every kind, and damage that knows their structure."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bytes_damage import damage_bytes
from .png import CHANNELS, DEPTHS, GREY, PALETTE, SIGNATURE, PngError, chunk, chunks, write_png

Ids = NDArray[np.int64]


def some_ids(rng: random.Random, most: int) -> Ids:
    """A few rectangles of ids 0..most, of an odd size now and then."""
    height, width = rng.choice(((16, 16), (32, 32), (7, 13), (1, 1), (64, 40), (33, 8)))
    ids = np.full((height, width), rng.randint(0, most), np.int64)
    for _ in range(4):
        top, left = rng.randrange(height), rng.randrange(width)
        ids[top : top + rng.randint(1, height), left : left + rng.randint(1, width)] = rng.randint(0, most)
    if rng.random() < 0.1:
        ids[0, 0] = rng.choice((255, most + 1))
    return ids


EVERY_KIND = tuple(CHANNELS)
MOSTLY_IDS = (GREY, GREY, GREY, PALETTE, PALETTE, *CHANNELS)


def good_png(rng: random.Random, most: int, kinds: tuple[int, ...] = EVERY_KIND) -> tuple[bytes, str]:
    """A PNG of every colour type, depth, interlacing, with and without tRNS."""
    color_type = rng.choice(kinds)
    depth = rng.choice(DEPTHS[color_type])
    ids = np.minimum(some_ids(rng, min(most, (1 << depth) - 1)), (1 << depth) - 1)
    samples = np.repeat(ids[..., None], CHANNELS[color_type], axis=2)
    if color_type not in (GREY, PALETTE) and rng.random() < 0.7:
        noise = np.random.default_rng(rng.randrange(1 << 30))
        samples = noise.integers(0, 1 << depth, samples.shape)
    extra = b""
    if color_type == PALETTE:
        count = min(1 << depth, max(int(ids.max()) + 1, rng.choice((1, 16, 256))))
        extra += chunk(b"PLTE", rng.randbytes(3 * count) if rng.random() < 0.7 else _greys(count))
    if rng.random() < 0.2 and color_type in (GREY, PALETTE, 2):
        extra += chunk(b"tRNS", b"\0\1" * (3 if color_type == 2 else 1) if color_type != PALETTE else b"\0\xff")
    if rng.random() < 0.1:
        extra += chunk(rng.choice((b"tEXt", b"gAMA", b"sBIT", b"iCCP", b"eXIf", b"acTL")), rng.randbytes(8))
    interlaced = rng.random() < 0.3
    content = write_png(samples, color_type, depth, interlaced=interlaced, extra=extra)
    return content, f"PNG type {color_type}, {depth} bit{', interlaced' if interlaced else ''}"


def _greys(count: int) -> bytes:
    return b"".join(bytes([(7 * index) % 256] * 3) for index in range(count))


def good_image(rng: random.Random, most: int) -> tuple[bytes, str]:
    """Another format, by Pillow."""
    kind = rng.choice(("JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "ICO", "TGA"))
    mode = rng.choice(("L", "RGB", "P", "1", "RGBA", "CMYK", "I;16", "LA", "I", "F"))
    ids = np.minimum(some_ids(rng, most), 255).astype(np.uint8)
    image = Image.fromarray(ids)
    stream = io.BytesIO()
    options = {"exif": _exif(rng)} if kind in ("JPEG", "WEBP", "TIFF") and rng.random() < 0.4 else {}
    try:
        image = image.convert(mode)
        image.save(stream, format=kind, **options)
    except (OSError, ValueError, KeyError, SyntaxError):  # not every format holds every mode, or a damaged EXIF
        stream = io.BytesIO()
        image, mode = Image.fromarray(ids).convert("RGB"), "RGB"
        image.save(stream, format=kind)
    return stream.getvalue(), f"{kind} {mode}"


def _exif(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 0, 9, 65535))
    content = exif.tobytes()
    return content if rng.random() < 0.7 else damage_bytes(rng, content)[0]


def damaged_image(
    rng: random.Random, most: int, *, png_share: float = 0.7, kinds: tuple[int, ...] = EVERY_KIND
) -> tuple[bytes, str]:
    """A file that may be damaged in any way, or good but of an unusual kind."""
    if rng.random() < png_share:
        content, what = good_png(rng, most, kinds)
        if rng.random() < 0.25:
            return content, what
        damage = rng.choice((_damage_png, _damage_png, _damage_png, damage_bytes))
    else:
        content, what = good_image(rng, most)
        if rng.random() < 0.25:
            return content, what
        damage = rng.choice((_damage_header, damage_bytes, damage_bytes))
    content, how = damage(rng, content)
    return content, f"{what}: {how}"


def _damage_header(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A size, length or offset among the first bytes becomes an odd one."""
    place = rng.randrange(min(len(content), 160))
    value = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 70_000, 20_000))
    piece = (
        struct.pack(rng.choice(("<I", ">I")), value)
        if rng.random() < 0.5 or value > 0xFFFF
        else struct.pack("<H", value)
    )
    return content[:place] + piece + content[place + len(piece) :], f"{value} at {place}"


def _damage_png(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    try:
        parts = list(chunks(content))
    except PngError:
        return damage_bytes(rng, content)
    kind = rng.choice(
        (
            "header",
            "header",
            "size",
            "crc",
            "length",
            "cut",
            "swap",
            "twice",
            "drop",
            "pixels",
            "bomb",
            "stream",
            "text",
            "split",
            "filter",
        )
    )
    index = rng.randrange(len(parts))
    name, data = parts[index]
    if kind == "header":
        name, data = parts[0]
        place = rng.randrange(len(data))
        parts[0] = name, data[:place] + bytes([rng.choice((0, 1, 2, 3, 5, 7, 16, 32, 255))]) + data[place + 1 :]
        return _joined(parts), f"IHDR byte {place} is {parts[0][1][place]}"
    if kind == "size":
        sizes = (0, 1, 8192, 8193, 65535, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1)
        size = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
        parts[0] = b"IHDR", size + parts[0][1][8:]
        return _joined(parts), f"IHDR says {struct.unpack('>II', size)}"
    if kind == "crc":
        place = len(_joined(parts[: index + 1])) - rng.randint(1, 4)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], f"the CRC of {name!r} is wrong"
    if kind == "length":
        place = len(_joined(parts[:index]))
        length = struct.pack(">I", rng.choice((0, len(data) - 1 if data else 1, len(data) + 1, 1 << 31, (1 << 32) - 1)))
        return content[:place] + length + content[place + 4 :], f"{name!r} says another length"
    if kind == "cut":
        start = len(_joined(parts[:index]))
        return content[: start + rng.randrange(len(data) + 12)], f"cut in {name!r}"
    if kind == "swap":
        other = rng.randrange(len(parts))
        parts[index], parts[other] = parts[other], parts[index]
        return _joined(parts), f"{name!r} and {parts[index][0]!r} swapped"
    if kind == "twice":
        parts[index:index] = [parts[index]] * rng.choice((1, 300))
        return _joined(parts), f"{name!r} several times"
    if kind == "drop":
        del parts[index]
        return _joined(parts), f"{name!r} is missing"
    if kind == "pixels":  # the stream is damaged, its CRC is not
        parts = [(n, damage_bytes(rng, d, 1)[0] if n == b"IDAT" else d) for n, d in parts]
        return _joined(parts), "IDAT damaged, its CRC right"
    if kind == "bomb":
        bomb = chunk(rng.choice((b"zTXt", b"iTXt", b"iCCP", b"IDAT")), b"x\0\0" + _bomb(rng.choice((20, 60))))
        at = len(_joined(parts[:1]))
        return content[:at] + bomb + content[at:], "a chunk that inflates to megabytes"
    if kind == "stream":  # right CRC, right zlib, wrong number of bytes
        raw = b"".join(zlib.decompress(d) for n, d in parts if n == b"IDAT")
        raw = rng.choice((raw[:-1], raw[: len(raw) // 2], raw + b"\0", b"", raw + bytes(30_000_000)))
        return _joined(
            [(n, zlib.compress(raw) if n == b"IDAT" else d) for n, d in parts]
        ), f"{len(raw)} bytes of pixels"
    if kind == "filter":
        raw = bytearray(b"".join(zlib.decompress(d) for n, d in parts if n == b"IDAT"))
        raw[0] = rng.choice((1, 2, 3, 4, 5, 255))
        return _joined([(n, zlib.compress(bytes(raw)) if n == b"IDAT" else d) for n, d in parts]), f"filter {raw[0]}"
    if kind == "split":
        many = []
        for n, d in parts:
            step = rng.choice((1, 2, 7))
            many += [(n, d[k : k + step]) for k in range(0, len(d), step)] if n == b"IDAT" else [(n, d)]
        return _joined(many), "IDAT in many pieces"
    text = rng.choice(
        (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"pHYs", b"tRNS", b"PLTE", b"fcTL", b"acTL", b"fdAT")
    )
    parts.insert(rng.randrange(1, len(parts)), (text, rng.randbytes(rng.choice((0, 1, 3, 9, 26, 3000)))))
    return _joined(parts), f"an odd {text!r}"


def _bomb(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 9)


def _joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(chunk(name, data) for name, data in parts)
