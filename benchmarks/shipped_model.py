"""How good the shipped Earth model is: against real tiles that it never saw, and against a short training.

    python benchmarks/shipped_model.py --extractor FEATURES.onnx [--work DIR]

Trains the preset earth for a short time, then judges it and the shipped model on the test split as `spade eval` does:
Frechet and kernel distance over the extractor's features, segmentation consistency with a segmenter that is trained on
the real tiles of the training split. Writes results/earth-model.json and docs/images/earth-model.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earth_sheet import LABEL_MAP, REAL_PHOTO, judged, parser_of, print_figures, sheet
from PIL import Image

from spade_deploy.bench.machine import describe_machine
from spade_deploy.evaluation import EvalResult
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import earth_labels
from spade_deploy.labels.files import colorize
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.shipped import SHIPPED_FOLDER, save_shipped
from spade_deploy.training.loop import train
from spade_deploy.training.presets import preset

SHORT_STEPS = 240
SHIPPED, SHORT = "shipped", "short"
COLUMNS = (LABEL_MAP, f"{SHORT_STEPS} steps", "shipped model", REAL_PHOTO)
PICTURES = 8
SCALE = 1.5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "of the runs")
    parser.add_argument("--steps", type=int, default=SHORT_STEPS, help="of the short training")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        result = judged(runs(work, asked.steps), asked, work, pictures=PICTURES)
    value = {**result.to_json(), "short_steps": asked.steps, "weights_bytes": weights_bytes()}
    write_json(asked.out / "earth-model.json", {**value, "machine": describe_machine()})
    picture(result).save(asked.images / "earth-model.png")
    print_figures(result, (*result.references, *result.rows))


def runs(work: Path, steps: int) -> list[Path]:
    """The run of the shipped model, and that of a short training, which is kept if it is there."""
    setup = preset("earth")
    shipped = checkpoint_folder(work / SHIPPED, 0)
    save_shipped(shipped, setup)
    short = checkpoint_folder(work / SHORT, steps)
    if not short.exists():
        (work / SHORT).mkdir(parents=True, exist_ok=True)
        train(replace(setup, train=replace(setup.train, steps=steps, save_every=steps)), run=work / SHORT)
    return [work / SHIPPED, work / SHORT]


def weights_bytes() -> int:
    return sum(path.stat().st_size for path in SHIPPED_FOLDER.glob("*.safetensors"))


def picture(result: EvalResult) -> Image.Image:
    """A row a tile: label map, short training, shipped model, photo."""
    rows = []
    for strip in result.strips:
        shipped, short = strip.images.values()  # in the order of the request
        rows.append((colorize(strip.label, earth_labels()), short, shipped, strip.photo))
    return sheet(COLUMNS, rows, round(result.strips[0].photo.shape[0] * SCALE))


if __name__ == "__main__":
    main()
