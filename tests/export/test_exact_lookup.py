"""The lookup of a float64 reference: the same figures, and no table that is wrong at a single pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import INSTANCE, LABEL, LOGITS, Z
from spade_deploy.export import exact_lookup as module
from spade_deploy.export.exact_lookup import exact_lookup
from spade_deploy.export.pipeline import rounding_error, run_reference
from spade_deploy.networks.modulation import Gather, LevelLookup, TrainingLookup, training_lookup
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import Architecture, LabelSpec
from tests.support.generators import build_generator

TINY: dict[str, Any] = {"base_channels": 2, "hidden_channels": 4, "height": 64, "width": 64}


def maps_of(labels: LabelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """One label map of squares with a noisy corner, and its instances."""
    numbers = np.random.default_rng(0)
    label = numbers.integers(0, labels.num_ids, (1, 8, 8)).repeat(8, 1).repeat(8, 2)
    label[:, :6, :6] = numbers.integers(0, labels.num_ids, (1, 6, 6))
    return torch.from_numpy(label), torch.from_numpy(label // 2)


@pytest.mark.parametrize("fields", [{}, {"kernel_size": 1}, {"labels": LabelSpec(5)}, {"z_dim": 3}])
def test_the_rounding_error_is_that_of_the_convolutions(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build_generator(**{**TINY, "training_steps": 1, **fields})
    label, instance = maps_of(generator.spec.labels)
    inputs = {LABEL: label.numpy().astype(np.uint8)}
    if generator.spec.labels.has_edges:
        inputs[INSTANCE] = instance.numpy().astype(np.int32)
    if generator.spec.z_dim is not None:
        inputs[Z] = np.ones((1, generator.spec.z_dim), np.float32)
    logits = run_reference(generator, inputs)[LOGITS]
    used = []
    monkeypatch.setattr(
        "spade_deploy.export.pipeline.exact_lookup", lambda *given: used.append(exact_lookup(*given)) or used[-1]
    )
    found = rounding_error(generator, inputs, logits)
    assert used[0] is not None
    assert used[0].levels
    monkeypatch.setattr("spade_deploy.export.pipeline.exact_lookup", lambda *_: None)
    expected = rounding_error(generator, inputs, logits)
    assert found.logit_max == pytest.approx(expected.logit_max, rel=1e-5)  # measured: 1e-8
    assert found.max_abs == pytest.approx(expected.max_abs, rel=1e-5)


def one_pixel(level: LevelLookup) -> LevelLookup:
    index = level.pixels.index.clone()
    index[1000] = (index[1000] + 1) % len(level.pixels.offsets)
    return replace(level, pixels=Gather.of(index.numpy(), len(level.pixels.offsets)))


def one_tap(level: LevelLookup) -> LevelLookup:
    index = level.taps.index.clone()
    index[4] = (index[4] + 1) % (len(level.starts) + 1)
    return replace(level, taps=Gather.of(index.numpy(), len(level.starts) + 1))


def one_input(level: LevelLookup) -> LevelLookup:
    inputs = level.inputs.clone()
    inputs[2] = inputs[2] - 1
    return replace(level, inputs=inputs)


def inside(level: LevelLookup) -> LevelLookup:
    index, rows = level.taps.index.clone(), len(level.starts)
    index[index == rows] = 0  # the hidden map would not be zero outside of the image
    return replace(level, taps=Gather.of(index.numpy(), rows + 1))


@pytest.mark.parametrize("spoil", [one_pixel, one_tap, one_input, inside])
def test_wrong_tables_are_not_used(
    spoil: Callable[[LevelLookup], LevelLookup], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build_generator(**{**TINY, "training_steps": 0})
    spec = generator.spec
    label, instance = maps_of(spec.labels)
    segmap = make_segmap(label, instance, spec.labels).double()
    assert exact_lookup(spec, label, instance, segmap) is not None

    def spoilt(*given: Any) -> TrainingLookup:
        tables = training_lookup(*given)
        return TrainingLookup({**tables.levels, 1: spoil(tables.levels[1])})

    monkeypatch.setattr(module, "training_lookup", spoilt)
    assert exact_lookup(spec, label, instance, segmap) is None


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_one_wrong_level_is_enough(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = build_generator(**{**TINY, "training_steps": 0}).spec
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, 20:, 30:] = 1
    segmap = make_segmap(label, label, spec.labels).double()
    right = training_lookup(spec, label, label)
    assert set(right.levels) == {1, 2, 4}
    assert exact_lookup(spec, label, label, segmap) is not None
    spoilt = TrainingLookup({**right.levels, stride: inside(right.levels[stride])})
    monkeypatch.setattr(module, "training_lookup", lambda *_: spoilt)
    assert exact_lookup(spec, label, label, segmap) is None


def test_other_edges_are_seen_and_other_architectures_have_no_tables() -> None:
    spec = build_generator(**{**TINY, "training_steps": 0}).spec
    label, instance = maps_of(spec.labels)
    segmap = make_segmap(label, instance, spec.labels).double()
    assert exact_lookup(spec, label, torch.zeros_like(instance), segmap) is None
    assert exact_lookup(spec.with_architecture(Architecture.PIX2PIXHD), label, instance, segmap) is None
