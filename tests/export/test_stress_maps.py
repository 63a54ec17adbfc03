"""The maps are what a model takes, each kind is what its name says, and the search climbs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z
from spade_deploy.engines.base import check_inputs
from spade_deploy.export.stress_maps import (
    LEAST_EVALUATIONS,
    MOST_CLASSES,
    MOST_EVALUATIONS,
    StressMap,
    evaluations_for,
    hardest_map,
    stress_maps,
    stress_size,
)
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec

SMALL = GeneratorSpec(LabelSpec(7, has_dontcare=True, has_edges=True), base_channels=4, height=128, width=64)
STYLED = GeneratorSpec(LabelSpec(300), base_channels=4, z_dim=8, height=64, width=96)
FULL = GeneratorSpec(LabelSpec(150, has_dontcare=True))
SPECS = {
    "edges": SMALL,
    "style": STYLED,
    "full size": FULL,
    "pix2pixhd": GeneratorSpec(LabelSpec(3), height=64, width=64).with_architecture(Architecture.PIX2PIXHD),
    "one class": GeneratorSpec(LabelSpec(1), base_channels=2, height=32, width=32),
}


def by_name(spec: GeneratorSpec) -> dict[str, Arrays]:
    return {one.name: one.inputs for one in stress_maps(spec)}


@pytest.mark.parametrize("name", SPECS)
def test_a_model_takes_each(name: str) -> None:
    spec = SPECS[name]
    maps = stress_maps(spec)
    for one in maps:
        check_inputs(spec, one.inputs)
        assert one.inputs[LABEL].shape == (1, *stress_size(spec))
    again = stress_maps(spec)
    assert [one.name for one in maps] == [one.name for one in again]
    for one, same in zip(maps, again, strict=True):
        assert all(np.array_equal(array, same.inputs[key]) for key, array in one.inputs.items())


def test_a_fixed_size_is_kept_and_a_free_one_is_small() -> None:
    assert stress_size(STYLED) == (64, 96)
    assert stress_size(FULL) == (128, 128)
    assert stress_size(SMALL) == (128, 64)


def test_each_kind_is_what_it_is_called() -> None:
    maps = by_name(SMALL)
    ids = {name: inputs[LABEL][0] for name, inputs in maps.items()}
    assert len(np.unique(ids["noise"])) == SMALL.labels.num_ids
    assert (ids["noise"][:, 1:] != ids["noise"][:, :-1]).mean() > 0.8
    assert set(np.unique(ids["every class"])) == set(range(SMALL.labels.num_ids))
    assert set(np.unique(by_name(FULL)["every class"][LABEL])) == set(range(151))
    fine = ids["checkerboard"]
    assert np.array_equal(fine[2:, :2], fine[:-2, :2])
    assert fine[0, 0] != fine[0, 1]
    # The latent map takes every 32nd pixel: one colour of a fine board, both colours of a coarse one.
    latent = by_name(FULL)["coarse checkerboard"][LABEL][0, ::32, ::32]
    assert np.array_equal(latent[0::2, 0::2], np.full((2, 2), latent[0, 0]))
    assert latent[0, 1] == latent[1, 0] != latent[0, 0]
    assert set(np.unique(maps["noise"][INSTANCE])) == {0, 1, 2}
    assert by_name(STYLED)["noise"][Z].std() > 0.3


def test_every_class_has_its_map_and_many_classes_a_bounded_choice() -> None:
    alone = {name: inputs[LABEL] for name, inputs in by_name(SMALL).items() if name.endswith("alone")}
    assert [set(np.unique(label)) for label in alone.values()] == [{number} for number in range(8)]
    many = [name for name in by_name(FULL) if name.endswith("alone")]
    assert len(many) == MOST_CLASSES == 24
    assert many[0] == "class 0 alone"
    assert int(many[-1].split()[1]) > 140
    assert len(stress_maps(FULL, classes=3)) == 4 + 3


def test_a_search_climbs_and_is_the_same_each_time() -> None:
    start = by_name(SMALL)["class 0 alone"]

    def share_of_3(inputs: Arrays) -> float:
        check_inputs(SMALL, inputs)
        return float((inputs[LABEL] == 3).mean())

    found, reached = hardest_map(SMALL, start, share_of_3, 60)
    assert reached == share_of_3(found.inputs) > 0.5
    again, _ = hardest_map(SMALL, start, share_of_3, 60)
    assert all(np.array_equal(array, again.inputs[key]) for key, array in found.inputs.items())
    assert np.array_equal(start[LABEL], np.zeros_like(start[LABEL]))  # the start is not painted over


@pytest.mark.parametrize("name", SPECS)
def test_a_search_never_ends_below_its_start(name: str) -> None:
    spec = SPECS[name]
    start = stress_maps(spec)[0]
    calls: list[float] = []

    def falling(inputs: Arrays) -> float:
        check_inputs(spec, inputs)
        calls.append(-float(len(calls)))
        return calls[-1]

    found, reached = hardest_map(spec, start.inputs, falling, 20)
    assert (len(calls), reached) == (21, 0)
    assert found == StressMap(found.name, start.inputs)


def test_not_a_number_is_the_largest_of_all() -> None:
    start = by_name(SMALL)["noise"]
    scores = iter([1.0, 2.0, float("nan"), 9.0])
    _, reached = hardest_map(SMALL, start, lambda _: next(scores), 20)
    assert reached != reached
    assert next(scores) == 9.0


def test_style_and_instances_are_searched_too() -> None:
    start = by_name(STYLED)["noise"]
    found, _ = hardest_map(STYLED, start, lambda inputs: float(inputs[Z].sum()), 40)
    assert found.inputs[Z].sum() > start[Z].sum() + 2
    start = by_name(SMALL)["noise"]
    found, _ = hardest_map(SMALL, start, lambda inputs: float((inputs[INSTANCE] == 0).mean()), 40)
    assert (found.inputs[INSTANCE] == 0).mean() > 0.5


def test_a_search_is_long_for_a_small_model_and_short_for_a_large_one() -> None:
    assert evaluations_for(SMALL) == MOST_EVALUATIONS == 60
    assert LEAST_EVALUATIONS == 8
    assert 8 <= evaluations_for(FULL) <= 24
    assert evaluations_for(replace(FULL, z_dim=256)) == 8  # a fixed size of four times the pixels
