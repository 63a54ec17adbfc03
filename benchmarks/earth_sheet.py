"""What the benchmarks of the Earth model share: options, judges, and a picture with a row of images for each tile."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import RESULTS, ROOT
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from printed import Printed

from spade_deploy.evaluation import EvalRequest, EvalResult, evaluate
from spade_deploy.evaluation.row import Row

Pixels = NDArray[np.uint8]

GAP_PX, HEAD_PX = 6, 26
LABEL_MAP, REAL_PHOTO = "label map", "real photo"


def parser_of(about: str | None, work: str) -> argparse.ArgumentParser:
    """The options of every benchmark that judges models of the Earth. about: its docstring; work: what --work keeps."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractor", type=Path, help="an ONNX feature extractor; without one there is no distance")
    parser.add_argument("--samples", type=int, default=None, help="tiles of the test split; all if left out")
    parser.add_argument("--segmenter-steps", type=int, default=None)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument("--work", type=Path, help=f"folder {work}; a temporary one if left out")
    return parser


def judged(models: Sequence[Path], asked: argparse.Namespace, work: Path, **more: Any) -> EvalResult:
    """Models as `spade eval` judges them on the test split, with the options of `parser_of`.

    work: the folder of the segmenter, which learns from real tiles. more: other fields of `EvalRequest`.
    """
    request = EvalRequest(
        **{"train_segmenter": True, **more},
        models=tuple(models),
        samples=asked.samples,
        extractor=asked.extractor,
        segmenter_steps=asked.segmenter_steps,
    )
    return evaluate(request, runs_dir=work, progress=Printed())


def print_figures(result: EvalResult, rows: Iterable[Row]) -> None:
    """The figures of models or of real photos, a line each."""
    for row in rows:
        figures = {name: row.figure(name) for name in result.measured()}
        print(row.name, {name: round(value, 4) for name, value in figures.items() if value is not None})


def sheet(titles: Sequence[str], rows: Iterable[Sequence[Pixels]], side: int, *, sharp: int = 1) -> Image.Image:
    """Images under titles, a row a tile. rows: as many images as titles, H x W x 3 uint8, the label map first.

    side: the pixels of an image on the sheet. sharp: how many columns are enlarged without smoothing.
    """
    rows = list(rows)
    step = side + GAP_PX
    found = Image.new("RGB", (len(titles) * step - GAP_PX, HEAD_PX + len(rows) * step - GAP_PX), "white")
    draw = ImageDraw.Draw(found)
    for column, text in enumerate(titles):
        draw.text((column * step + 2, 6), text, fill="black", font_size=13)
    for row, shown in enumerate(rows):
        for column, pixels in enumerate(shown):
            resample = Image.Resampling.NEAREST if column < sharp else Image.Resampling.BICUBIC
            image = Image.fromarray(np.asarray(pixels, np.uint8)).resize((side, side), resample)
            found.paste(image, (column * step, HEAD_PX + row * step))
    return found
