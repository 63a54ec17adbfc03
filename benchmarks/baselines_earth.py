"""SPADE beside the baselines of its paper on the Earth data: short trainings of the same processor time, in one report.

    python benchmarks/baselines_earth.py --extractor FEATURES.onnx [--seconds 60] [--size 64] [--work DIR]

Trains pix2pixHD, CRN, SIMS and SPADE with the preset earth on tiles of 64 x 64 pixels, each for as many steps as take
`--seconds` of processor time, and judges them on the test split as `spade eval` does. The trainings are far too short
to say which network is the best in the end: they show that all of them run through the same trainer and the same
judges. What the memory bank of SIMS takes is measured, too, and the time of a canvas. A training that is in DIR already
is not made again. Writes results/baselines-earth.json and docs/images/baselines-earth.png.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from earth_sheet import LABEL_MAP, REAL_PHOTO, judged, parser_of, print_figures, sheet
from PIL import Image
from printed import Printed

from spade_deploy.bench.machine import describe_machine
from spade_deploy.evaluation import EvalResult
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize
from spade_deploy.networks.build import count_parameters
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.bank_file import read_bank
from spade_deploy.retrieval.canvas import canvas_pixels, make_canvas
from spade_deploy.runs import checkpoint_folder, run_checkpoints
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.layout import BANK_FILE
from spade_deploy.spec import Architecture
from spade_deploy.training.config import Setup
from spade_deploy.training.device import choose_device
from spade_deploy.training.loop import train
from spade_deploy.training.presets import preset
from spade_deploy.training.source import FolderSource
from spade_deploy.training.steps import Learner

NETWORKS = (Architecture.PIX2PIXHD, Architecture.CRN, Architecture.SIMS, Architecture.SPADE)
SECONDS = 60.0
SIDE = 64
PROBE_STEPS = 5
PICTURES = 6
SHOWN_SIDE = 128


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "of the runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time, for each training")
    parser.add_argument("--size", type=int, default=SIDE, help="side of the tiles in pixels")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        trained = [trained_run(work / str(network), network, asked.seconds, asked.size) for network in NETWORKS]
        result = judged([work / str(network) for network in NETWORKS], asked, work, pictures=PICTURES)
        bank = read_bank(run_checkpoints(work / "sims")[-1] / BANK_FILE, earth_labels())
    value = {
        **result.to_json(),
        "trainings": trained,
        "memory_bank": measured(bank, asked.size),
        "machine": describe_machine(),
    }
    write_json(asked.out / "baselines-earth.json", value)
    picture(result, bank).save(asked.images / "baselines-earth.png")
    print_figures(result, (*result.references, *result.rows))


def trained_run(run: Path, network: Architecture, seconds: float, side: int) -> dict[str, Any]:
    """Train in a folder, unless that is done already. Returns what was trained, for how long."""
    setup = preset("earth", size=(side, side))
    setup = replace(setup, generator=setup.generator.with_architecture(network))
    record = run / "trained.json"
    done = run_checkpoints(run)
    if not done:
        step_s = seconds_per_step(setup)
        steps = max(2, round(seconds / step_s))
        print(f"{network}: {step_s:.3f} s of processor time a step, {steps} steps", flush=True)
        run.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        train(replace(setup, train=replace(setup.train, steps=steps, save_every=steps)), run=run, progress=Printed())
        write_json(record, {"steps": steps, "processor_s": time.process_time() - began})
        done = [checkpoint_folder(run, steps)]
    facts = json.loads(record.read_text(encoding="utf-8"))
    parameters = count_parameters(load_generator(done[-1]).module)
    return {"generator": str(network), **facts, "batch_size": setup.train.batch_size, "parameters": parameters}


def seconds_per_step(setup: Setup) -> float:
    """The processor time of a training step, its data included; without the first one, which allocates memory."""
    source = FolderSource(setup)
    learner = Learner(setup, choose_device(setup.train.device))
    if setup.generator.has_bank:
        bank = source.memory_bank(setup)
        learner.take_bank(bank)
        source = source.remembering(bank)
    batches = source.batches(batch_size=setup.train.batch_size, seed=0, start_step=0, workers=0, on_skip=lambda _: None)
    durations = []
    for _ in range(PROBE_STEPS):
        began = time.process_time()
        learner.step(next(batches), 1.0)
        durations.append(time.process_time() - began)
    batches.close()
    return median(durations[1:])


def measured(bank: MemoryBank, side: int) -> dict[str, Any]:
    """What a bank takes, and the processor time of the canvases of all tiles of the test split."""
    maps = [cut(tile)[0] for tile in earth_tiles("test", side, side // 2)]
    durations, holes = [], []
    for label in maps:
        began = time.process_time()
        canvas = make_canvas(bank, label)
        durations.append((time.process_time() - began) * 1000)
        holes.append(float(canvas[3].mean()))
    return {
        "segments": len(bank),
        "side_px": side,
        "photos": len(np.unique(bank.photo)),
        "memory_bytes": bank.nbytes,
        "canvases": len(maps),
        "canvas_ms": {"median": median(durations), "most": max(durations)},
        "share_of_holes": {"mean": math.fsum(holes) / len(holes), "most": max(holes)},
    }


def picture(result: EvalResult, bank: MemoryBank) -> Image.Image:
    """A row a tile: label map, the canvas of SIMS, the image of each network, photo."""
    rows = [
        (
            colorize(one.label, earth_labels()),
            canvas_pixels(make_canvas(bank, one.label)),
            *one.images.values(),
            one.photo,
        )
        for one in result.strips
    ]
    titles = (LABEL_MAP, "SIMS: canvas", *(str(network) for network in NETWORKS), REAL_PHOTO)
    return sheet(titles, rows, SHOWN_SIDE, sharp=2)


if __name__ == "__main__":
    main()
