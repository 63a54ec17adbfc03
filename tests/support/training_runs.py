"""Small training runs: settings, and sources of batches that are made of a random seed and the step alone."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from spade_deploy import runs
from spade_deploy.errors import (
    ConfigError,
)
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import Batch

LABELS = LabelSpec(3, has_edges=True)


def setup_of(spec: dict[str, Any] | None = None, **changes: Any) -> Setup:
    config = TrainConfig(
        **{
            "steps": 6,
            "batch_size": 2,
            "lr_generator": 1e-3,
            "lr_discriminator": 1e-3,
            "weight_l1": 1.0,
            "workers": 0,
            "save_every": 3,
            "sample_every": 6,
            "log_every": 1,
            "keep_checkpoints": 10,
            "device": "cpu",
            "discriminator": DiscriminatorSpec(2, 3, 2),
            **changes,
        }
    )
    generator = GeneratorSpec(
        **{"labels": LABELS, "base_channels": 2, "hidden_channels": 4, "height": 32, "width": 32, **(spec or {})}
    )
    return Setup(config, generator, DataConfig(crop_size=(32, 32)))


class Noise:
    """Batches made of (seed, step) alone. `spoil` may change the photo of a step, or do something in it."""

    def __init__(self, spoil: Callable[[int, Batch], Batch] = lambda step, batch: batch, epoch: int = 4) -> None:
        self.spoil = spoil
        self.epoch = epoch
        self.closed = False

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.epoch

    def batches(
        self, *, batch_size: int, seed: int, start_step: int, workers: int, on_skip: Callable[[str], None]
    ) -> Generator[Batch, None, None]:
        step = start_step
        try:
            while True:
                step += 1
                if step % 2 == 0:
                    on_skip("labels/broken.png: is damaged")
                yield self.spoil(step, self.batch(batch_size, 1000 * seed + step))
        finally:
            self.closed = True

    def record(self) -> DataRecord:
        return DataRecord()

    def held_out_sha256(self) -> str:
        return ""

    def samples(self, count: int) -> Batch:
        return self.batch(count, 999_999)

    @staticmethod
    def batch(count: int, seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed)
        label = torch.randint(0, 3, (count, 32, 32), generator=random, dtype=torch.uint8)
        photo = torch.rand(count, 3, 32, 32, generator=random) * 2 - 1
        return Batch(label, label.int(), photo, ("x",) * count)


def new_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def rows(run: Path) -> list[list[str]]:
    with (run / "losses.csv").open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]  # without the seconds


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def weights(checkpoint: Path) -> list[Any]:
    optimizers = torch.load(checkpoint / runs.OPTIMIZERS_FILE, weights_only=True)
    return [load_file(checkpoint / runs.GENERATOR_FILE), load_file(checkpoint / runs.DISCRIMINATOR_FILE), optimizers]


def halting(source: Noise, at: int, number: int = signal.SIGINT) -> Noise:
    """The same batches, with a signal to this process while step `at` is loaded."""

    def send(step: int, batch: Batch) -> Batch:
        if step == at:
            os.kill(os.getpid(), number)
        return batch

    halted = type(source)()
    halted.spoil = send
    return halted


class Scripted(Noise):
    """A source whose evaluator gives one value after the other; an exception in the script is raised."""

    names = ("distance", "other")

    def __init__(self, values: list[Any], direction: str = "lower", **options: Any) -> None:
        super().__init__(**options)
        self.values: Iterator[Any] = iter(values)
        self.way = direction
        self.failing: dict[str, str] = {}
        self.shapes: list[tuple[int, ...]] = []

    def evaluator(self, setup: Setup) -> Scripted:
        return self

    def evaluate(self, generate: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        self.shapes.append(tuple(generate(self.batch(2, 5)).shape))
        value = next(self.values)
        if isinstance(value, Exception):
            raise value
        return {"distance": np.float32(value), "other": 1.0}  # type: ignore[dict-item]

    def unfit(self) -> dict[str, str]:
        return self.failing

    def direction(self, name: str) -> str:
        if name not in self.names:
            raise ConfigError(f"--best-by: {name} is not measured; distance is")
        return self.way


def measured(**changes: Any) -> Setup:
    return setup_of(**{"eval_every": 1, "best_by": "distance", "keep_checkpoints": 1, "save_every": 2, **changes})
