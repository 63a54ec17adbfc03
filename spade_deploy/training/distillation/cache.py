"""The teacher's images of a run, kept as PNG files, so that each is made once.

A file is named by the digest of its label map and instance map, so that it never stands for another map: not even
where the data changed. It also has a digest of this name and of its pixels, so that another image that came into its
place is noticed, and made again. All images are rounded to 8 bits, those just made too: a resumed run sees what an
unbroken one saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spade_deploy.errors import LabelMapError
from spade_deploy.images.opened import opened
from spade_deploy.labels.files import save_pixels
from spade_deploy.training.dataset import Batch

_DIGEST = "digest"
"""The name of a file's text that says which map and which pixels it was written for."""


class ImageCache:
    """Images by their label maps, in a folder that is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def images(self, batch: Batch, make: Callable[[list[int]], Tensor]) -> Tensor:
        """The image of every label map of a batch, N x 3 x H x W in [-1, 1], float32 on the CPU.

        make: makes the images of some rows of the batch, for those that are not kept yet.
        """
        keys = _keys(batch)
        paths = [self._folder / key[:2] / f"{key[2:]}.png" for key in keys]
        found = [_read(path, key) for path, key in zip(paths, keys, strict=True)]
        missing = [row for row, pixels in enumerate(found) if pixels is None]
        if missing:
            for row, pixels in zip(missing, _to_bytes(make(missing)), strict=True):
                paths[row].parent.mkdir(parents=True, exist_ok=True)
                save_pixels(paths[row], pixels, told={_DIGEST: _digest(keys[row], pixels)})
                found[row] = pixels
        whole = np.stack([pixels for pixels in found if pixels is not None])
        return torch.from_numpy(whole).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _keys(batch: Batch) -> list[str]:
    """The digest of each label map, with its instance map where there is one."""
    keys = []
    for row, label in enumerate(batch.label):
        digest = hashlib.sha256(f"{tuple(label.shape)} {label.dtype}".encode())
        digest.update(np.ascontiguousarray(label.numpy()).tobytes())
        if batch.instance is not None:
            digest.update(np.ascontiguousarray(batch.instance[row].numpy()).tobytes())
        keys.append(digest.hexdigest())
    return keys


def _digest(key: str, pixels: NDArray[np.uint8]) -> str:
    """What a file has to have: it belongs to the map with this key and to pixels of this size."""
    return hashlib.sha256(f"{key} {pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _to_bytes(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = ((image.cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return pixels


def _read(path: Path, key: str) -> NDArray[np.uint8] | None:
    """A kept image; None if there is none, it is damaged, or it is another one than was kept: it is made again."""
    if not path.is_file():
        return None
    try:
        with opened(path, "a teacher's image") as image:
            told, pixels = image.info.get(_DIGEST), np.asarray(image.convert("RGB"))
    except LabelMapError:
        return None
    return pixels if told == _digest(key, pixels) else None
