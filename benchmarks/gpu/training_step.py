"""A training step on the card, as `spade train` does it: each precision and memory layout, and the lookup tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import device_timer
from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.training.config import Amp, Modulation, Setup, TrainConfig
from spade_deploy.training.dataset import Batch
from spade_deploy.training.steps import Learner

VARIANTS: dict[str, dict[str, Any]] = {
    f"{amp if amp is not Amp.OFF else 'fp32'}{', channels last' if last else ''}": {"amp": amp, "channels_last": last}
    for amp in Amp
    for last in (False, True)
} | {"bf16, channels last, lookup": {"amp": Amp.BF16, "modulation": Modulation.LOOKUP}}
WARM_UP = 3


def run_training_step(setting: Setting, book: Book) -> None:
    """Steps a second and the most memory, for each batch size."""
    book.note("tf32_in_convolutions", torch.backends.cudnn.allow_tf32)
    for batch in setting.batches:
        for name, changes in VARIANTS.items():
            book.add(_measured(setting, name, batch, partial(_step, setting, batch, changes)))


def _measured(setting: Setting, name: str, batch: int, make: Callable[[], Callable[[], object]]) -> Row:
    is_cuda = setting.is_cuda
    timer = device_timer(torch, setting.device)
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        work = make()
        for _ in range(WARM_UP):
            timer(work)
        times = [timer(work) for _ in range(max(3, setting.rounds // 2))]
    except Exception as error:  # out of memory, no arithmetic of that type here: the others go on
        return Row(name, batch, failures=(error_text(error),))
    figures: dict[str, float | None] = {
        "steps_per_s": 1000 / statistics.median(times),
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated()) if is_cuda else None,
    }
    return Row(name, batch, figures, {"device": times})


def _step(setting: Setting, batch: int, changes: dict[str, Any]) -> Callable[[], object]:
    spec, inputs = setting.spec, setting.batch(batch)
    size = (spec.height, spec.width)
    config = TrainConfig(steps=1, batch_size=batch, device=setting.device, **changes)
    learner = Learner(
        Setup(config, spec, DataConfig(load_size=size, crop_size=size)),
        torch.device(setting.device),
    )
    samples = Batch(
        torch.from_numpy(inputs[LABEL]),
        torch.from_numpy(inputs[INSTANCE]) if INSTANCE in inputs else None,
        _photo(setting, batch).cpu(),
        tuple(map(str, range(batch))),
    )
    return lambda: learner.step(samples, 1.0)


def _photo(setting: Setting, batch: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    shape = (batch, 3, setting.spec.height, setting.spec.width)
    return (torch.rand(shape, generator=chance) * 2 - 1).to(setting.device)
