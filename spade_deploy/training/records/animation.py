"""A run's sample grids over time as an animation, GIF or MP4."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from spade_deploy.errors import ConfigError, MissingDependencyError, NotFoundError, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.settings import check_range
from spade_deploy.training.records.sample_grid import (
    CAPTION_PX,
    COLUMNS,
    PAPER,
    Grid,
    evenly_chosen,
    grid_pixels,
    resized,
    sample_grids,
    write_caption,
)

GIF_BYTES = 5_000_000
GIF_FRAMES, MP4_FRAMES = 60, 600
"""The most frames of a GIF and of an MP4. Of more sample grids, evenly spaced ones are shown, the first and the last
included."""
_GIF_SIDE_PX, _MP4_SIDE_PX = 560, 1080
_LEAST_WIDTH_PX = 240
_BAR_PX, _BAR = 4, (31, 119, 180)
_SECONDS, _FPS_RANGE, _LAST_FRAME_S = 8.0, (2.0, 12.0), 2.0


@dataclass(frozen=True)
class Animation:
    """An animation that was written."""

    path: Path
    """The file."""

    frames: int
    """How many of the run's sample grids it shows."""

    grids: int
    """How many sample grids the run has that are as large as its newest."""

    fps: float
    """Frames a second."""


def animate(run: Path, out: Path, fps: float | None = None) -> Animation:
    """Write the samples as GIF or MP4, by the suffix of `out`. fps: follows from the number of frames if left out.

    Raises ConfigError for another suffix, an impossible `fps` or a place that cannot be written; NotFoundError where
    the run has fewer than two grids; MissingDependencyError where MP4 is asked for without imageio-ffmpeg.
    """
    writers = {".gif": save_gif, ".mp4": save_mp4}
    suffix = out.suffix.lower()
    if suffix not in writers:
        raise ConfigError(f"`out`: {out} is not .gif or .mp4", hint="spade animate RUN --out samples.mp4")
    if fps is not None:
        check_range("fps", fps, 0.1, 60)
    if not run.is_dir():
        raise NotFoundError(f"{run}: does not exist", hint="check the path of the run")
    if len(grids := sample_grids(run)) < 2:
        there = "one sample grid" if grids else "no sample grids"
        raise NotFoundError(
            f"{run}: has {there} (samples/step_*.png); an animation needs two",
            hint="train longer, or with a smaller N in `spade train --sample-every N`",
        )
    try:
        made = writers[suffix](run, out, fps)
    except OSError as error:
        raise ConfigError(f"`out`: {out} cannot be written ({reason_of(error)})") from error
    if made is None:
        raise NotFoundError(
            f"{run}: its sample grids have other sizes than the last one; an animation needs two that are alike",
            hint="train on, or take grids of another size out of samples/",
        )
    return made


def save_gif(
    run: Path, target: Path | None = None, fps: float | None = None, max_bytes: int = GIF_BYTES
) -> Animation | None:
    """Write RUN/samples.gif, and make it smaller until it has at most `max_bytes`. None for fewer than two grids."""
    target = target or run / "samples.gif"
    grids, chosen = evenly_chosen(run, GIF_FRAMES)
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
    grids, chosen = evenly_chosen(run, MP4_FRAMES)
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
    """Raise MissingDependencyError if MP4 files cannot be written."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingDependencyError(
            "imageio-ffmpeg is not installed; MP4 files need it",
            hint="pip install 'spade-deploy[video]', or write a .gif",
        )


def _fps(frames: int) -> float:
    return min(max(frames / _SECONDS, _FPS_RANGE[0]), _FPS_RANGE[1])


def _frames(grids: Sequence[Grid], side: float) -> Iterator[Image.Image]:
    """A picture for each grid, its longer side about `side` pixels: the columns' names, the grid, the step, a bar."""
    last = grids[-1].step
    for grid in grids:
        pixels = grid_pixels(grid.path)
        height, width = pixels.shape[:2]
        scale = min(1.0, side / max(height, width))
        if scale == 1.0 and width < _LEAST_WIDTH_PX <= side:  # room for the caption
            scale = float(-(-_LEAST_WIDTH_PX // width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = Image.new("RGB", (size[0], size[1] + 2 * CAPTION_PX + _BAR_PX), PAPER)
        frame.paste(resized(pixels, size, keep_colours=scale > 1), (0, CAPTION_PX))
        draw = ImageDraw.Draw(frame)
        for index, name in enumerate(COLUMNS):
            write_caption(draw, ((2 * index + 1) * size[0] / 6, CAPTION_PX / 2), name, "mm", size[0] / 3)
        foot = size[1] + CAPTION_PX
        write_caption(draw, (size[0] / 2, foot + CAPTION_PX / 2), f"step {grid.step} of {last}", "mm", size[0])
        share = grid.step / last if last else 1.0
        draw.rectangle((0, foot + CAPTION_PX, round(share * size[0]) - 1, foot + CAPTION_PX + _BAR_PX), fill=_BAR)
        yield frame


def _gif(frames: list[Image.Image], fps: float) -> bytes:
    """The GIF's bytes. All frames share one palette: with palettes of their own, what stands still would flicker."""
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


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels padded with white to even sides, which H.264 needs: it halves the resolution of colours."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
