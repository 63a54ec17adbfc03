"""Pixels -> the bytes of an image file, in the format that a request names or accepts."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.inference.png import encode_png
from spade_deploy.settings import check_one_of

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""The media type of each format."""
DEFAULT_QUALITY = 90


def parse_format(name: str | None, accept: str = "") -> str:
    """The format by its name; by the header Accept where none is named; PNG where that names none of ours.

    Raises ConfigError for a name that is not one of png, jpeg, webp.
    """
    if name:
        wanted = "jpeg" if name == "jpg" else name
        check_one_of("format", wanted, MEDIA_TYPES)
        return wanted
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return next((name for part in named for name, media in MEDIA_TYPES.items() if media == part), "png")


def parse_quality(value: object) -> int:
    """The quality of JPEG and WebP, 1..100; 90 if it is left out. Raises ConfigError."""
    if value is None or value == "":
        return DEFAULT_QUALITY
    try:
        found = int(str(value))
    except ValueError as error:
        raise ConfigError(f"`quality`: {quoted(value)} is not an integer in 1..100") from error
    if not 1 <= found <= 100:
        raise ConfigError(f"`quality`: {quoted(found)} is not in 1..100")
    return found


def encode(pixels: NDArray[np.uint8], name: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """H x W x 3 RGB -> the bytes of a file. name: one of MEDIA_TYPES."""
    if name == "png":
        return encode_png(pixels)
    stream = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if name == "jpeg":
        image.save(stream, "JPEG", quality=quality)
    else:
        image.save(stream, "WEBP", quality=quality, method=2)
    return stream.getvalue()


def ids_png(values: NDArray[Any]) -> bytes:
    """Ids H x W -> a greyscale PNG that holds them: 8 bit, or 16 bit where one is above 255."""
    stream = BytesIO()
    wide = int(values.max()) > 255
    Image.fromarray(np.ascontiguousarray(values, np.uint16 if wide else np.uint8)).save(stream, "PNG")
    return stream.getvalue()
