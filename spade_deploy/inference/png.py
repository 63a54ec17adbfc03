"""A PNG encoder that leaves the cores to the model.

Encoding competes with a CPU session for the same cores, so its processor time is what counts. Every row gets the Sub
filter (each byte minus the one a pixel to its left). Then Intel's ISA-L compresses (the package isal, which the extra
`serve` installs), in a quarter of zlib's time. Without it zlib compresses with its run-length strategy: less than half
the time of Pillow's fastest level, which tries all five filters on every row. Files are of the same size, within a few
percent. For a small model that decides whether `infer` and `serve` reach nine tenths of the bare session
(benchmarks/infer_overlap.py and benchmarks/serving_load.py, Earth).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None  # type: ignore[assignment]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB = 1
_RGB_8_BIT = (8, 2, 0, 0, 0)  # bit depth, colour type, and the only compression, filter method and (no) interlacing


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """H x W x 3 RGB -> the bytes of a PNG file."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1:4] = rows[:, :3]
    np.subtract(rows[:, 3:], rows[:, :-3], out=filtered[:, 4:])  # modulo 256, as the format wants it
    data = _compressed(filtered)
    header = struct.pack(">IIBBBBB", width, height, *_RGB_8_BIT)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _compressed(filtered: NDArray[np.uint8]) -> bytes:
    if isal_zlib is not None:
        return isal_zlib.compress(filtered.data, 1)
    compressor = zlib.compressobj(level=1, memLevel=9, strategy=zlib.Z_RLE)
    return compressor.compress(filtered.data) + compressor.flush()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
