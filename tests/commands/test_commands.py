"""The commands through the real console script: what they print, where they fail and with which code."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from spade_deploy.cli import app
from spade_deploy.commands.distill import print_widths
from spade_deploy.errors import system_error
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.labels.sets import label_set
from spade_deploy.printable import one_line
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.widths import choose_widths
from spade_deploy.version import __version__
from tests.support.commands import Mission, spade
from tests.support.generators import build_generator


def test_the_widths_that_a_budget_allows_are_printed_and_taken(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "earth", "--mac-budget", "0.3G"]
    config = CliRunner().invoke(app, [*words, "--print-config"]).stdout
    assert "\nbase_channels: 8\n" in config
    assert "\nhidden_channels: 8\n" in config
    assert "\nmac_budget: null\n" in config
    print_widths(choose_widths(DistillRequest(Path("earth"), mac_budget=0.3e9), Path("runs")))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["mean", "of", "16", "label", "maps,", "budget", "0.3", "GMAC"]
    assert ["8", "8", "0.259", "0.43", "1.29", "M", "chosen"] in lines
    assert ["8", "16", "0.35", "0.693", "1.50", "M", "over", "the", "budget"] in lines
    assert ["6", "16", "0.232", "0.529", "0.94", "M"] in lines


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
        "runs",
        "doctor",
        "data",
        "demo",
    ):
        assert command in helped.stdout
    unknown = spade("trian", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "trian" in unknown.stderr


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
        (("check-labels", ".", "--preset", "earth", "--num-labels", "3"), "--preset"),
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
    assert "the worst 5 of" in done.stdout
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
    assert "guessed: the 151 segmap channels are ade20k's" in done.stdout
    assert "next: spade export runs/import-001 --fp16" in done.stdout
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
    # 24 tiles and 4 samples, a label map, a result and a photo each; the losses are drawn in the page itself.
    assert page.count("data:image/png;base64,") == (24 + 4) * 3
    assert "<svg" in page
    assert "http:" not in page
    assert "https:" not in page
    assert len(list((tmp_path / "demo/photos").glob("*.png"))) == 24


class TestTerminals:
    @pytest.mark.parametrize("columns", ["0", "1", "-3", "wide", "²"])
    def test_odd_sizes_of_a_terminal_hide_nothing(
        self, tmp_path: Path, columns: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("COLUMNS", "LINES"):
            monkeypatch.setenv(name, columns)
        for arguments, said in ((["--help"], "The main job"), (["data", "--help"], "earth"), (["doctor"], "Python")):
            done = CliRunner().invoke(app, arguments)
            assert done.exception is None or isinstance(done.exception, SystemExit)
            assert said in done.stdout

    def test_names_that_look_like_markup_or_orders_are_printed(self, tmp_path: Path) -> None:
        for name in ("[red].png", "runs [v2]", "\x1b[31m", os.fsdecode(b"b\xff")):
            done = spade("inspect", name, cwd=tmp_path)
            assert done.returncode == 1
            assert done.stderr.startswith(f"error: {one_line(name)} does not exist")


class TestSystemErrors:
    """A disk, a right or a limit is a message with the next step, whatever the command."""

    @pytest.mark.parametrize(
        ("error", "said", "hint"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "out/a"), "out/a: No space left on device", "free some"),
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "free some"),
            (OSError(errno.EROFS, "Read-only file system", "out"), "out: Read-only file system", "mounted read-only"),
            (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied", "permissions"),
            (OSError(errno.EFBIG, "File too large", "a.onnx"), "a.onnx: File too large", "ulimit -f"),
            (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "b: Cross-device link", None),
        ],
    )
    def test_what_the_system_says_becomes_an_error(self, error: OSError, said: str, hint: str | None) -> None:
        told = system_error(error)
        assert told is not None
        assert told.message == said
        assert (told.hint is None) if hint is None else (hint in str(told.hint))

    @pytest.mark.parametrize(
        "error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError("no number"), TimeoutError()]
    )
    def test_what_is_of_no_file_stays_a_defect(self, error: OSError) -> None:
        assert system_error(error) is None

    def test_a_limit_on_files_stops_with_one_message(self, mission: Mission, tmp_path: Path) -> None:
        """For real, without privileges: no file may be larger than 20 kB."""
        script = (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
            "from spade_deploy.cli import main; main()"
        )
        command = [sys.executable, "-c", script, "export", "--out", str(tmp_path / "out")]
        done = subprocess.run(
            [*command, "--runs", str(mission.folder / "runs")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "File too large" in done.stderr
        assert "next: " in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]

    def test_standard_output_that_is_full_is_no_traceback(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full here")
        script = Path(sys.executable).with_name("spade")
        with Path("/dev/full").open("w") as full:
            done = subprocess.run([script, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode != 0
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr


def test_every_command_that_fills_a_folder_is_alone_in_it(mission: Mission, tmp_path: Path) -> None:
    runs = ("--runs", str(mission.folder / "runs"))
    labels = str(mission.folder / "labels")
    commands = {
        "infer": ("infer", labels, "{out}", *runs),
        "bench": ("bench", "--out", "{out}", *runs),
        "eval": ("eval", "--out", "{out}", "--samples", "2", *runs),
        "data": ("data", "earth", "{out}"),
        "demo": ("demo", "--out", "{out}"),
        "export": ("export", "--out", "{out}", *runs),
        "fix": ("check-labels", labels, "--preset", "earth", "--fix", "{out}"),
    }
    for name, command in commands.items():
        out = tmp_path / name
        beside = {"export", "fix"}
        file = tmp_path / f".{name}.lock" if name in beside else out / LOCK
        with locked(out, "a test", file=file):
            done = spade(*(part.format(out=out) for part in command), cwd=tmp_path)
        assert done.returncode == 1, name
        assert f"process {os.getpid()} on " in done.stderr, name
        assert "a test, since" in done.stderr, name
        assert not out.exists() or [path.name for path in out.iterdir()] == [LOCK]
