"""`spade animate`: make a GIF or MP4 of a run's sample grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.commands import output
from spade_deploy.commands.console import print_places, stdout
from spade_deploy.commands.options import CHECK, RunsFolder, command
from spade_deploy.settings import setting


@dataclass(frozen=True)
class AnimateRequest:
    """Which run is animated, and how."""

    run: Path | None = setting(None, help="A run; default: the one with the newest checkpoint.", argument=True)
    out: Path | None = setting(None, help="A .gif or .mp4 file; default: RUN/samples.gif.")
    fps: float | None = setting(None, help="Frames per second; default: about 8 s in all.")


@command("animate", panel=CHECK, requests=lambda: (AnimateRequest, RunsFolder))
def animate(asked: AnimateRequest, place: RunsFolder) -> None:
    """Make a GIF or MP4 of a run's sample grids, which shows how the images improve."""
    from spade_deploy.runs.folders import newest_checkpoint
    from spade_deploy.training.records.animation import animate as make_animation

    run = asked.run if asked.run is not None else newest_checkpoint(place.runs).parent.parent
    made = make_animation(run, asked.out if asked.out is not None else run / "samples.gif", asked.fps)
    output.report({"run": run, "frames": made.frames, "grids": made.grids, "frames_per_second": made.fps})
    stdout().print(f"{made.frames} of {made.grids} sample grids, {made.fps:.3g} per second")
    print_places(("animation", made.path))
