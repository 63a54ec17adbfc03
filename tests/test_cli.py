"""The commands through the real console script: what they print, where they fail and with which code."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Mission, build_generator, spade
from PIL import Image

from spade_deploy import __version__, cli
from spade_deploy.engines.runtime import Backend
from spade_deploy.inference import ResizePolicy
from spade_deploy.label_sets import label_set


def test_version_and_help(tmp_path: Path) -> None:
    assert spade("--version", cwd=tmp_path).stdout.strip() == f"spade-deploy {__version__}"
    helped = spade("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in (
        "train",
        "import",
        "export",
        "infer",
        "validate",
        "eval",
        "animate",
        "bench",
        "build",
        "check-labels",
        "inspect",
        "doctor",
        "data",
        "demo",
    ):
        assert command in helped.stdout
    unknown = spade("trian", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "trian" in unknown.stderr


def test_the_choices_of_flags_are_those_of_the_code() -> None:
    # The command line has its own, so that `spade --help` need not load numpy.
    assert [*cli.Backend] == [*Backend]
    assert [*cli.Resize] == [*ResizePolicy]


@pytest.mark.parametrize(
    ("command", "next_command"),
    [
        (("export",), "spade train"),
        (("infer", "labels", "out"), "spade export"),
        (("validate",), "spade export"),
        (("build",), "spade export"),
        (("train", "--resume"), "spade train"),
    ],
)
def test_where_there_is_nothing_the_command_that_makes_it_is_named(
    tmp_path: Path, command: tuple[str, ...], next_command: str
) -> None:
    done = spade(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
    assert next_command in done.stderr.split("next:")[1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("train", "--preset", "moon"), "--preset"),
        (("train", "--size", "100x"), "--size"),
        (("train", "--size", "100x100"), "--size"),
        (("train", "--steps", "0"), "--steps"),
        (("train", "--steps", "3", "--epochs", "3"), "--epochs"),
        (("train", "--labels", "somewhere"), "--num-labels"),
        (("train", "--num-labels", "3"), "--num-labels"),
        (("train", "--device", "cuda:7"), "--device"),
        (("train", "--kernel-size", "4"), "--kernel-size"),
        (("train", "--name", "../outside"), "--name"),
        (("check-labels", "."), "--preset"),
        (("import", "x.pth", "--preset", "moon"), "--preset"),
    ],
)
def test_usage_errors_name_the_flag_and_leave_nothing(tmp_path: Path, arguments: tuple[str, ...], flag: str) -> None:
    done = spade(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert flag in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_infer_reports_and_skips_what_is_broken(mission: Mission, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in sorted((mission.folder / "labels").iterdir())[:4]:
        shutil.copy(path, labels)
    (labels / "broken.png").write_bytes((labels / "0000.png").read_bytes()[:100])
    Image.fromarray(np.full((128, 128), 99, np.uint8)).save(labels / "range.png")
    runs = ("--runs", mission.folder / "runs")
    done = spade("infer", labels, tmp_path / "out", *runs, cwd=tmp_path)
    assert done.returncode == 1
    assert "wrote 4 of 6 images" in done.stdout
    assert "broken.png" in done.stderr
    assert "range.png" in done.stderr
    assert "99" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "0000.png",
        "0001.png",
        "0002.png",
        "0003.png",
    ]
    again = spade("infer", labels, tmp_path / "out", *runs, cwd=tmp_path)
    assert "4 were there already" in again.stdout
    one = spade("infer", labels / "0000.png", tmp_path / "one.jpg", *runs, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    with Image.open(tmp_path / "one.jpg") as photo:
        assert photo.format == "JPEG"


def test_infer_states_its_resizing(mission: Mission, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((200, 300), np.uint8)).save(tmp_path / "labels" / "a.png")
    runs = ("--runs", mission.folder / "runs")
    done = spade("infer", "labels", "out", *runs, cwd=tmp_path)
    assert "1 label maps were resized to 128x128 (nearest)" in done.stdout
    refused = spade("infer", "labels", "never", "--resize", "never", *runs, cwd=tmp_path)
    assert refused.returncode == 1
    assert "200" in refused.stderr
    sized = spade("infer", "labels", "sized", "--size", "64x96", *runs, cwd=tmp_path)
    assert sized.returncode == 0, sized.stderr
    with Image.open(tmp_path / "sized" / "a.png") as photo:
        assert photo.size == (96, 64)
    odd = spade("infer", "labels", "odd", "--size", "65x96", *runs, cwd=tmp_path)
    assert odd.returncode == 2
    assert "--size" in odd.stderr


def test_validate_inspect_and_a_damaged_artifact(mission: Mission, tmp_path: Path) -> None:
    good = mission.folder / "runs/earth-001"
    done = spade("validate", good, "--report", tmp_path / "report.json", cwd=mission.folder)
    assert done.returncode == 0, done.stderr
    assert "PyTorch" in done.stdout
    assert "by class" in done.stdout
    assert (tmp_path / "report.json").is_file()
    some = tmp_path / "some"
    some.mkdir()
    for label in sorted((mission.folder / "labels").glob("*.png"))[:5]:
        shutil.copy(label, some)
    labelled = spade("validate", good, "--labels", some, cwd=mission.folder)
    assert labelled.returncode == 0, labelled.stderr
    assert "5 label maps" in labelled.stdout
    for place in (good, good / "artifact", good / "checkpoints/step_00000004"):
        shown = spade("inspect", place, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "17" in shown.stdout
    damaged = tmp_path / "artifact"
    shutil.copytree(good / "artifact", damaged)
    graph = damaged / "generator.fp32.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    for command in (
        ("validate", damaged),
        ("inspect", damaged),
        ("infer", good / "labels", "out", "--artifact", damaged),
    ):
        done = spade(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert "generator.fp32.onnx is damaged" in done.stderr
        assert "Traceback" not in done.stderr


def test_resume_goes_on_with_the_newest_run(mission: Mission, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(mission.folder / "runs", runs)
    done = spade("train", "--resume", "--steps", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained 5 steps" in done.stdout
    assert "resumed from step_00000004" in done.stdout
    refused = spade("train", "--resume", "runs/earth-001", "--batch-size", "2", cwd=tmp_path)
    assert refused.returncode == 1
    assert "--batch-size 2 cannot change" in refused.stderr
    assert not (tmp_path / "labels").exists()


def test_import_is_what_a_bare_export_takes(tmp_path: Path) -> None:
    generator = build_generator(labels=label_set("ade20k"), base_channels=2, hidden_channels=4, height=256, width=256)
    torch.save(generator.state_dict(), tmp_path / "latest_net_G.pth")
    done = spade("import", "latest_net_G.pth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "taken for ade20k" in done.stdout
    assert "next: spade export --fp16" in done.stdout
    exported = spade("export", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "exported runs/import-001/checkpoints/step_00000000" in exported.stdout
    assert "synthetic label maps" in exported.stdout
    missing = spade("import", "nothing.pth", cwd=tmp_path)
    assert missing.returncode == 1
    assert "no such file" in missing.stderr


def test_check_labels_and_fix(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    earth = label_set("earth")
    ids = np.kron(np.arange(16).reshape(4, 4), np.ones((16, 16))).astype(np.uint8)
    Image.fromarray(ids).save(labels / "good.png")
    assert spade("check-labels", labels, "--preset", "earth", cwd=tmp_path).returncode == 0
    Image.fromarray(np.array(earth.palette, np.uint8)[ids]).save(labels / "rgb.png")
    done = spade("check-labels", labels, "--preset", "earth", "--fix", "fixed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rgb" in done.stdout
    for name in ("good.png", "rgb.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "fixed" / name)), ids)
    Image.fromarray(ids + 17).save(labels / "range.png")
    Image.fromarray(((ids > 3) * 255).astype(np.uint8)).save(labels / "mask.png")
    done = spade("check-labels", labels, "--preset", "earth", cwd=tmp_path)
    assert done.returncode == 1
    for word in ("rgb.png", "range.png", "mask.png", "mask", "range"):
        assert word in done.stdout


def test_data_earth_is_an_ordinary_data_set(tmp_path: Path) -> None:
    done = spade("data", "earth", "earth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "348 train, 23 val, 76 test" in done.stdout
    assert len(list((tmp_path / "earth/test/labels").iterdir())) == 76
    checked = spade("check-labels", "earth", "--preset", "earth", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert "checked 447 label maps" in checked.stdout


def test_doctor(tmp_path: Path) -> None:
    done = spade("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "CPUExecutionProvider" in done.stdout or "CPU" in done.stdout


def test_demo_writes_a_gallery_that_stands_alone(tmp_path: Path) -> None:
    done = spade("demo", "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "demo/index.html").read_text(encoding="utf-8")
    # 24 tiles, a label map, a result and a photo each; losses and samples.
    assert page.count("data:image/png;base64,") == 24 * 3 + 2
    assert "http:" not in page
    assert "https:" not in page
    assert len(list((tmp_path / "demo/photos").iterdir())) == 24
