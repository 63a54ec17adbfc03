"""`spade export` of a student with judges: the figures of `spade eval`, in the report, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from spade_deploy import cli
from spade_deploy.artifact import REPORT_HTML, REPORT_JSON
from spade_deploy.commands.student_quality import judge_student
from spade_deploy.errors import CheckpointError, ConfigError, DatasetError
from spade_deploy.evaluation import EvalRequest, JudgeRequest, evaluate
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.progress import SILENT
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import TrainingState, save_checkpoint
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.distillation.pruning import pruned_student
from tests.support.generators import build_generator
from tests.support.onnx_judges import extractor_file, segmenter_file
from tests.support.training_runs import setup_of

COLORS = [(220, 40, 40), (40, 200, 60), (40, 60, 210)]
COUNT = 9
"""As few samples as have intervals."""


def write_split(folder: Path, number: int) -> None:
    for index in range(COUNT):
        ids = np.kron(np.random.default_rng((number, index)).integers(0, 3, (4, 4)), np.ones((8, 8), np.uint8))
        for kind, pixels in (("labels", ids.astype(np.uint8)), ("images", np.array(COLORS, np.uint8)[ids])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{index:02d}.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, runs/wide (the teacher), runs/narrow (its student), runs/blind (a student without photos), two judges."""
    root = tmp_path_factory.mktemp("place")
    for number, split in enumerate(("train", "val", "test")):
        write_split(root / "data" / split, number)
    write(root, root / "data")
    extractor_file(root / "extractor.onnx")
    segmenter_file(root / "segmenter.onnx", COLORS)
    return root


def write(root: Path, data_root: Path) -> None:
    """The three runs. The teacher is a trained one, which recorded its data."""
    data = DataConfig("custom", data_root, load_size=(32, 32), crop_size=(32, 32))
    teacher = build_generator(labels=LabelSpec(3), base_channels=4, hidden_channels=6, height=32, width=32)
    state, train = TrainingState({}, {}), setup_of().train
    wide = checkpoint_folder(root / "runs" / "wide", 2)
    info = save_checkpoint(wide, teacher, step=2, origin="train", setup=Setup(train, teacher.spec, data), state=state)
    narrow = pruned_student(teacher, replace(teacher.spec, base_channels=2))
    distilled = replace(train, distill=Distillation(TeacherFacts(str(wide), info.generator_sha256, teacher.spec)))
    for name, of_student in (("narrow", data), ("blind", replace(data, labels_only=True))):
        setup = Setup(distilled, narrow.spec, of_student)
        save_checkpoint(
            checkpoint_folder(root / "runs" / name, 4), narrow, step=4, origin="train", setup=setup, state=state
        )


@pytest.fixture
def place(tmp_path: Path, whole: Path) -> Path:
    """A place of one's own, whose runs may be broken."""
    for name in ("extractor.onnx", "segmenter.onnx"):
        shutil.copy(whole / name, tmp_path)
    write(tmp_path, whole / "data")
    return tmp_path


def judged(place: Path, run: str = "narrow", **judges: Any) -> Any:
    asked = judges or {"extractor": place / "extractor.onnx", "segmenter": place / "segmenter.onnx"}
    checkpoint = checkpoint_folder(place / "runs" / run, 4)
    return judge_student(checkpoint, JudgeRequest(**asked), place / "runs", SILENT)


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("run", ["narrow", "blind"])
def test_the_figures_are_those_of_eval(whole: Path, run: str) -> None:
    """A student without photos is judged on those of its teacher's run."""
    found = judged(whole, run)
    models = checkpoint_folder(whole / "runs" / "wide", 2), checkpoint_folder(whole / "runs" / run, 4)
    teacher, student = evaluate(
        EvalRequest(models, extractor=whole / "extractor.onnx", segmenter=whole / "segmenter.onnx"),
        runs_dir=whole / "runs",
    ).rows
    assert teacher.kernel != student.kernel
    assert (found.data, found.photos) == ("custom data, test split, 32 x 32", COUNT)
    names = [figure.name for figure in found.figures]
    assert names == ["frechet", "kernel", "miou", "accuracy", "l1", "psnr"]
    for figure in found.figures:
        for row, one in ((teacher, figure.teacher), (student, figure.student)):
            assert one.value == row.figure(figure.name)
            assert one.interval == row.intervals[figure.name]
            assert one.text.count("±") == 1
    by_name = {figure.name: figure for figure in found.figures}
    assert by_name["frechet"].heading == "Frechet ↓"
    assert "extractor" in by_name["frechet"].meaning
    better = "teacher" if teacher.l1 < student.l1 else "student"  # type: ignore[operator]
    assert by_name["l1"].verdict.startswith(f"the {better} leads by {abs(teacher.l1 - student.l1):.4f} ± ")  # type: ignore[operator]


def test_the_command_writes_them_into_the_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = ["export", "runs/narrow", "--graph", "dense", "--no-tune"]
    done = CliRunner().invoke(cli.app, [*words, "--extractor", "extractor.onnx", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads((place / "runs/narrow/artifact" / REPORT_JSON).read_text())["student"]
    assert json.loads(done.stdout)["result"]["student"]["quality"] == told["quality"]
    expected = judged(place, extractor=place / "extractor.onnx").to_json()
    assert told["quality"] == json.loads(json.dumps(expected))
    assert told["unmeasured"] == {
        "why": "mIoU was not measured, as no judge of it was given.",
        "command": "spade export runs/narrow --extractor FEATURES.onnx --train-segmenter",
    }
    page = (place / "runs/narrow/artifact" / REPORT_HTML).read_text()
    row = '<tr><th>Frechet ↓</th><td class="n wraps">{teacher[text]}</td><td class="n wraps">{student[text]}</td></tr>'
    assert row.format(**told["quality"]["figures"][0]) in page
    assert "<code>spade export runs/narrow --extractor FEATURES.onnx --train-segmenter</code>" in page
    assert f"judged on {COUNT} real photos (custom data, test split, 32 x 32)" in page
    assert "<td></td>" not in page


def test_a_model_that_is_no_student_is_refused(place: Path) -> None:
    edit(checkpoint_folder(place / "runs" / "narrow", 4) / "checkpoint.json", lambda v: v["train"].pop("distill"))
    with pytest.raises(ConfigError, match=r"`segmenter`: .*step_00000004 is no student") as caught:
        judged(place, segmenter=place / "segmenter.onnx")
    assert "`spade eval` judges any model: spade eval " in (caught.value.hint or "")


def test_an_artifact_takes_no_judges(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "artifact").mkdir()
    (place / "artifact" / "manifest.json").write_text("{}")
    monkeypatch.setattr("spade_deploy.commands.export._web_runtime", lambda web: {})
    done = CliRunner().invoke(cli.app, ["export", "artifact", "--web", "web", "--train-segmenter"])
    assert done.exit_code == 2
    assert "--train-segmenter: belongs to the export of a checkpoint, and artifact is an artifact" in done.output


def test_a_teacher_that_is_gone_is_refused_before_the_export(place: Path) -> None:
    shutil.rmtree(place / "runs" / "wide")
    with pytest.raises(CheckpointError, match="is no longer there") as caught:
        judged(place)
    assert caught.value.hint == "put it back, or leave it out: without a judge, the report says what was not measured"


def test_without_any_photos_the_judges_are_refused(place: Path) -> None:
    """The student has label maps alone, and the teacher was imported."""
    edit(checkpoint_folder(place / "runs" / "wide", 2) / "checkpoint.json", lambda value: value.update(data=None))
    with pytest.raises(DatasetError, match=r"`extractor`: .* was trained without photos") as caught:
        judged(place, "blind")
    assert "--labels LABELS --images PHOTOS judges both on photos that you name" in (caught.value.hint or "")


def test_photos_that_are_gone_are_told_with_the_command_that_takes_others(place: Path) -> None:
    moved = place / "moved"
    edit(
        checkpoint_folder(place / "runs" / "narrow", 4) / "checkpoint.json",
        lambda value: value["data"].update(root=str(moved)),
    )
    with pytest.raises(DatasetError, match="moved") as caught:
        judged(place)
    assert (caught.value.hint or "").startswith(f"spade eval {place}/runs/narrow/checkpoints/step_00000004 ")


def test_another_model_by_the_name_of_a_shipped_one_is_not_the_teacher(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has a run called earth in the current folder distilled the shipped model elsewhere."""
    monkeypatch.chdir(place)
    shutil.copytree(place / "runs" / "wide", place / "earth")
    edit(
        checkpoint_folder(place / "runs" / "narrow", 4) / "checkpoint.json",
        lambda value: value["train"]["distill"]["teacher"].update(place="earth", sha256="1" * 64),
    )
    with pytest.raises(CheckpointError, match="earth: here lies another model than the teacher") as caught:
        judged(place)
    assert (caught.value.hint or "").startswith("rename it, or leave it out")
