from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spade_deploy.artifact import INSTANCE, LABEL, Z
from spade_deploy.engines.input_shapes import USUAL_SHARE, default_profile, tensor_ranges
from spade_deploy.errors import ConfigError
from spade_deploy.lookup.tables import graph_inputs, lookup_tensors, modulated_channels
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, ShapeProfile

SPEC = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=True), base_channels=8, height=64, width=64)
PROFILE = ShapeProfile.parse("1x64x64:2x64x64:3x64x96")


def test_dense_inputs_have_the_profile_itself() -> None:
    expected = (PROFILE.least, PROFILE.best, PROFILE.most)
    assert tensor_ranges(SPEC, GraphKind.DENSE, PROFILE) == {LABEL: expected, INSTANCE: expected}


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("z_dim", [None, 16])
def test_lookup_ranges_are_of_the_graphs_own_inputs(kernel: int, z_dim: int | None) -> None:
    spec = GeneratorSpec(LabelSpec(5), base_channels=8, height=64, width=64, kernel_size=kernel, z_dim=z_dim)
    ranges = tensor_ranges(spec, GraphKind.LOOKUP, default_profile(spec))
    assert list(ranges) == [tensor.name for tensor in lookup_tensors(spec)]
    for tensor in lookup_tensors(spec):
        for shape in ranges[tensor.name]:
            assert len(shape) == len(tensor.shape)
            assert all(
                wanted == size for wanted, size in zip(tensor.shape, shape, strict=True) if isinstance(wanted, int)
            )
    assert (Z in ranges) == (z_dim is not None)


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    labels=st.sampled_from([1, 2, 40]),
    batch=st.integers(1, 3),
    rows=st.integers(1, 2),
    columns=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_no_map_has_more_patterns_than_the_profile_takes(
    kernel: int, labels: int, batch: int, rows: int, columns: int, seed: int
) -> None:
    spec = GeneratorSpec(LabelSpec(labels, has_edges=True), base_channels=8, height=32, width=32, kernel_size=kernel)
    size = (batch, 32 * rows, 32 * columns)
    ranges = tensor_ranges(spec, GraphKind.LOOKUP, ShapeProfile(size, size, size))
    rng = np.random.default_rng(seed)
    noise = {LABEL: rng.integers(0, labels, size).astype(np.uint8), INSTANCE: rng.integers(0, 9, size).astype(np.int32)}
    for name, array in graph_inputs(spec, GraphKind.LOOKUP, noise).items():
        least, _, most = ranges[name]
        assert all(low <= found <= high for low, found, high in zip(least, array.shape, most, strict=True)), name


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_profile_takes_exactly_as_many_windows_as_there_can_be(kernel: int) -> None:
    """Every pixel another label: each has a small and a large window of its own. Outside the image there is none."""
    size = (2, 32, 64)
    labels = LabelSpec(2 * 32 * 64)
    spec = GeneratorSpec(labels, base_channels=8, height=32, width=32, kernel_size=kernel)
    ranges = tensor_ranges(spec, GraphKind.LOOKUP, ShapeProfile(size, size, size))
    inputs = graph_inputs(spec, GraphKind.LOOKUP, {LABEL: np.arange(2 * 32 * 64, dtype=np.int32).reshape(size)})
    for stride in modulated_channels(spec):
        pixels = 2 * (32 // stride) * (64 // stride)
        for name in (f"codes_{stride}", f"patterns_{stride}"):
            assert len(inputs[name]) == pixels
            assert ranges[name][2] == (pixels, kernel**2)
        assert ranges[f"codes_{stride}"][0] == (1, kernel**2), "a plain map of one label has one window"
        usual = max(1, int(pixels * USUAL_SHARE.get(stride, 1.0)))
        assert ranges[f"codes_{stride}"][1] == ranges[f"patterns_{stride}"][1] == (usual, kernel**2)
    assert [USUAL_SHARE[stride] for stride in (1, 4, 16)] == [0.1, 0.4, 0.8]


def test_an_engine_is_tuned_for_the_best_size_of_the_profile() -> None:
    ranges = tensor_ranges(SPEC, GraphKind.LOOKUP, PROFILE)
    for stride in modulated_channels(SPEC):
        pixels = [batch * (rows // stride) * (columns // stride) for batch, rows, columns in ((2, 64, 64), (3, 64, 96))]
        usual = max(1, int(pixels[0] * USUAL_SHARE.get(stride, 1.0)))
        assert [shape[0] for shape in ranges[f"patterns_{stride}"]] == [1, usual, pixels[1]]
        sizes = (PROFILE.least, PROFILE.best, PROFILE.most)
        assert ranges[f"index_{stride}"] == tuple((n, rows // stride, columns // stride) for n, rows, columns in sizes)


def test_sizes_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"height 100 .* not a multiple of 32"):
        tensor_ranges(SPEC, GraphKind.DENSE, ShapeProfile.parse("1x100x64"))
    styled = GeneratorSpec(LabelSpec(5), base_channels=8, height=64, width=64, z_dim=8)
    with pytest.raises(ConfigError, match=r"width 96 .* has 64 alone"):
        tensor_ranges(styled, GraphKind.DENSE, ShapeProfile.parse("1x64x64:1x64x64:1x64x96"))
