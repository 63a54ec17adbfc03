"""A small data set of one's own: label maps of regions, and photos painted from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.spec import LabelSpec

COLORS = np.array([[90, 160, 70], [60, 110, 200], [200, 180, 120], [120, 120, 125], [10, 10, 10]], np.uint8)


def write_own_photos(
    root: Path, count: int, *, classes: int = 4, size: tuple[int, int] = (48, 64), names: str = "photo", seed: int = 0
) -> tuple[Path, Path]:
    """Write `count` label maps to root/labels and their photos, colours with noise, to root/images."""
    labels, images = root / "labels", root / "images"
    labels.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    ids, _ = synthetic_label_maps(LabelSpec(classes), *size, count, seed)
    noise = np.random.default_rng(seed).integers(0, 30, (count, *size, 3), np.uint8)
    for number in range(count):
        Image.fromarray(ids[number]).save(labels / f"{names}{number:03d}.png")
        Image.fromarray(COLORS[ids[number]] + noise[number]).save(images / f"{names}{number:03d}.png")
    return labels, images
