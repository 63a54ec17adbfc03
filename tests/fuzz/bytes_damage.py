"""Damage that knows nothing of a format: bits, cuts, swaps, insertions."""

from __future__ import annotations

import random

INTERESTING = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\x00" * 64,
    b"%s%n%x" * 3,
    b"../../../etc/passwd",
    b"\x1b[31m\r\n",
    b"\xed\xa0\x80",
    b"PK\x03\x04",
    b"\x80\x04.",
)


def damage_bytes(rng: random.Random, content: bytes, times: int | None = None) -> tuple[bytes, str]:
    """One to three damages in a row, and what they were."""
    said = []
    for _ in range(times if times is not None else rng.choice((1, 1, 1, 2, 3))):
        content, what = _once(rng, content)
        said.append(what)
    return content, ", ".join(said)


def _once(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    if not content:
        return b"\x00", "a zero byte for nothing"
    size = len(content)
    # The first bytes of a file decide most: they are damaged as often as all of the rest.
    place = rng.randrange(min(size, 64)) if rng.random() < 0.5 else rng.randrange(size)
    kind = rng.choice(
        ("bit", "bit", "byte", "cut", "head", "swap", "insert", "repeat", "zero", "fill", "delete", "tail")
    )
    if kind == "bit":
        bit = 1 << rng.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :], f"bit {bit} of byte {place}"
    if kind == "byte":
        value = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
        return content[:place] + bytes([value]) + content[place + 1 :], f"byte {place} is {value}"
    if kind == "cut":
        return content[:place], f"cut to {place} bytes"
    if kind == "head":
        return content[place:], f"without its first {place} bytes"
    if kind == "swap":
        other, length = rng.randrange(size), rng.randrange(1, 65)
        first, second = sorted((place, other))
        length = min(length, second - first, size - second)
        parts = content[:first], content[first : first + length], content[first + length : second]
        rest = content[second : second + length], content[second + length :]
        return parts[0] + rest[0] + parts[2] + parts[1] + rest[1], f"{length} bytes at {first} and {second} swapped"
    if kind == "insert":
        piece = rng.choice(INTERESTING)
        return content[:place] + piece + content[place:], f"{piece!r} at {place}"
    if kind == "repeat":
        length = rng.randrange(1, min(size, 4096) + 1)
        times = rng.choice((1, 2, 16))
        return content[:place] + content[place : place + length] * times + content[place:], f"{length} bytes repeated"
    if kind == "zero":
        length = rng.randrange(1, 257)
        return content[:place] + bytes(min(length, size - place)) + content[
            place + length :
        ], f"{length} zeros at {place}"
    if kind == "fill":
        piece = rng.choice(INTERESTING)
        return content[:place] + piece + content[place + len(piece) :], f"{piece!r} over {place}"
    if kind == "delete":
        length = rng.randrange(1, 65)
        return content[:place] + content[place + length :], f"{length} bytes at {place} taken away"
    return content + rng.choice((b"\x00", b"\n", content[:100], rng.randbytes(100))), "more at its end"
