"""The demo: the shipped Earth model exported, validated and run on label maps it never saw; then trained a little.

The gallery shows the shipped model. The training that follows begins with its weights and a new discriminator, in a run
of its own: it shows what training looks like, and is far too short to make a better model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from spade_deploy.errors import SpadeError
from spade_deploy.files.atomic import write_text
from spade_deploy.files.locks import locked
from spade_deploy.inference import InferRequest, infer
from spade_deploy.labels.earth import CREDITS, Tile, cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.pages import render as pages
from spade_deploy.progress import SILENT, Progress
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.shipped import save_shipped
from spade_deploy.training.config import Setup
from spade_deploy.training.device import choose_device
from spade_deploy.training.loop import train
from spade_deploy.training.presets import preset
from spade_deploy.training.records.plots import losses_svg
from spade_deploy.training.records.sample_grid import COLUMNS, grid_column, sample_grids
from spade_deploy.training.source import FolderSource
from spade_deploy.training.steps import Learner
from spade_deploy.validation.report import ValidationReport

FINE_TUNE_STEPS = 60
FINE_TUNE_S = 40.0
LEAST_STEPS = 12
"""The training takes FINE_TUNE_STEPS, or as many as fit into FINE_TUNE_S on a slower machine, but at least
LEAST_STEPS."""
PROBE_STEPS = 4
SHOWN = 24
"""How many held-out tiles the gallery shows, spread evenly over the test split."""


@dataclass(frozen=True)
class Demo:
    """What the demo made, and how long it took."""

    gallery: Path
    """The page with all results."""

    artifact: Path
    """The exported model's folder."""

    labels: Path
    """The folder of the label maps that were painted."""

    photos: Path
    """The folder of their images."""

    report: ValidationReport
    """The validation of the artifact."""

    seconds: float
    """How long all of it took."""

    training_seconds: float
    """How long the training took."""


def run_demo(
    out: Path,
    *,
    steps: int | None = None,
    progress: Progress = SILENT,
) -> Demo:
    """Run the demo in the folder `out`: runs/, labels/, photos/ and index.html. Each call makes new runs.

    steps: length of the fine-tuning; by default as many as fit into FINE_TUNE_S.
    """
    began = time.perf_counter()
    setup = preset("earth")
    run = new_run(out / "runs", prefix="earth")
    progress.step(f"the shipped model, trained on Earth, becomes a run: {run}")
    checkpoint = checkpoint_folder(run, 0)
    save_shipped(checkpoint, setup)
    exporting = ReleaseRequest(checkpoint, fp16=True, license="apache-2.0")
    made = export_checkpoint(exporting, runs_dir=out / "runs", progress=progress)
    tiles = _shown_tiles()
    labels, photos = out / "labels", out / "photos"
    for tile in tiles:
        ids, _ = cut(tile)
        labels.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(labels / f"{tile.stem}.png")
    progress.step(f"running the artifact on {len(tiles)} held-out label maps")
    summary = infer(made.artifact, InferRequest(labels, photos, overwrite=True))
    if summary.failures:
        raise SpadeError(f"{summary.failures[0].path}: {summary.failures[0].message}")
    tuned, count, training_seconds = _fine_tune(out, setup, steps, progress)
    gallery = out / "index.html"
    write_text(gallery, _gallery(tiles, photos, tuned, count, summary.runtime, summary.images_per_s, made.report))
    seconds = time.perf_counter() - began
    return Demo(gallery, made.artifact.path, labels, photos, made.report, seconds, training_seconds)


def _fine_tune(
    out: Path,
    setup: Setup,
    steps: int | None,
    progress: Progress,
) -> tuple[Path, int, float]:
    """Train the shipped model a little, in a run of its own. Returns the run, its steps, its seconds."""
    # The discriminator starts from nothing: at the preset's rates it would first undo what the generator knows.
    slower = replace(setup.train, lr_generator=1e-4, lr_discriminator=4e-4, init="earth", log_every=1)
    if steps is None:
        seconds_per_step = _probe(setup)
        steps = max(LEAST_STEPS, min(FINE_TUNE_STEPS, int(FINE_TUNE_S / seconds_per_step)))
        progress.step(f"a training step takes {seconds_per_step:.2f} s here: {steps} steps")
    run = new_run(out / "runs", prefix="fine-tuned")
    progress.step(f"training it {steps} steps further in {run}")
    every = max(1, steps // 3)
    with locked(run, "training this run"):
        trained = train(
            replace(setup, train=replace(slower, steps=steps, save_every=steps, sample_every=every)),
            run=run,
            progress=progress,
        )
    return run, trained.step, trained.seconds


def _probe(setup: Setup) -> float:
    """The seconds of a training step on this machine, without the first one, which allocates memory."""
    learner = Learner(setup, choose_device(setup.train.device))
    batches = FolderSource(setup).batches(
        batch_size=setup.train.batch_size, seed=0, start_step=0, workers=0, on_skip=lambda _: None
    )
    durations = []
    for _ in range(PROBE_STEPS):
        began = time.perf_counter()
        learner.step(next(batches), 1.0)
        durations.append(time.perf_counter() - began)
    batches.close()
    return median(durations[1:])


def _shown_tiles() -> list[Tile]:
    tiles = earth_tiles("test")
    return [tiles[int(index)] for index in np.linspace(0, len(tiles) - 1, SHOWN)]


def _gallery(
    tiles: list[Tile],
    photos: Path,
    run: Path,
    steps: int,
    runtime: str,
    images_per_s: float,
    report: ValidationReport,
) -> str:
    labels = earth_labels()
    rows, present = [], set[int]()
    for tile in tiles:
        ids, photo = cut(tile)
        present.update(int(value) for value in np.unique(ids))
        with Image.open(photos / f"{tile.stem}.png") as image:
            result = np.asarray(image.convert("RGB"))
        rows.append(
            [
                pages.picture(f"label map {tile.stem}", colorize(ids, labels), is_ids=True),
                pages.picture("result", result),
                pages.picture("real photo", photo),
            ]
        )
    verdicts = ", ".join(f"{found.name} {pages.decibel(found.diff.psnr_db)}" for found in report.results)
    return pages.render(
        "gallery.html.j2",
        title="Paint a continent, see it from space",
        lead="Land-cover maps at longitudes that the training never saw, the images that the exported model makes of"
        " them, and real satellite photos. The model comes with the package (docs/models/earth.md).",
        facts=[
            ("model", "earth, 128 x 128, 5.9 M parameters; docs/models/earth.md says how it was trained"),
            ("proof", f"ONNX compared with the untouched PyTorch module: {verdicts}"),
            ("runtime", f"{runtime}, {images_per_s:.1f} images/s"),
        ],
        legend=pages.legend(labels, effective_palette(labels), present),
        rows=rows,
        samples_lead=f"Held-out label maps after {steps} more training steps.",
        samples=_last_samples(run),
        plot_lead=f"Losses of these {steps} steps",
        plot=pages.drawing(losses_svg(run / "losses.csv")),
        credits=CREDITS,
    )


def _last_samples(run: Path) -> list[list[pages.Picture]]:
    """The pictures of the run's last sample grid, a row for each label map."""
    grids = sample_grids(run)
    if not grids:
        return []
    height, width = preset("earth").data.crop_size
    columns = [grid_column(grids[-1].path, column, height, width) for column in range(len(COLUMNS))]
    return [
        [pages.picture(name, image, is_ids=name == COLUMNS[0]) for name, image in zip(COLUMNS, row, strict=True)]
        for row in zip(*columns, strict=True)
    ]
