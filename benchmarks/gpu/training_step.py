"""A training step on the card: as `spade train` does it, and what half precision and channels last would change.

`spade train` computes in float32, so the whole step is timed as it is. The variants time the generator's forward and
backward pass alone, under PyTorch's autocast, with an L1 loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from gpu.numerics import segmap_of
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import device_timer
from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.dataset_files import DataConfig
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import Batch
from spade_deploy.training.networks import SpadeGenerator
from spade_deploy.training.steps import Learner

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 3


def run_training_step(setting: Setting, book: Book) -> None:
    """Steps a second and the most memory, for each batch size."""
    book.note("tf32_in_convolutions", torch.backends.cudnn.allow_tf32)
    for batch in setting.batches:
        works: dict[str, Callable[[], Callable[[], object]]] = {
            "whole step, fp32": partial(_whole_step, setting, batch)
        }
        for name, dtype in TYPES.items():
            for is_last in (False, True):
                label = f"generator, {name}{', channels last' if is_last else ''}"
                works[label] = partial(_generator_step, setting, batch, dtype, is_last)
        for name, make in works.items():
            book.add(_measured(setting, name, batch, make))


def _measured(setting: Setting, name: str, batch: int, make: Callable[[], Callable[[], object]]) -> Row:
    is_cuda = setting.device.startswith("cuda")
    timer = device_timer(torch, setting.device)
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        work = make()
        for _ in range(WARM_UP):
            timer(work)
        times = [timer(work) for _ in range(max(3, setting.rounds // 2))]
    except Exception as error:  # out of memory, no autocast of that type here: the others go on
        return Row(name, batch, failures=(error_text(error),))
    figures: dict[str, float | None] = {
        "steps_per_s": 1000 / statistics.median(times),
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated()) if is_cuda else None,
    }
    return Row(name, batch, figures, {"device": times})


def _whole_step(setting: Setting, batch: int) -> Callable[[], object]:
    spec, inputs = setting.spec, setting.batch(batch)
    size = (spec.height, spec.width)
    data = DataConfig(load_size=size, crop_size=size)
    learner = Learner(Setup(TrainConfig(steps=1, device=setting.device), spec, data), torch.device(setting.device))
    samples = Batch(
        torch.from_numpy(inputs[LABEL]),
        torch.from_numpy(inputs[INSTANCE]) if INSTANCE in inputs else None,
        _photo(setting, batch).cpu(),
        tuple(map(str, range(batch))),
    )
    return lambda: learner.step(samples, 1.0)


def _generator_step(setting: Setting, batch: int, dtype: torch.dtype | None, is_last: bool) -> Callable[[], object]:
    generator: Any = SpadeGenerator(setting.spec)
    generator.load_state_dict(setting.generator.state_dict())
    generator.to(setting.device).train()
    segmap, photo = segmap_of(setting, setting.batch(batch), torch.float32), _photo(setting, batch)
    if is_last:
        generator.to(memory_format=torch.channels_last)
        segmap = segmap.contiguous(memory_format=torch.channels_last)
    kind = torch.device(setting.device).type

    def step() -> None:
        generator.zero_grad(set_to_none=True)
        with nullcontext() if dtype is None else torch.autocast(kind, dtype):
            fake = generator(segmap)
        # The factor is what a gradient scaler begins with: without one, fp16's small gradients are zero.
        loss: Any = functional.l1_loss(fake.float(), photo) * (2.0**16 if dtype is torch.float16 else 1.0)
        loss.backward()

    return step


def _photo(setting: Setting, batch: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    shape = (batch, 3, setting.spec.height, setting.spec.width)
    return (torch.rand(shape, generator=chance) * 2 - 1).to(setting.device)
