"""The demo: a short training, export, validation, photos of held-out label maps, and one page that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from spade_deploy import pages
from spade_deploy.atomic import write_text
from spade_deploy.data.earth import Tile, cut, earth_labels, earth_tiles
from spade_deploy.errors import SpadeError
from spade_deploy.inference import infer
from spade_deploy.label_map import colorize, effective_palette
from spade_deploy.release import release
from spade_deploy.runs import new_run
from spade_deploy.spec import Precision
from spade_deploy.training.config import Setup, preset
from spade_deploy.training.loop import FolderSource, Progress, choose_device, train
from spade_deploy.training.steps import Learner
from spade_deploy.validation import ValidationReport

DEMO_STEPS = 240
DEMO_TRAINING_S = 120.0
LEAST_STEPS = 60
"""The training takes DEMO_STEPS steps, or as many as fit into DEMO_TRAINING_S on a slower machine, at least these."""
PROBE_STEPS = 4
SHOWN = 24
"""Held-out tiles in the gallery, spread evenly over the test split."""


@dataclass(frozen=True)
class Demo:
    """Where everything is, and how long it took."""

    gallery: Path
    artifact: Path
    labels: Path
    photos: Path
    report: ValidationReport
    seconds: float
    training_seconds: float


def run_demo(
    out: Path,
    *,
    steps: int | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    on_training: Callable[[Progress], None] = lambda _: None,
) -> Demo:
    """Everything in the folder `out`: runs/, labels/, photos/ and index.html. Each call trains a run of its own."""
    began = time.perf_counter()
    setup = preset("earth")
    if steps is None:
        seconds_per_step = _probe(setup)
        steps = max(LEAST_STEPS, min(DEMO_STEPS, int(DEMO_TRAINING_S / seconds_per_step)))
        on_step(f"a training step takes {seconds_per_step:.2f} s here: {steps} steps")
    setup = replace(setup, train=replace(setup.train, steps=steps, save_every=steps, sample_every=max(1, steps // 3)))
    run = new_run(out / "runs", prefix="demo")
    on_step(f"training {steps} steps in {run}")
    trained = train(setup, run=run, on_progress=on_training)
    made = release(
        trained.checkpoint,
        runs_dir=out / "runs",
        precisions=[Precision.FP32, Precision.FP16],
        on_step=on_step,
    )
    tiles = _shown_tiles()
    labels, photos = out / "labels", out / "photos"
    for tile in tiles:
        ids, _ = cut(tile)
        labels.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(labels / f"{tile.stem}.png")
    on_step(f"running the artifact on {len(tiles)} held-out label maps")
    summary = infer(made.artifact, labels, photos, overwrite=True)
    if summary.failures:
        raise SpadeError(f"{summary.failures[0].path}: {summary.failures[0].message}")
    gallery = out / "index.html"
    write_text(gallery, _gallery(tiles, photos, run, steps, summary.runtime, summary.images_per_s, made.report))
    seconds = time.perf_counter() - began
    return Demo(gallery, made.artifact.path, labels, photos, made.report, seconds, trained.seconds)


def _probe(setup: Setup) -> float:
    """Seconds a training step takes on this machine; the first, which allocates, left out."""
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
        lead="Land-cover maps of longitudes that the training never saw, what the exported model makes of them, and"
        " what a satellite saw. The model learned for about two minutes: longer training looks better.",
        facts=[
            ("training", f"{steps} steps of the preset earth, on this machine"),
            ("proof", f"ONNX against the untouched PyTorch module: {verdicts}"),
            ("runtime", f"{runtime}, {images_per_s:.1f} images/s"),
        ],
        legend=pages.legend(labels, effective_palette(labels), present),
        rows=rows,
        figures=[
            pages.picture_file(caption, path)
            for caption, path in (("losses", run / "losses.png"), ("samples", _last_sample(run)))
            if path is not None and path.is_file()
        ],
        credits="Imagery: NASA Earth Observatory, Blue Marble Next Generation."
        " Land cover: NASA LP DAAC, MCD12C1 v006 (IGBP).",
    )


def _last_sample(run: Path) -> Path | None:
    return max((run / "samples").glob("*.png"), default=None)
