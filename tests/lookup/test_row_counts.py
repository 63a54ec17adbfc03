"""Tables with rows at their ends that nobody looks up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import LABEL, Z
from spade_deploy.export.build import build_model
from spade_deploy.lookup.row_counts import STEPS, rounded_count, with_rounded_counts
from spade_deploy.lookup.tables import check_tables, graph_inputs, level_names, num_codes
from spade_deploy.lookup.windows import LevelPatterns
from spade_deploy.networks.build import build_generator
from spade_deploy.networks.spade import initialize
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, LabelSpec
from tests.lookup.test_tables import EDGES, PLAIN, extracted, rebuilt, regions, spec_of


def test_the_scale() -> None:
    counts = range(5000)
    rounded = [rounded_count(count) for count in counts]
    assert rounded[:17] == list(range(17))
    assert sorted(set(rounded[17:73])) == [*range(18, 33, 2), *range(36, 65, 4), 72]
    assert rounded == sorted(rounded)
    assert [rounded_count(count) for count in rounded] == rounded
    assert all(count <= after <= count * (1 + 1 / STEPS) for count, after in zip(counts, rounded, strict=True))
    assert len({count for count in rounded if 1024 < count <= 2048}) == STEPS


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("labels", [PLAIN, EDGES], ids=["plain", "edges"])
def test_every_pixel_keeps_its_window(labels: LabelSpec, kernel: int) -> None:
    spec = spec_of(labels, kernel)
    label, instance = regions(labels, 2, 64, 96, 5, seed=kernel)
    before = extracted(spec, label, instance)
    after = with_rounded_counts(spec, before.to_inputs())
    check_tables(spec, after)
    has_more = False
    for stride, level in before.levels.items():
        tables = [after[name] for name in level_names(stride)]
        assert [len(table) for table in tables[:2]] == [
            rounded_count(len(level.codes)),
            rounded_count(len(level.patterns)),
        ]
        assert all(table.dtype == np.int32 and table.flags.c_contiguous for table in tables)
        outside = num_codes(spec)
        assert np.array_equal(rebuilt(LevelPatterns(*tables), kernel, outside), rebuilt(level, kernel, outside))
        has_more = has_more or len(tables[0]) > len(level.codes)
    assert has_more or kernel == 1, "windows of one pixel are no more than the codes"
    assert np.array_equal(after["latent"], before.to_inputs()["latent"])


def test_the_tables_that_were_given_stay_as_they_are() -> None:
    spec = spec_of()
    given = extracted(spec, *regions(EDGES, 1, 64, 64, 3, seed=0)).to_inputs()
    copies = {name: array.copy() for name, array in given.items()}
    with_rounded_counts(spec, given)
    for name, array in copies.items():
        np.testing.assert_array_equal(given[name], array)


@pytest.mark.parametrize("architecture", [Architecture.SPADE, Architecture.CLADE, Architecture.OASIS])
def test_the_graph_makes_the_same_image(architecture: Architecture) -> None:
    """OASIS's tables hold codes of each image of the batch."""
    labels = LabelSpec(40)
    fields: dict[str, Any] = {"height": 64, "width": 64, "base_channels": 4}
    spec = GeneratorSpec(labels, **fields).with_architecture(architecture)
    torch.manual_seed(0)
    generator = build_generator(spec).eval()
    initialize(generator, 1.0)
    label, _ = regions(labels, 2, 64, 64, 4, seed=1)
    inputs: dict[str, Any] = {LABEL: label}
    if spec.z_dim is not None:
        inputs[Z] = np.random.default_rng(0).standard_normal((2, spec.z_dim)).astype(np.float32)
    tables = graph_inputs(spec, GraphKind.LOOKUP, inputs)
    longer = with_rounded_counts(spec, tables)
    assert sum(map(len, longer.values())) > sum(map(len, tables.values()))
    model = build_model(generator, GraphKind.LOOKUP)
    with torch.no_grad():
        images = [model(*(torch.from_numpy(array) for array in one.values()))[1] for one in (tables, longer)]
    assert images[0].std() > 1e-3
    assert torch.equal(*images)
