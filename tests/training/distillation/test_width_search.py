"""The search for the widths of a student's levels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.lookup.cost import mean_windows
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, NormType
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import validation_labels
from spade_deploy.training.distillation import width_search
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.distillation.learner import StudentLearner, make_learner
from spade_deploy.training.distillation.pruning import channel_order, leading, pruned_student
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.search_record import TABLE, WEIGHTS, WidthSearch
from spade_deploy.training.distillation.search_space import LEAST_SHARE, Space, Widths, evolve
from spade_deploy.training.distillation.shared_weights import SharedStudent, distance, narrowed, wanted_of
from spade_deploy.training.distillation.width_search import search_widths
from spade_deploy.training.distillation.widths import MAPS
from spade_deploy.training.source import FolderSource
from spade_deploy.training.splits import open_source
from tests.support.generators import build_generator
from tests.support.training_runs import setup_of

CPU = torch.device("cpu")
FIELDS: dict[str, Any] = {
    "labels": LabelSpec(3),
    "base_channels": 4,
    "hidden_channels": 8,
    "height": 32,
    "width": 32,
    "norm": NormType.BATCH,
}
WINDOWS = {32: 1.0, 16: 2.0, 8: 5.0, 4: 20.0, 2: 60.0, 1: 200.0}
SPEC = GeneratorSpec(**FIELDS)
SMALL: Widths = (40, 20, 12, 6, 3, 4, 8, 2, 1, 3)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A student of half the width, its teacher, and nine label maps."""
    root = tmp_path_factory.mktemp("search")
    (root / "labels").mkdir()
    numbers = np.random.default_rng(0)
    for number in range(9):
        blocks = numbers.integers(0, 3, (8, 8), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(blocks).save(root / "labels" / f"{number}.png")
    checkpoint = checkpoint_folder(root / "runs" / "wide", 0)
    info = save_checkpoint(checkpoint, build_generator(**FIELDS), step=0, origin="import")
    teacher = TeacherFacts(str(checkpoint), info.generator_sha256, info.generator)
    data = DataConfig.for_preset(
        "custom", crop_size=(32, 32), load_size=(32, 32), labels_dir=root / "labels", labels_only=True
    )
    spec = replace(SPEC, base_channels=2, hidden_channels=4)
    train = replace(setup_of().train, distill=Distillation(teacher), weight_l1=10.0, batch_size=2, seed=4)
    return Setup(train, spec, data)


@pytest.fixture(scope="module", autouse=True)
def few_students() -> Iterator[None]:
    """Searches of few students, which take little time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("POPULATION", 6), ("GENERATIONS", 2), ("POOL", 6), ("STATISTICS", 4)):
            patch.setattr(width_search, name, value)
        yield


@pytest.fixture(scope="module")
def found(setup: Setup) -> WidthSearch:
    return search_widths(setup, build_generator(**FIELDS), 1.2e6, 3)


def mean_windows_of(setup: Setup) -> dict[int, float]:
    """The windows of the label maps whose cost the search counts."""
    label, _, _ = validation_labels(open_source(setup.data, "train", SPEC.labels), MAPS)
    return dict(mean_windows(SPEC, label.numpy()))


def segmaps(seed: int = 1) -> torch.Tensor:
    label = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(seed))
    return make_segmap(label, None, SPEC.labels)


def test_a_slice_is_the_narrow_network_of_the_teachers_most_important_channels() -> None:
    teacher = build_generator(**FIELDS)
    spec = Space(SPEC, WINDOWS, 1e9).spec(SMALL)
    whole = SharedStudent(teacher, SPEC, weight_l1=1.0, weight_features=0.0).module.eval()
    with torch.no_grad():
        # In the order of importance the whole network is the teacher: sums in another order.
        assert torch.allclose(whole(segmaps()), teacher(segmaps()), atol=1e-5)
        own = narrowed(whole, spec)
        other = pruned_student(teacher, spec, leading(channel_order(teacher), spec))
        assert (own.spec.widths, own.spec.hidden_widths) == (SMALL[:5], SMALL[5:])
        # Spectral norm's vectors are fitted from the same start in both.
        assert torch.allclose(own(segmaps()), other(segmaps()), atol=1e-5)
        assert not torch.allclose(own(segmaps()), teacher(segmaps()), atol=1e-2)


def test_a_step_changes_the_slice_alone() -> None:
    teacher = build_generator(**FIELDS)
    shared = SharedStudent(teacher, SPEC, weight_l1=1.0, weight_features=1.0)
    before = {name: one.detach().clone() for name, one in shared.module.named_parameters()}
    spec = Space(SPEC, WINDOWS, 1e9).spec(SMALL)
    first = shared.step(spec, wanted_of(teacher, (segmaps(), None), with_features=True))
    name = "up_1.norm_1.mlp_gamma.weight"
    changed = shared.module.get_parameter(name).detach() != before[name]
    assert changed[:12, :2].any()
    changed[:12, :2] = False
    assert not changed.any()
    for _ in range(20):
        last = shared.step(spec, wanted_of(teacher, (segmaps(), None), with_features=True))
    assert last < 0.8 * first


def test_the_gradient_of_a_step_is_that_of_the_narrow_network() -> None:
    teacher = build_generator(**FIELDS)
    shared, space = SharedStudent(teacher, SPEC, weight_l1=3.0, weight_features=0.0), Space(SPEC, WINDOWS, 1e9)
    wide, spec = space.spec((*SPEC.widths, *SPEC.hidden_widths)), space.spec(SMALL)
    shared.step(wide, wanted_of(teacher, (segmaps(2), None)))  # of its gradients nothing is left
    wanted = wanted_of(teacher, (segmaps(), None))
    alone = narrowed(shared.module, spec).train()
    (3 * (alone(segmaps()) - wanted.image).abs().mean()).backward()
    shared.step(spec, wanted)
    for name, parameter in alone.named_parameters():
        whole = shared.module.get_parameter(name).grad
        assert whole is not None
        assert parameter.grad is not None
        part = whole[tuple(slice(0, size) for size in parameter.shape)]
        assert torch.allclose(part, parameter.grad, atol=1e-7), name
        assert whole.count_nonzero() == part.count_nonzero()


def test_the_distance_is_the_mean_over_all_images() -> None:
    teacher, student = build_generator(**FIELDS), build_generator(**{**FIELDS, "base_channels": 2})
    with torch.no_grad():
        judged = [wanted_of(teacher, (part, None)) for part in (segmaps(1), segmaps(2)[:1])]
        each = [(student(*one.inputs) - one.image).abs().mean((1, 2, 3)) for one in judged]
    assert distance(student, judged) == pytest.approx(float(torch.cat(each).mean()), rel=1e-6)
    assert float(each[0].mean()) != pytest.approx(float(each[1].mean()), rel=1e-3)


def test_the_search_finds_the_known_best() -> None:
    space = Space(replace(SPEC, base_channels=16, hidden_channels=16), WINDOWS, 1.6e7)
    best: Widths = (128, 96, 24, 16, 12, 4, 12, 6, 16, 2)
    assert space.allows(best)

    def distance(widths: Widths) -> float:
        return sum(abs(math.log(own / other)) for own, other in zip(widths, best, strict=True))

    start: Widths = (128, 64, 32, 16, 8, 8, 8, 8, 8, 8)
    rows = evolve(space, start, distance, np.random.default_rng(0), population=30, generations=30)
    assert rows[0].widths == best
    assert rows[0].distance == 0
    assert [row.distance for row in rows] == sorted(row.distance for row in rows)
    assert all(row.widths == start or space.allows(row.widths) for row in rows)


def test_only_students_that_cost_about_as_much_as_they_may_are_tried() -> None:
    space = Space(SPEC, WINDOWS, 1.2e6)
    numbers = np.random.default_rng(3)
    for _ in range(5):
        widths = space.random(numbers)
        assert widths is not None
        assert LEAST_SHARE * 1.2e6 <= space.cost(widths) <= 1.2e6
        changed = space.changed(widths, numbers)
        assert changed is None or (changed != widths and space.allows(changed))
    assert not space.allows((32, 32, 8, 4, 4, 2, 2, 2, 2, 2))
    assert Space(SPEC, WINDOWS, 10.0).random(np.random.default_rng(0)) is None
    bounded = replace(space, most=(32, 16, 8, 4, 2, 4, 4, 4, 4, 1))
    assert [max(one) for one in bounded.options] == [32, 16, 8, 4, 2, 4, 4, 4, 4, 1]


def test_the_same_seed_finds_the_same(setup: Setup, found: WidthSearch) -> None:
    again = search_widths(setup, build_generator(**FIELDS), 1.2e6, 3)
    assert again.rows == found.rows
    assert again.sha256 == found.sha256
    assert len({row.level_channels + row.level_hidden for row in found.rows}) == len(found.rows) > 6
    other = search_widths(replace(setup, train=replace(setup.train, seed=5)), build_generator(**FIELDS), 1.2e6, 3)
    assert other.rows != found.rows


def test_the_table_has_the_uniform_student_and_the_best_first(found: WidthSearch) -> None:
    (uniform,) = (row for row in found.rows if row.is_uniform)
    assert (uniform.level_channels, uniform.level_hidden) == ((32, 16, 8, 4, 2), (4,) * 5)
    assert found.chosen.distance == min(row.distance for row in found.rows)
    assert all(row.lookup_macs <= 1.2e6 for row in found.rows if not row.is_uniform)
    assert (found.judged_maps, found.maps, found.steps, found.seed) == (2, 9, 3, 4)


def test_the_training_begins_with_what_the_search_found(setup: Setup, found: WidthSearch, tmp_path: Path) -> None:
    found.keep(tmp_path)
    table = json.loads((tmp_path / TABLE).read_text())
    assert table["rows"][0]["level_channels"] == list(found.chosen.level_channels)
    assert len(table["rows"]) == len(found.rows)
    own = Space(SPEC, WINDOWS, 1.0).spec((*found.chosen.level_channels, *found.chosen.level_hidden))
    distill = setup.train.distill
    assert distill is not None
    assert "search" not in distill.to_json()
    run = Setup(replace(setup.train, distill=replace(distill, search=found.sha256)), own, setup.data)
    assert Setup.from_json(run.to_json()) == run
    learner = make_learner(run, CPU, run=tmp_path)
    assert isinstance(learner, StudentLearner)
    learner.begin()
    for name, tensor in found.weights.items():
        assert torch.equal(learner.generator.state_dict()[name], tensor), name
    batch = FolderSource(run).samples(2)
    assert all(math.isfinite(value) for value in learner.step(batch, 1.0).values())
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        make_learner(run, CPU, run=tmp_path).begin()


def test_where_no_random_student_fits_the_ones_beside_it_are_tried(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "random", lambda *_: None)
    cost = Space(SPEC, mean_windows_of(setup), 1.0).cost((32, 16, 8, 4, 2, 4, 4, 4, 4, 4))
    found = search_widths(setup, build_generator(**FIELDS), 1.05 * cost, 1)
    assert len(found.rows) > 3
    assert all(row.lookup_macs <= 1.05 * cost for row in found.rows)
    monkeypatch.setattr(Space, "changed", lambda *_: None)
    (alone,) = search_widths(setup, build_generator(**FIELDS), 1.05 * cost, 1).rows
    assert alone.is_uniform


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`search_widths` needs `mac_budget`, such as 20G"),
        ({"mac_budget": 1e9, "base_channels": 8}, "`search_widths` contradicts `base_channels`"),
        ({"mac_budget": 1e9, "hidden_channels": 8}, "`search_widths` contradicts `hidden_channels`"),
        ({"mac_budget": 1e9, "level_channels": (5, 4, 3, 2, 1)}, "`mac_budget` contradicts `level_channels`"),
        ({"mac_budget": 1e9, "student": {"pruned": False}}, "`search_widths` contradicts `no_pruned`"),
    ],
)
def test_requests_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillRequest(Path("earth"), search_widths=True, **fields)


def test_what_cannot_be_searched(setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spade_deploy.networks.build import build_generator as plain_generator

    clade = plain_generator(SPEC.with_architecture(Architecture.CLADE)).eval()
    with pytest.raises(ConfigError, match="`search_widths`: clade has no levels"):
        search_widths(setup, clade, 1e9, 1)
    Image.new("L", (32, 32), 1).save(tmp_path / "one.png")
    alone = replace(setup, data=replace(setup.data, labels_dir=tmp_path))
    with pytest.raises(ConfigError, match="has one label map"):
        search_widths(alone, build_generator(**FIELDS), 1e9, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="the search runs in one process"):
        search_widths(setup, build_generator(**FIELDS), 1e9, 1)
