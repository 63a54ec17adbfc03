"""The README's picture, from the folder that `spade demo` wrote.

usage: python scripts/make_readme_picture.py demo docs/images/demo.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize, save_pixels

SHOWN = ("0006", "0022", "0029", "0032", "0052", "0058")
GAP_PX = 6


def row(stem: str, photos: Path) -> np.ndarray:
    """Label map, result and photo beside each other."""
    ids, photo = cut(next(tile for tile in earth_tiles("test") if tile.stem == stem))
    with Image.open(photos / f"{stem}.png") as image:
        result = np.asarray(image.convert("RGB"))
    gap = np.full((ids.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([colorize(ids, earth_labels()), gap, result, gap, photo], axis=1)


def main() -> None:
    """Two columns of rows."""
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [row(stem, demo / "photos") for stem in SHOWN]
    lines = []
    for left, right in zip(rows[::2], rows[1::2], strict=True):
        lines += [np.concatenate([left, np.full((left.shape[0], 4 * GAP_PX, 3), 255, np.uint8), right], axis=1)]
        lines += [np.full((GAP_PX, lines[0].shape[1], 3), 255, np.uint8)]
    save_pixels(out, np.concatenate(lines[:-1]), compress_level=9)


if __name__ == "__main__":
    main()
