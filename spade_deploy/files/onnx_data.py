"""Find the other files that an ONNX file reads, and count its weights, without the package `onnx`.

A tensor may lie in a file of its own, which the graph names. Runtimes read whatever file is named: new ones stay in the
graph's folder, older ones do not, and `onnx` copies any file. So the protobuf is walked here by its field numbers, from
each message to the messages inside it that can hold a tensor. Large fields are stepped over, never read.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

from spade_deploy.files.reading import open_regular

EXTERNAL_DATA_BYTES = 1_900_000_000
"""A protobuf file ends at 2 GiB: whoever writes a graph puts weights beyond this into a second file beside it."""

_KEY = b"location"
_CONTEXT = b"EPContext"
_MAX_DEPTH = 100
_MAX_FIELDS = 5_000_000

_TENSOR, _ENTRY = "tensor", "entry"
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_WEIGHT_TYPES = (1, 3, 10, 11, 16)  # float32, int8, float16, float64, bfloat16, as TensorProto.DataType numbers them
_MAX_DIMENSIONS = 8
"""For each message of onnx.proto, the numbers of its fields that are messages and may lead to a tensor."""


def external_files(path: Path) -> tuple[str, ...]:
    """The names of the files beside an ONNX file that it reads weights from; empty where it holds them itself.

    Raises ValueError where a name is not that of a file in the same folder, where the graph would make a provider load
    a compiled engine, and for what is no ONNX file though it may hold such names; OSError where it cannot be read.
    """
    with open_regular(path) as stream:
        if not stream.peek(1):
            return ()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if path.suffix == ".ort" or content[4:8] == b"ORTM":
                raise ValueError("it is no ONNX file, but ONNX Runtime's own format")
            if content.find(_CONTEXT) >= 0:
                raise ValueError("it refers to a compiled engine (EPContext), which nothing vouches for")
            if content.find(_KEY) < 0:  # true of nearly every file, and found fast: no tensor lies in another file
                return ()
            names = list(dict.fromkeys(_Walk(content).locations(0, len(content), "model")))
    for name in names:
        if name in ("", ".", "..") or any(not part.isprintable() or part in '/\\:*"<>|?' for part in name):
            raise ValueError(f"its weights lie in {name[:80]!r}, which is not the name of a file beside it")
    return tuple(names)


def stored_numbers(path: Path) -> int:
    """How many numbers the weights of an ONNX file have: the initializers of its graph, no integers and no scalars.

    Raises OSError where it cannot be read, ValueError where it is damaged.
    """
    with open_regular(path) as stream:
        if not stream.peek(1):
            raise ValueError("it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Walk(content).numbers(0, len(content))


class _Walk:
    """One pass over a file's bytes, of a bounded number of fields: a graph has thousands, not millions."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._fields_left = _MAX_FIELDS

    def locations(self, start: int, end: int, message: str, depth: int = 0) -> Iterator[str]:
        """The values of all entries `location` in the bytes start..end of a message."""
        if depth > _MAX_DEPTH:
            raise ValueError("its graphs are nested too deeply")
        for field, begin, stop in self._fields(start, end):
            inside = _INSIDE[message].get(field)
            if inside == _ENTRY:
                yield from self._entry(begin, stop)
            elif inside is not None:
                yield from self.locations(begin, stop, inside, depth + 1)

    def numbers(self, start: int, end: int) -> int:
        """The sizes of all initializers with a weight's type in the bytes start..end of a model."""
        count = 0
        for field, begin, stop in self._fields(start, end):
            if field == 7:
                tensors = [place for number, *place in self._fields(begin, stop) if number == 5]
                count += sum(self._size(*place) for place in tensors)
        return count

    def _size(self, start: int, end: int) -> int:
        """How many numbers a tensor has; 0 for one that is no weight. The sizes may be packed into one field."""
        sizes, scalars = list[int](), list[tuple[int, int]]()
        for field, begin, stop in self._fields(start, end, scalars):
            at = begin
            while field == 1 and at < stop:
                size, at = self._varint(at, stop)
                sizes.append(size)
        sizes += [value for field, value in scalars if field == 1]
        kind = next((value for field, value in scalars if field == 2), 0)
        if len(sizes) > _MAX_DIMENSIONS or any(size >> 40 for size in sizes):
            raise ValueError("it is damaged: a tensor has a shape that cannot be")
        return math.prod(sizes) if sizes and kind in _WEIGHT_TYPES else 0

    def _entry(self, start: int, end: int) -> Iterator[str]:
        """The values of an entry `location`. If there are several, readers take the last; here every one counts."""
        parts = [(field, self._content[begin:stop]) for field, begin, stop in self._fields(start, end)]
        if any(field == 1 and part == _KEY for field, part in parts):
            yield from (part.decode("utf-8", "backslashreplace") for field, part in parts if field == 2)

    def _fields(
        self, start: int, end: int, scalars: list[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """(number, first byte, last byte + 1) of every field with a length; the others are stepped over.

        scalars: gets (number, value) of every field that is a whole number.
        """
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {_MAX_FIELDS:,} fields")
            tag, at = self._varint(at, end)
            tag &= 0xFFFFFFFF  # protobuf ignores the higher bits
            kind = tag & 7
            if kind == 0:
                value, at = self._varint(at, end)
                if scalars is not None:
                    scalars.append((tag >> 3, value))
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            elif kind == 2:
                length, at = self._varint(at, end)
                if at + length <= end:
                    yield tag >> 3, at, at + length
                at += length
            else:
                raise ValueError("it is damaged: no protobuf")
        if at != end:
            raise ValueError("it is damaged: a field is longer than what holds it")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("it is damaged: no protobuf")
