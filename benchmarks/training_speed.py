"""A training step beside a plain implementation of the 2019 loop, and the loading of its data.

All candidates live in one process and take turns: in a round each of them makes one step on the same batch, and the
order rotates and turns round. Before anything is timed, the losses of the first step are compared: all candidates begin
with the same weights, so their losses must agree up to rounding. The perceptual loss runs on a VGG19 of random weights,
and ADE20K's label maps are the COCO-Stuff samples, or made up where those are missing: no time depends on values, but
that of the lookup on the shapes in the label maps.

    python benchmarks/training_speed.py [--preset ade20k] [--rounds 5] [--out FOLDER] [--device cuda] [--batch-size 8]

On a GPU the result's name ends with the card's.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from models import DATA, RESULTS, coco_maps, resized, synthetic_maps
from PIL import Image
from plain_loop import PlainLoop

from spade_deploy.artifact import LABEL
from spade_deploy.bench.machine import describe_machine
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.memory import busy_seconds
from spade_deploy.networks.modulation import TrainingLookup
from spade_deploy.networks.spade import initialize
from spade_deploy.spec import DiscriminatorSpec, LabelSpec
from spade_deploy.training.config import Amp, Modulation, Setup
from spade_deploy.training.dataset import Batch, SampleSource, training_batches
from spade_deploy.training.perceptual import VggFeatures
from spade_deploy.training.presets import preset
from spade_deploy.training.splits import open_source
from spade_deploy.training.steps import Learner
from spade_deploy.tuning.timing import in_turn

PLAIN = "plain loop of 2019"
GOAL = 1.5
OURS = {
    "fp32": (Amp.OFF, Modulation.DENSE),
    "fp32, lookup": (Amp.OFF, Modulation.LOOKUP),
    "bf16": (Amp.BF16, Modulation.DENSE),
    "bf16, lookup": (Amp.BF16, Modulation.LOOKUP),
}
COMPARED = ("adversarial", "feature_matching", "l1", "perceptual")
"""Not the discriminator's: the plain loop's see the updated generator, and one more power iteration."""
ALLOWED = {Amp.OFF: 1e-4, Amp.BF16: 3e-2}
"""Difference of a first loss, as a share of the greatest. Measured on the small networks: 1e-6, and 2e-3 for bf16."""
QUIET = 0.04


@dataclass(frozen=True)
class Round:
    """Seconds of each candidate's step, and the share of the machine that other processes had."""

    batch: int
    seconds: dict[str, float]
    others: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("ade20k", "earth"), action="append", help="both by default")
    parser.add_argument("--rounds", type=int, default=7, help="after one that is not counted")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1, help="of ade20k; earth has its preset's")
    parser.add_argument(
        "--no-search",
        action="store_true",
        help="on a GPU: cuDNN chooses; trying all algorithms takes minutes",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds: a try-out")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    for name in asked.preset or ("ade20k", "earth"):
        with tempfile.TemporaryDirectory() as folder:
            setup = make_setup(name, Path(folder), asked.quick, asked.batch_size)
            batches = make_batches(setup, asked.data)
            rounds = 2 if asked.quick else asked.rounds
            value = measure(setup, batches, torch.device(asked.device), rounds, searches=not asked.no_search)
            value["loading"] = measure_loading(setup, Path(folder), asked.data, 4 if asked.quick else 40)
        target = asked.out / f"training-{'quick-' if asked.quick else ''}{name}{card_suffix(asked.device)}.json"
        asked.out.mkdir(parents=True, exist_ok=True)
        write_json(target, {"preset": name, "threads": asked.threads, "machine": describe_machine(), **value})
        show(value)
        print(f"written to {target}")


def card_suffix(device: str) -> str:
    """'-nvidia-h100-80gb-hbm3' for a GPU, '' for the CPU."""
    if not device.startswith("cuda"):
        return ""
    return re.sub(r"[^a-z0-9]+", "-", f"-{torch.cuda.get_device_name(device)}".lower()).rstrip("-")


def make_setup(name: str, folder: Path, quick: bool, batch_size: int = 1) -> Setup:
    """The preset; ADE20K with `batch_size` samples a step and the perceptual loss."""
    setup = preset(name, None if name == "earth" else folder)
    train, generator = replace(setup.train, deterministic=False, compile=False, ema_decay=None), setup.generator
    if name != "earth":
        vgg = folder / "vgg19.safetensors"
        torch.manual_seed(0)
        safetensors.torch.save_file(VggFeatures("VGG19").state_dict(), vgg)
        train = replace(train, batch_size=batch_size, perceptual_file=vgg)
    if quick:
        train = replace(train, discriminator=DiscriminatorSpec(base_channels=4))
        generator = replace(generator, base_channels=4, hidden_channels=8, height=64, width=64)
        data = replace(setup.data, load_size=(72, 72) if name != "earth" else (64, 64), crop_size=(64, 64))
        return Setup(train, generator, data)
    return Setup(train, generator, setup.data)


def make_batches(setup: Setup, data: Path) -> list[Batch]:
    """What the candidates learn from, in turn."""
    spec, size = setup.generator, setup.train.batch_size
    if setup.data.preset == "earth":
        source = open_source(setup.data, "train", spec.labels)
        return list(islice(training_batches(source, batch_size=size, seed=0), 7))
    maps = coco_maps(spec, data) if (data / "train_label").is_dir() else synthetic_maps(spec, 13)
    numbers = torch.Generator().manual_seed(0)
    batches, stems = [], list(maps)
    for first in range(len(stems)):
        chosen = [stems[(first + offset) % len(stems)] for offset in range(size)]
        label = np.concatenate([resized(maps[stem], spec.height, spec.width)[LABEL] for stem in chosen])
        photo = torch.rand(size, 3, spec.height, spec.width, generator=numbers) * 2 - 1
        batches.append(Batch(torch.from_numpy(label), None, photo, tuple(chosen)))
    return batches


def measure(
    setup: Setup, batches: list[Batch], device: torch.device, rounds: int, *, searches: bool = True
) -> dict[str, Any]:
    """All candidates side by side; the first step is compared and not counted.

    searches: whether cuDNN tries all its algorithms, as `spade train` lets it.
    """
    steps: dict[str, Callable[[Batch], dict[str, float]]] = {}
    looked_up: dict[str, int] = {}
    for name, (amp, modulation) in OURS.items():
        learner = Learner(replace(setup, train=replace(setup.train, amp=amp, modulation=modulation)), device)
        # With the weights that training begins with, every generator's images are nearly zero: nothing to compare.
        torch.manual_seed(1)
        initialize(learner.generator, gain=1.0)
        initialize(learner.discriminator, gain=1.0)
        learner.generator.register_forward_pre_hook(_counting(name, looked_up), with_kwargs=True)
        if PLAIN not in steps:
            steps[PLAIN] = PlainLoop(setup, learner, device).step
        steps[name] = partial(learner.step, rate_factor=1.0)
    if not searches:
        torch.backends.cudnn.benchmark = False
    losses = {name: step(batches[0]) for name, step in steps.items()}
    check_first_losses(losses)
    for name, (_, modulation) in OURS.items():
        if (looked_up.get(name, 0) > 0) != (modulation is Modulation.LOOKUP):
            raise SystemExit(f"{name}: the generator was given pattern tables {looked_up.get(name, 0)} times")
    done = []
    for number in range(rounds):
        place = (number + 1) % len(batches)
        done.append(one_round(steps, number, place, batches[place]))
        print(f"  round {number + 1} of {rounds}: {done[-1].seconds}", flush=True)
    return {
        "generator": setup.generator.to_json(),
        "discriminator": asdict(setup.train.discriminator),
        "batch_size": setup.train.batch_size,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if device.type == "cuda" else None,
        "unique_share": statistics.median(_share(setup, batch) for batch in batches),
        "first_losses": losses,
        "candidates": {name: summarize(name, done) for name in steps},
        "goal": GOAL,
        "rounds": [{**asdict(one), "is_quiet": one.others is not None and one.others <= QUIET} for one in done],
    }


def one_round(steps: dict[str, Callable[[Batch], dict[str, float]]], number: int, place: int, batch: Batch) -> Round:
    """Each candidate's step on one batch. A step ends with its losses as numbers, so a GPU has finished it."""
    before, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    seconds = {}
    for name in in_turn(list(steps), number):
        began = time.perf_counter()
        steps[name](batch)
        seconds[name] = time.perf_counter() - began
    after, wall, own = busy_seconds(), time.perf_counter() - start, time.process_time() - own
    others = None
    if before is not None and after is not None:
        others = max(0.0, after - before - own) / (wall * (os.cpu_count() or 1))
    return Round(place, {name: seconds[name] for name in steps}, others)


def check_first_losses(losses: dict[str, dict[str, float]]) -> None:
    """End the run where a candidate does not begin with the plain loop's losses."""
    plain = losses[PLAIN]
    for name, (amp, _) in OURS.items():
        for loss in (loss for loss in COMPARED if loss in plain):
            allowed = ALLOWED[amp] * max(abs(plain[key]) for key in COMPARED if key in plain)
            if not abs(losses[name][loss] - plain[loss]) <= allowed:
                raise SystemExit(f"{name}: the first {loss} is {losses[name][loss]}, the plain loop's {plain[loss]}")


def summarize(name: str, rounds: list[Round]) -> dict[str, float]:
    """Medians; a ratio is taken within each round."""
    return {
        "seconds_per_step": statistics.median(one.seconds[name] for one in rounds),
        "faster_than_plain": statistics.median(one.seconds[PLAIN] / one.seconds[name] for one in rounds),
    }


def measure_loading(
    setup: Setup, folder: Path, data: Path, batches: int, workers_tried: Sequence[int] = (0, 1, 2)
) -> dict[str, Any]:
    """Seconds a batch of the loader alone, by its number of workers, once it runs."""
    if setup.data.preset == "earth":
        source: SampleSource = open_source(setup.data, "train", setup.generator.labels)
        what = "tiles of the embedded data"
    else:
        source = _file_source(setup, folder / "files", data)
        load, crop = setup.data.load_size, setup.data.crop_size
        what = f"files resized to {load[0]} x {load[1]}, cropped to {crop[0]} x {crop[1]}"
    found = {}
    for workers in workers_tried:
        loaded = training_batches(source, batch_size=setup.train.batch_size, seed=0, workers=workers)
        try:
            for _ in islice(loaded, 2 + 2 * workers):  # what the workers have loaded ahead
                pass
            start = time.perf_counter()
            for _ in islice(loaded, batches):
                pass
            found[str(workers)] = (time.perf_counter() - start) / batches
        finally:
            loaded.close()
    return {"what": what, "batch_size": setup.train.batch_size, "seconds_per_batch_by_workers": found}


def _file_source(setup: Setup, folder: Path, data: Path) -> SampleSource:
    """Label maps and photos as files: the COCO-Stuff samples repeated, or made up in their size."""
    labels, images = folder / "labels", folder / "images"
    labels.mkdir(parents=True)
    images.mkdir()
    for number, (label, photo) in enumerate(islice(cycle(_pictures(setup, data)), 26)):
        Image.fromarray(label).save(labels / f"{number:02}.png")
        Image.fromarray(photo).save(images / f"{number:02}.jpg", quality=95)
    config = DataConfig(
        "custom",
        labels_dir=labels,
        images_dir=images,
        load_size=setup.data.load_size,
        crop_size=setup.data.crop_size,
    )
    return open_source(config, "train", LabelSpec(255, has_dontcare=True))


def _pictures(setup: Setup, data: Path) -> list[tuple[Any, Any]]:
    if (data / "train_img").is_dir():
        return [
            (np.array(Image.open(path)), np.array(Image.open(data / "train_img" / f"{path.stem}.jpg").convert("RGB")))
            for path in sorted((data / "train_label").glob("*.png"))
        ]
    maps = synthetic_maps(replace(setup.generator, height=480, width=640), 4)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (15, 20, 3), np.uint8).repeat(32, 0).repeat(32, 1) for _ in maps]
    return [(inputs[LABEL][0].astype(np.uint8), photo) for inputs, photo in zip(maps.values(), noise, strict=True)]


def _share(setup: Setup, batch: Batch) -> float:
    tables = extract_patterns(setup.generator, batch.label.numpy())
    assert tables is not None  # no share was set at which it gives up
    return tables.unique_share(setup.generator)


def _counting(name: str, counts: dict[str, int]) -> Callable[..., None]:
    def count(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts[name] = counts.get(name, 0) + any(
            isinstance(value, TrainingLookup) for value in [*inputs, *named.values()]
        )

    return count


def show(value: dict[str, Any]) -> None:
    for name, row in value["candidates"].items():
        print(f"  {name:<20} {1000 * row['seconds_per_step']:9.1f} ms a step  x {row['faster_than_plain']:.2f}")
    for workers, seconds in value["loading"]["seconds_per_batch_by_workers"].items():
        print(f"  loading, {workers} workers   {1000 * seconds:9.1f} ms a batch")


if __name__ == "__main__":
    main()
