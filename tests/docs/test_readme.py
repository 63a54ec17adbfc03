"""What the README promises, run."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.labels.files import list_label_files
from tests.support.commands import Mission, readme_blocks, spade
from tests.support.paths import ROOT


def test_the_three_commands_work_in_an_empty_folder(mission: Mission) -> None:
    assert mission.commands == ("spade train", "spade export --fp16", "spade infer labels/ out/")
    labels, photos = list_label_files(mission.folder / "labels"), list_label_files(mission.folder / "out")
    assert len(labels) == 76
    assert [path.name for path in photos] == [path.name for path in labels]
    with Image.open(photos[0]) as photo:
        assert (photo.mode, photo.size) == ("RGB", (128, 128))


def test_each_says_what_it_did_where_it_is_and_what_comes_next(mission: Mission) -> None:
    trained, exported, inferred = mission.said
    assert "trained 4 steps" in trained
    assert "runs/earth-001/checkpoints/step_00000004" in trained
    assert "next: spade export runs/earth-001 --fp16" in trained
    assert "runs/earth-001/artifact/report.html" in exported
    assert re.search(r"fp16\s+pass", exported)
    assert "next: spade infer labels photos --artifact runs/earth-001/artifact" in exported
    assert "ONNX Runtime" in inferred or "OpenVINO" in inferred  # the engine that was the fastest there
    assert "CPU, fp32" in inferred
    assert "wrote 76 of 76 images to out" in inferred


def test_the_plain_client_makes_the_same_pixels(mission: Mission, tmp_path: object) -> None:
    artifact = mission.folder / "runs/earth-001/artifact"
    label = list_label_files(mission.folder / "labels")[5]
    photo = mission.folder / "plain.png"
    script = ROOT / "examples/plain_onnxruntime.py"
    command = [sys.executable, script, artifact / "generator.fp32.onnx", label, photo]
    subprocess.run(command, check=True)
    # Else `infer` may take the lookup graph or OpenVINO, whose sums are in another order: a pixel may flip by 1.
    dense = mission.folder / "dense.png"
    same = ("--graph", "dense", "--backend", "cpu")
    assert spade("infer", label, dense, *same, cwd=mission.folder).returncode == 0
    np.testing.assert_array_equal(np.asarray(Image.open(photo)), np.asarray(Image.open(dense)))
    code = [line for line in script.read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 16  # "15 lines", the import block's blank lines aside


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert readme_blocks()[0] == ["make demo", "make test"]
    for target in ("demo", "test"):
        assert re.search(rf"^{target}: \$\(STAMP\)", makefile, flags=re.MULTILINE)


def test_every_command_and_file_of_the_readme_exists(mission: Mission) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    helped = spade("--help", cwd=mission.folder).stdout
    for command in set(re.findall(r"`?spade ([a-z-]+)", text)):
        assert re.search(rf"\b{command}\b", helped), command
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    listed = {line.split()[0].strip() for line in re.findall(r"^  (\S+\.(?:json|onnx))", text, flags=re.MULTILINE)}
    only_of_a_vae = {"encoder.onnx"}
    assert listed - only_of_a_vae <= {
        "manifest.json",
        *Artifact.open(mission.folder / "runs/earth-001/artifact").manifest.files,
    }
