"""How good the shipped Earth model is: against real tiles that it never saw, and against a short training.

    python benchmarks/shipped_model.py --extractor FEATURES.onnx [--work DIR]

Trains the preset earth for a short time, then judges it and the shipped model on the test split as `spade eval` does:
Frechet and kernel distance over the extractor's features, segmentation consistency with a segmenter that is trained on
the real tiles of the training split. Writes results/earth-model.json and docs/images/earth-model.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from printed import Printed

from spade_deploy.bench.machine import describe_machine
from spade_deploy.evaluation import EvalRequest, EvalResult, evaluate
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import earth_labels
from spade_deploy.labels.files import colorize
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.shipped import SHIPPED_FOLDER, save_shipped
from spade_deploy.training.loop import train
from spade_deploy.training.presets import preset

ROOT = Path(__file__).resolve().parents[1]
SHORT_STEPS = 240
SHIPPED, SHORT = "shipped", "short"
COLUMNS = ("label map", f"{SHORT_STEPS} steps", "shipped model", "real photo")
PICTURES = 8
GAP_PX, HEAD_PX, SCALE = 6, 26, 1.5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", type=Path, help="an ONNX feature extractor; without one there is no distance")
    parser.add_argument("--steps", type=int, default=SHORT_STEPS, help="of the short training")
    parser.add_argument("--segmenter-steps", type=int, default=None)
    parser.add_argument("--samples", type=int, default=None, help="tiles of the test split; all if left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the picture")
    parser.add_argument("--work", type=Path, help="folder of the runs; a temporary one if left out")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        result = judged(work, asked)
    value = {**result.to_json(), "short_steps": asked.steps, "weights_bytes": weights_bytes()}
    write_json(asked.out / "earth-model.json", {**value, "machine": describe_machine()})
    picture(result).save(asked.images / "earth-model.png")
    for row in (*result.references, *result.rows):
        figures = {name: row.figure(name) for name in result.measured()}
        print(row.name, {name: round(value, 4) for name, value in figures.items() if value is not None})


def judged(work: Path, asked: argparse.Namespace) -> EvalResult:
    setup = preset("earth")
    shipped = checkpoint_folder(work / SHIPPED, 0)
    save_shipped(shipped, setup)
    short = checkpoint_folder(work / SHORT, asked.steps)
    if not short.exists():
        (work / SHORT).mkdir(parents=True, exist_ok=True)
        train(replace(setup, train=replace(setup.train, steps=asked.steps, save_every=asked.steps)), run=work / SHORT)
    request = EvalRequest(
        models=(work / SHIPPED, work / SHORT),
        samples=asked.samples,
        extractor=asked.extractor,
        train_segmenter=True,
        segmenter_steps=asked.segmenter_steps,
        pictures=PICTURES,
    )
    return evaluate(request, runs_dir=work, progress=Printed())


def weights_bytes() -> int:
    return sum(path.stat().st_size for path in SHIPPED_FOLDER.glob("*.safetensors"))


def picture(result: EvalResult) -> Image.Image:
    """A row a tile: label map, short training, shipped model, photo."""
    strips = list(result.strips)
    size = round(result.strips[0].photo.shape[0] * SCALE)
    width = len(COLUMNS) * (size + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, HEAD_PX + len(strips) * (size + GAP_PX) - GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(COLUMNS):
        draw.text((column * (size + GAP_PX) + 2, 6), text, fill="black", font_size=14)
    for row, strip in enumerate(strips):
        colours = colorize(strip.label, earth_labels())
        shipped, short = strip.images.values()  # in the order of the request
        for column, pixels in enumerate((colours, short, shipped, strip.photo)):
            resample = Image.Resampling.NEAREST if column == 0 else Image.Resampling.BICUBIC
            image = Image.fromarray(np.asarray(pixels, np.uint8)).resize((size, size), resample)
            sheet.paste(image, (column * (size + GAP_PX), HEAD_PX + row * (size + GAP_PX)))
    return sheet


if __name__ == "__main__":
    main()
