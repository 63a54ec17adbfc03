"""A run's sample grids over time: one picture with a column a step, and an animation as GIF or MP4.

Everything is made of the PNG files in RUN/samples/, so it can be made again, of any run, at any time.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from spade_deploy.errors import CheckpointError, ConfigError, MissingDependencyError, NotFoundError, reason_of
from spade_deploy.fields import of_type
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import read_json
from spade_deploy.images.opened import opened
from spade_deploy.training.records.plots import GRID_GAP_PX, Pixels

GIF_BYTES = 5_000_000
GIF_FRAMES, MP4_FRAMES = 60, 600
"""A run with more sample grids shows every n-th, the first and the last among them."""
TIMELINE_STEPS = 8
_GIF_SIDE_PX, _MP4_SIDE_PX, _CELL_PX = 560, 1080, 160
_LEAST_WIDTH_PX = 240
_CAPTION_PX, _BAR_PX, _FONT_PX = 22, 4, 14
_SECONDS, _FPS_RANGE, _LAST_FRAME_S = 8.0, (2.0, 12.0), 2.0
_INK, _BAR, _PAPER = (40, 40, 40), (31, 119, 180), (255, 255, 255)
_COLUMNS = ("label map", "generated", "photo")


@dataclass(frozen=True)
class Grid:
    """A sample grid's file, and the step that it was made after."""

    step: int
    path: Path


@dataclass(frozen=True)
class Animation:
    """What was written: `frames` of the run's `grids`, at `fps` frames a second."""

    path: Path
    frames: int
    grids: int
    fps: float


def sample_grids(run: Path) -> list[Grid]:
    """The run's sample grids in the order of their steps."""
    found = []
    for path in (run / "samples").glob("step_*.png"):
        match = re.fullmatch(r"step_(\d+)", path.stem)
        if match:
            found.append(Grid(int(match[1]), path))
    return sorted(found, key=lambda grid: grid.step)


def animate(run: Path, target: Path, fps: float | None = None) -> Animation:
    """Write the samples as GIF or MP4, by the suffix of `target`. fps: of the run's length if left out.

    Raises ConfigError for another suffix, an impossible `fps` or a place that cannot be written; NotFoundError where
    the run has fewer than two grids; MissingDependencyError where MP4 is asked for without imageio-ffmpeg.
    """
    writers = {".gif": save_gif, ".mp4": save_mp4}
    suffix = target.suffix.lower()
    if suffix not in writers:
        raise ConfigError(f"--out: {target} is not .gif or .mp4", hint="spade animate RUN --out samples.mp4")
    if fps is not None and not 0.1 <= fps <= 60:
        raise ConfigError(f"--fps: {fps} is not in 0.1..60")
    if len(sample_grids(run)) < 2:
        raise NotFoundError(
            f"{run}: has {len(sample_grids(run))} sample grids (samples/step_*.png); an animation needs two",
            hint="train longer, or with a smaller --sample-every",
        )
    try:
        made = writers[suffix](run, target, fps)
    except OSError as error:
        raise ConfigError(f"--out: {target} cannot be written ({error})") from error
    if made is None:
        raise NotFoundError(
            f"{run}: its sample grids have other sizes than the last one; an animation needs two that are alike",
            hint="train on, or take grids of another size out of samples/",
        )
    return made


def save_gif(
    run: Path, target: Path | None = None, fps: float | None = None, max_bytes: int = GIF_BYTES
) -> Animation | None:
    """Write RUN/samples.gif, smaller until it has at most `max_bytes`. None where there are fewer than two grids."""
    target = target or run / "samples.gif"
    grids, chosen = _chosen(run, GIF_FRAMES)
    if len(chosen) < 2:
        return None
    fps = fps or _fps(len(chosen))
    side = float(_GIF_SIDE_PX)
    for _ in range(6):
        data = _gif(list(_frames(chosen, side)), fps)
        if len(data) <= max_bytes:
            break
        side *= 0.95 * (max_bytes / len(data)) ** 0.5
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)
    return Animation(target, len(chosen), len(grids), fps)


def save_mp4(run: Path, target: Path | None = None, fps: float | None = None) -> Animation | None:
    """Write RUN/samples.mp4 (H.264). None where there are fewer than two grids. Raises MissingDependencyError."""
    require_video()
    import imageio_ffmpeg

    target = target or run / "samples.mp4"
    grids, chosen = _chosen(run, MP4_FRAMES)
    if len(chosen) < 2:
        return None
    fps = fps or _fps(len(chosen))
    frames = [_even(np.asarray(frame)) for frame in _frames(chosen, _MP4_SIDE_PX)]
    frames += [frames[-1]] * round(_LAST_FRAME_S * fps)
    height, width = frames[0].shape[:2]
    with atomic_file(target) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return Animation(target, len(chosen), len(grids), fps)


def require_video() -> None:
    """Raises MissingDependencyError where MP4 files cannot be written."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingDependencyError(
            "imageio-ffmpeg is not installed; MP4 files need it",
            hint="pip install 'spade-deploy[video]', or write a .gif",
        )


def save_timeline(run: Path, target: Path | None = None) -> Path | None:
    """Write RUN/timeline.png: a row for each label map, and label map | up to eight steps | photo side by side.

    None where there are fewer than two grids. Raises CheckpointError where config.json does not tell the images' size.
    """
    _, chosen = _chosen(run, TIMELINE_STEPS)
    if len(chosen) < 2:
        return None
    height, width = _image_size(run)
    columns = [_column(chosen[-1].path, 0, height, width)]
    columns += [_column(grid.path, 1, height, width) for grid in chosen]
    columns += [_column(chosen[-1].path, 2, height, width)]
    titles = [_COLUMNS[0], *(f"step {grid.step}" for grid in chosen), _COLUMNS[2]]
    cell_width = _CELL_PX if width >= _CELL_PX else width * max(1, _CELL_PX // width)
    cell_height = max(1, round(height * cell_width / width))
    rows = len(columns[0])
    sheet = Image.new(
        "RGB",
        (len(columns) * (cell_width + GRID_GAP_PX) - GRID_GAP_PX, _CAPTION_PX + rows * (cell_height + GRID_GAP_PX)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for index, (title, images) in enumerate(zip(titles, columns, strict=True)):
        left = index * (cell_width + GRID_GAP_PX)
        _write(draw, (left + cell_width / 2, _CAPTION_PX / 2), title, "mm", cell_width)
        for row, image in enumerate(images):
            is_map = index == 0
            sheet.paste(
                _resized(image, (cell_width, cell_height), keep_colours=is_map),
                (left, _CAPTION_PX + row * (cell_height + GRID_GAP_PX)),
            )
    target = target or run / "timeline.png"
    with atomic_file(target) as temporary:
        sheet.save(temporary, format="PNG", compress_level=6)
    return target


def _chosen(run: Path, most: int) -> tuple[list[Grid], list[Grid]]:
    """All grids that are as large as the newest, and at most `most` of them, evenly spaced, both ends included."""
    grids = sample_grids(run)
    if not grids:
        return [], []
    sizes = [_size(grid.path) for grid in grids]
    # A resumed run may have been given other held-out samples: what is no picture of the same maps is left out.
    same = [grid for grid, size in zip(grids, sizes, strict=True) if size == sizes[-1]]
    places = np.unique(np.linspace(0, len(same) - 1, min(most, len(same))).round().astype(int))
    return same, [same[place] for place in places.tolist()]


def _size(path: Path) -> tuple[int, int]:
    with opened(path, "a sample grid") as image:
        return image.size


def _pixels(path: Path) -> Pixels:
    with opened(path, "a sample grid") as image:
        pixels: Pixels = np.asarray(image.convert("RGB"))
        return pixels


def _image_size(run: Path) -> tuple[int, int]:
    path = run / "config.json"
    try:
        spec = of_type(read_json(path).get("generator"), dict, "generator")
        height, width = (of_type(spec.get(side), int, f"generator: {side}") for side in ("height", "width"))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: does not tell the size of the run's images ({reason_of(error)})") from error
    return height, width


def _column(path: Path, column: int, height: int, width: int) -> list[Pixels]:
    """The images in one of the three columns of a grid. Raises CheckpointError where it is no grid of that size."""
    grid = _pixels(path)
    rows, rest = divmod(grid.shape[0] + GRID_GAP_PX, height + GRID_GAP_PX)
    if rest or grid.shape[1] != 3 * (width + GRID_GAP_PX) - GRID_GAP_PX:
        raise CheckpointError(
            f"{path}: {grid.shape[1]} x {grid.shape[0]} pixels are no grid of images of {width} x {height}"
        )
    left = column * (width + GRID_GAP_PX)
    tops = (row * (height + GRID_GAP_PX) for row in range(rows))
    return [grid[top : top + height, left : left + width] for top in tops]


def _fps(frames: int) -> float:
    return min(max(frames / _SECONDS, _FPS_RANGE[0]), _FPS_RANGE[1])


def _frames(grids: Sequence[Grid], side: float) -> Iterator[Image.Image]:
    """Captioned pictures, their longer side about `side` pixels: the columns' names, the grid, the step, a bar."""
    last = grids[-1].step
    for grid in grids:
        pixels = _pixels(grid.path)
        height, width = pixels.shape[:2]
        scale = min(1.0, side / max(height, width))
        if scale == 1.0 and width < _LEAST_WIDTH_PX <= side:  # room for the caption
            scale = float(-(-_LEAST_WIDTH_PX // width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = Image.new("RGB", (size[0], size[1] + 2 * _CAPTION_PX + _BAR_PX), _PAPER)
        frame.paste(_resized(pixels, size, keep_colours=scale > 1), (0, _CAPTION_PX))
        draw = ImageDraw.Draw(frame)
        for index, name in enumerate(_COLUMNS):
            _write(draw, ((2 * index + 1) * size[0] / 6, _CAPTION_PX / 2), name, "mm", size[0] / 3)
        foot = size[1] + _CAPTION_PX
        _write(draw, (size[0] / 2, foot + _CAPTION_PX / 2), f"step {grid.step} of {last}", "mm", size[0])
        share = grid.step / last if last else 1.0
        draw.rectangle((0, foot + _CAPTION_PX, round(share * size[0]) - 1, foot + _CAPTION_PX + _BAR_PX), fill=_BAR)
        yield frame


def _gif(frames: list[Image.Image], fps: float) -> bytes:
    """One palette for all frames: colours of their own would flicker, and make what stands still change."""
    tiles = [*frames[:: max(1, len(frames) // 6)][-6:], frames[-1]]
    montage = Image.new("RGB", (frames[0].width * len(tiles), frames[0].height))
    for index, tile in enumerate(tiles):
        montage.paste(tile, (index * tile.width, 0))
    # An octree: the median cut spends its colours on label maps and paper, and dithers the photos with stray dots.
    palette = montage.quantize(256, method=Image.Quantize.FASTOCTREE)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    durations = [round(1000 / fps)] * len(frames)
    durations[-1] += round(1000 * _LAST_FRAME_S)
    buffer = io.BytesIO()
    indexed[0].save(
        buffer, format="GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


def _resized(pixels: Pixels, size: tuple[int, int], *, keep_colours: bool) -> Image.Image:
    """size: width, height. Label maps keep their colours; photos are averaged."""
    method = Image.Resampling.NEAREST if keep_colours else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method)


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Padded with white to even sides: H.264 halves the resolution of colours."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def _write(draw: Any, place: tuple[float, float], text: str, anchor: str, room: float) -> None:
    """Text in the largest of a few sizes that fits into `room` pixels."""
    for size in (_FONT_PX, 12, 10, 8):
        font = ImageFont.load_default(size)
        if draw.textlength(text, font=font) <= room:
            break
    draw.text(place, text, fill=_INK, font=font, anchor=anchor)
