"""The sample grids of a run: one row for each label map, label map | generated | photo, a PNG file for each step.

RUN/samples/step_00000100.png is the grid after step 100. Timelines and animations are made of these files alone, so
they can be made again, of any run, at any time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from spade_deploy.errors import CheckpointError
from spade_deploy.images.opened import opened
from spade_deploy.labels.files import colorize
from spade_deploy.spec import LabelSpec

Pixels = NDArray[np.uint8]

COLUMNS = ("label map", "generated", "photo")
GRID_GAP_PX = 4
CAPTION_PX = 22
INK, PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZES_PX = (14, 12, 10, 8)


@dataclass(frozen=True)
class Grid:
    """A sample grid on disk."""

    step: int
    """The step that it was made after."""

    path: Path
    """The file."""


def sample_grid(labels: LabelSpec, label: NDArray[Any], generated: Pixels, photo: Pixels) -> Pixels:
    """One row for each sample: label map in its colours | generated | photo.

    label: N x H x W; generated, photo: N x H x W x 3. GRID_GAP_PX white pixels lie between the images.
    """
    colours = colorize(label, labels)
    height, width = label.shape[1:]
    tall, wide = height + GRID_GAP_PX, width + GRID_GAP_PX
    grid = np.full((len(label) * tall - GRID_GAP_PX, 3 * wide - GRID_GAP_PX, 3), 255, np.uint8)
    for row, images in enumerate(zip(colours, generated, photo, strict=True)):
        for column, image in enumerate(images):
            top, left = row * tall, column * wide
            grid[top : top + height, left : left + width] = image
    return grid


def sample_path(run: Path, step: int) -> Path:
    """The file of a step's grid."""
    return run / "samples" / f"step_{step:08d}.png"


def sample_grids(run: Path) -> list[Grid]:
    """The run's sample grids in the order of their steps."""
    found = []
    for path in (run / "samples").glob("step_*.png"):
        match = re.fullmatch(r"step_(\d+)", path.stem)
        if match:
            found.append(Grid(int(match[1]), path))
    return sorted(found, key=lambda grid: grid.step)


def evenly_chosen(run: Path, most: int) -> tuple[list[Grid], list[Grid]]:
    """All grids that are as large as the newest, and at most `most` of them, evenly spaced, both ends included."""
    grids = sample_grids(run)
    if not grids:
        return [], []
    sizes = [_size(grid.path) for grid in grids]
    # A resumed run may have other held-out samples: grids of another size show other label maps, and are left out.
    same = [grid for grid, size in zip(grids, sizes, strict=True) if size == sizes[-1]]
    places = np.unique(np.linspace(0, len(same) - 1, min(most, len(same))).round().astype(int))
    return same, [same[place] for place in places.tolist()]


def _size(path: Path) -> tuple[int, int]:
    with opened(path, "a sample grid") as image:
        return image.size


def grid_pixels(path: Path) -> Pixels:
    """The pixels of a grid, H x W x 3."""
    with opened(path, "a sample grid") as image:
        pixels: Pixels = np.asarray(image.convert("RGB"))
        return pixels


def grid_column(path: Path, column: int, height: int, width: int) -> list[Pixels]:
    """The images in one of the three columns of a grid. Raises CheckpointError where it is no grid of that size."""
    grid = grid_pixels(path)
    rows, rest = divmod(grid.shape[0] + GRID_GAP_PX, height + GRID_GAP_PX)
    if rest or grid.shape[1] != 3 * (width + GRID_GAP_PX) - GRID_GAP_PX:
        raise CheckpointError(
            f"{path}: {grid.shape[1]} x {grid.shape[0]} pixels are no grid of images of {width} x {height}"
        )
    left = column * (width + GRID_GAP_PX)
    tops = (row * (height + GRID_GAP_PX) for row in range(rows))
    return [grid[top : top + height, left : left + width] for top in tops]


def resized(pixels: Pixels, size: tuple[int, int], *, keep_colours: bool) -> Image.Image:
    """Pixels at another size (width, height). With `keep_colours`, as for label maps, no colours are mixed."""
    method = Image.Resampling.NEAREST if keep_colours else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method)


def write_caption(draw: Any, place: tuple[float, float], text: str, anchor: str, room: float) -> None:
    """Write text in the largest of a few sizes that fits into `room` pixels, or in the smallest size if none fits."""
    for size in _FONT_SIZES_PX:
        font = ImageFont.load_default(size)
        if draw.textlength(text, font=font) <= room:
            break
    draw.text(place, text, fill=INK, font=font, anchor=anchor)
