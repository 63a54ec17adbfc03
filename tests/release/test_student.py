"""A student beside its teacher: figures that can be computed in another way, and a teacher that is gone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.networks.build import count_parameters
from spade_deploy.networks.spade import make_segmap
from spade_deploy.release.student import compare_with_teacher, teacher_of
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import LoadedGenerator, TrainingState, load_generator, save_checkpoint
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.distillation.pruning import pruned_student
from tests.support.generators import build_generator
from tests.support.training_runs import setup_of

INPUTS: Arrays = {LABEL: np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32) // 32 % 3}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> LoadedGenerator:
    """A student's checkpoint; its teacher, of twice the width, lies beside it."""
    runs = tmp_path_factory.mktemp("runs")
    teacher = build_generator(labels=LabelSpec(3), base_channels=4, hidden_channels=6, height=32, width=32)
    info = save_checkpoint(checkpoint_folder(runs / "wide", 0), teacher, step=0, origin="import")
    narrow = pruned_student(teacher, replace(teacher.spec, base_channels=2))
    facts = TeacherFacts(str(checkpoint_folder(runs / "wide", 0)), info.generator_sha256, teacher.spec)
    train = replace(setup_of().train, distill=Distillation(facts))
    setup = Setup(train, narrow.spec, DataConfig(crop_size=(32, 32)))
    folder = checkpoint_folder(runs / "student", 6)
    save_checkpoint(folder, narrow, step=6, origin="train", setup=setup, state=TrainingState({}, {}))
    return load_generator(folder)


def test_the_figures_are_those_of_the_two_modules(student: LoadedGenerator, tmp_path: Path) -> None:
    found = compare_with_teacher(student, INPUTS, tmp_path)
    assert found is not None
    facts = teacher_of(student)
    assert facts is not None
    teacher = load_generator(Path(facts.place)).module
    segmap = make_segmap(torch.from_numpy(INPUTS[LABEL]), None, student.spec.labels)
    with torch.no_grad():
        error = (teacher(segmap) - student.module(segmap)).double().square().mean().item()
    assert found.psnr_db == pytest.approx(10 * np.log10(4 / error), abs=1e-3)
    assert 0 < found.ssim < 1  # type: ignore[operator]
    assert found.images == len(found.pictures) == 2
    wide, narrow = found.costs
    assert (wide.name, wide.base_channels, wide.parameters) == ("teacher", 4, count_parameters(teacher))
    assert (narrow.name, narrow.base_channels, narrow.parameters) == ("student", 2, count_parameters(student.module))
    assert wide.dense_macs > narrow.dense_macs > narrow.lookup_macs  # type: ignore[operator]
    assert found.speed_up == wide.milliseconds / narrow.milliseconds
    told = json.loads(json.dumps(found.to_json()))
    assert told["teacher_sha256"] == student.info.train["distill"]["teacher"]["sha256"]  # type: ignore[index]
    assert [cost["name"] for cost in told["costs"]] == ["teacher", "student"]
    assert told["pictures"] == []


def test_a_teacher_that_is_gone_is_told(student: LoadedGenerator, tmp_path: Path) -> None:
    train = student.info.train
    assert train is not None
    distill = train["distill"]
    gone = {**distill, "teacher": {**distill["teacher"], "place": str(tmp_path / "a" / "b" / "c"), "sha256": "0" * 64}}
    moved = replace(student, info=replace(student.info, train={**train, "distill": gone}))
    found = compare_with_teacher(moved, INPUTS, tmp_path)
    assert found is not None
    assert "the teacher, with the SHA-256 000000000000, is no longer there" in found.missing
    assert (found.costs, found.speed_up) == ((), None)


def test_a_generator_without_a_teacher_has_no_such_part(student: LoadedGenerator, tmp_path: Path) -> None:
    alone = replace(student, info=replace(student.info, train=None))
    assert compare_with_teacher(alone, INPUTS, tmp_path) is None
    assert alone.info.teacher is None
