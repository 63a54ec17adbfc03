"""How many multiply-adds an image costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spade_deploy.export.lookup import LookupModel
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.lookup.cost import dense_macs, lookup_macs, mean_windows
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec
from tests.support.generators import build_generator

SMALL = GeneratorSpec(LabelSpec(3), base_channels=2, hidden_channels=3, height=32, width=32)
WINDOWS = {32: 1.0, 16: 2.0, 8: 3.0, 4: 5.0, 2: 7.0, 1: 11.0}


def test_by_hand() -> None:
    # Residual convolutions: 18432 for head_0, 4 times that for each G_middle, 118784 for each up; and the last one.
    shared = 18432 + 2 * 4 * 18432 + 4 * 118784 + 9 * 2 * 3 * 1024
    # 9 taps x 3 hidden channels, times the channels of gamma and beta of all norms of a block, times the windows.
    modulation = 27 * (128 * 1 + 2 * 128 * 2 + 144 * 3 + 72 * 5 + 36 * 7 + 18 * 11)
    assert lookup_macs(SMALL, WINDOWS) == shared + modulation == 747_134
    assert dense_macs(SMALL) == 2_097_026


LEVELS = {"level_channels": (120, 50, 30, 9, 5), "level_hidden": (12, 7, 5, 3, 1)}


@pytest.mark.parametrize(
    "fields", [{}, {"z_dim": 5}, {"kernel_size": 1, "labels": LabelSpec(5)}, LEVELS, {**LEVELS, "z_dim": 5}]
)
def test_as_pytorch_counts_the_graphs(fields: dict[str, Any]) -> None:
    generator = build_generator(**fields)
    spec = generator.spec
    label, instance = synthetic_label_maps(spec.labels, 64, 64, 1, 3)
    objects = instance if spec.labels.has_edges else None
    z = torch.randn(1, 5) if spec.z_dim is not None else None
    segmap = make_segmap(torch.from_numpy(label), None if objects is None else torch.from_numpy(objects), spec.labels)
    assert dense_macs(spec) == _counted(generator, segmap, z)
    tables = extract_patterns(spec, label, objects)
    assert tables is not None
    inputs = tables.to_inputs(None if z is None else z.numpy())
    counted = _counted(LookupModel(generator), *map(torch.from_numpy, inputs.values()))
    assert lookup_macs(spec, mean_windows(spec, label, objects)) == counted


def _counted(module: torch.nn.Module, *inputs: Any) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2


def test_windows_are_a_mean_over_maps_each_for_itself() -> None:
    spec = SMALL
    plain, striped = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    striped[::2] = 1
    apart = [mean_windows(spec, one[None]) for one in (plain, striped)]
    both = mean_windows(spec, np.stack([plain, striped]))
    assert both == {stride: (apart[0][stride] + apart[1][stride]) / 2 for stride in both}
    assert apart[0][1] == 25  # one class: the position at the border alone makes a window


def test_clade_takes_gamma_and_beta_from_a_table() -> None:
    spec = SMALL.with_architecture(Architecture.CLADE)
    windows = mean_windows(spec, np.zeros((1, 32, 32), np.uint8))
    assert lookup_macs(spec, windows) == 18432 + 2 * 4 * 18432 + 4 * 118784 + 9 * 2 * 3 * 1024
