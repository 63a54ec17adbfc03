"""A run's sample grids over time as one picture: a row for each label map, and a column for each step."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from spade_deploy.errors import CheckpointError, ConfigError, reason_of
from spade_deploy.fields import of_type
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import read_json
from spade_deploy.training.records.sample_grid import (
    CAPTION_PX,
    COLUMNS,
    GRID_GAP_PX,
    PAPER,
    evenly_chosen,
    grid_column,
    resized,
    write_caption,
)

TIMELINE_STEPS = 8
_CELL_PX = 160


def save_timeline(run: Path, target: Path | None = None) -> Path | None:
    """Write RUN/timeline.png: a row for each label map, and label map | up to eight steps | photo side by side.

    Returns None for fewer than two grids. Raises CheckpointError if config.json does not hold the images' size.
    """
    _, chosen = evenly_chosen(run, TIMELINE_STEPS)
    if len(chosen) < 2:
        return None
    height, width = _image_size(run)
    columns = [grid_column(chosen[-1].path, 0, height, width)]
    columns += [grid_column(grid.path, 1, height, width) for grid in chosen]
    columns += [grid_column(chosen[-1].path, 2, height, width)]
    titles = [COLUMNS[0], *(f"step {grid.step}" for grid in chosen), COLUMNS[2]]
    cell_width = _CELL_PX if width >= _CELL_PX else width * max(1, _CELL_PX // width)
    cell_height = max(1, round(height * cell_width / width))
    rows = len(columns[0])
    sheet = Image.new(
        "RGB",
        (len(columns) * (cell_width + GRID_GAP_PX) - GRID_GAP_PX, CAPTION_PX + rows * (cell_height + GRID_GAP_PX)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for index, (title, images) in enumerate(zip(titles, columns, strict=True)):
        left = index * (cell_width + GRID_GAP_PX)
        write_caption(draw, (left + cell_width / 2, CAPTION_PX / 2), title, "mm", cell_width)
        for row, image in enumerate(images):
            is_map = index == 0
            sheet.paste(
                resized(image, (cell_width, cell_height), keep_colours=is_map),
                (left, CAPTION_PX + row * (cell_height + GRID_GAP_PX)),
            )
    target = target or run / "timeline.png"
    with atomic_file(target) as temporary:
        sheet.save(temporary, format="PNG", compress_level=6)
    return target


def _image_size(run: Path) -> tuple[int, int]:
    path = run / "config.json"
    try:
        spec = of_type(read_json(path).get("generator"), dict, "generator")
        height, width = (of_type(spec.get(side), int, f"generator: {side}") for side in ("height", "width"))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: does not tell the size of the run's images ({reason_of(error)})") from error
    return height, width
