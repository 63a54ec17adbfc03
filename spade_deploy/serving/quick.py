"""What takes about a millisecond at most: it is done where it is, as another thread would cost as much again."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.images.image_file import ImageBytes
from spade_deploy.serving.maps import Asked, MapSource
from spade_deploy.serving.models import ServedModel

QUICK_BYTES = 1 << 16
"""A body of so many bytes is read quickly."""
QUICK_PIXELS = 1 << 16
"""A map of so many pixels is decoded quickly, and an image encoded."""
_QUICK_FORMATS = ("png", "jpeg")
_PNG_SIZE = struct.Struct(">8s8xII")  # the signature, the head of the chunk IHDR, width and height


def decodes_quickly(model: ServedModel, asked: Asked) -> bool:
    """Whether the maps of a request are small, before and after they are brought to size, and there is no photo."""
    height, width = asked.size or (model.spec.height, model.spec.width)
    is_small = asked.keep_size or height * width <= QUICK_PIXELS
    return asked.photo is None and is_small and all(_is_small(one) for one in (asked.label, asked.instance) if one)


def encodes_quickly(pixels: NDArray[np.uint8], name: str) -> bool:
    """Whether an image, H x W x 3, is small, and its format not one that takes long."""
    return name in _QUICK_FORMATS and pixels.shape[0] * pixels.shape[1] <= QUICK_PIXELS


def _is_small(source: MapSource) -> bool:
    if not isinstance(source, ImageBytes):
        return 0 < source.height * source.width <= QUICK_PIXELS
    content: Any = source.content
    if not _PNG_SIZE.size <= len(content) <= QUICK_BYTES:
        return False
    signature, width, height = _PNG_SIZE.unpack_from(content)
    return bool(signature == b"\x89PNG\r\n\x1a\n" and width * height <= QUICK_PIXELS)
