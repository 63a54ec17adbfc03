"""Every command of the page on own photos runs, in its order, on a small data set; only its size is reduced."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.runs import newest_checkpoint, read_checkpoint_info
from tests.support.commands import spade
from tests.support.own_photos import write_own_photos
from tests.support.paths import ROOT

PAGE = ROOT / "docs/own-photos.md"
SMALL = {
    "train": (
        *("--steps", "2", "--eval-every", "2", "--save-every", "2", "--batch-size", "4", "--workers", "0"),
        *("--size", "32x32", "--base-channels", "2", "--hidden-channels", "4", "--discriminator-channels", "2"),
    ),
    "eval": ("--segmenter-steps", "2"),
    "export": ("--graph", "dense", "--no-tune"),
}
"""What a command gets beside the page's options, so that it takes seconds; of an option that is given twice the last
counts."""


def commands() -> list[list[str]]:
    """The commands of the page's shell blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which the commands ran, and what each kind of them printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    _, images = write_own_photos(folder, 20, classes=5)
    images.rename(folder / "photos")
    classes = re.search(r"```\n(90 160 70 grass\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert classes is not None
    (folder / "classes.txt").write_text(classes[1])
    printed: dict[str, str] = {}
    for words in commands():
        done = spade(*words[1:], *SMALL.get(words[1], ()), cwd=folder)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        key = f"{words[1]} estimate" if "--estimate" in words else words[1]
        printed[key] = printed.get(key, "") + done.stdout + done.stderr
    return folder, printed


def test_the_page_has_the_whole_chain() -> None:
    assert [words[1] for words in commands()] == [
        *("check-labels", "check-labels", "train", "train", "eval", "export", "infer")
    ]


def test_each_command_says_what_the_page_says(said: tuple[Path, dict[str, str]]) -> None:
    _, printed = said
    assert "or: --num-labels 4 --ignore-id 4" in printed["check-labels"]
    train = "next: spade train --labels labels --images photos --classes classes.txt --ignore-id 4"
    assert train in printed["check-labels"]
    assert "2 of 20 samples are held out" in printed["train"]
    assert "label maps of the data set's held-out samples" in printed["export"]
    assert "wrote 20 of 20 images" in printed["infer"]


def test_names_and_colours_reach_checkpoint_and_artifact(said: tuple[Path, dict[str, str]]) -> None:
    folder, _ = said
    for labels in (
        read_checkpoint_info(newest_checkpoint(folder / "runs")).generator.labels,
        Artifact.open(folder / "runs/mine/artifact").manifest.generator.labels,
    ):
        assert (labels.names, labels.ignore_id) == (("grass", "water", "sand", "rock", "void"), 4)
        assert labels.palette[0] == (90, 160, 70)


def test_figures_are_of_the_held_out_samples_alone(said: tuple[Path, dict[str, str]]) -> None:
    folder, _ = said
    record = json.loads((folder / "runs/mine/data.json").read_text())
    held_out, trained = set(record["measured_on"]["samples"]), {sample[0] for sample in record["samples"]}
    assert (len(held_out), len(trained), held_out & trained) == (2, 18, set())
    (report,) = folder.rglob("evaluation.json")
    found = json.loads(report.read_text())
    assert (found["settings"]["split"], found["settings"]["held_out"], found["samples"]) == ("val", True, 2)
    proved = Artifact.open(folder / "runs/mine/artifact").golden().inputs["label"]
    size = Image.Resampling.NEAREST
    files = [Image.open(folder / f"labels/{stem}.png").resize((32, 32), size) for stem in sorted(held_out)]
    np.testing.assert_array_equal(proved[:2], np.stack([np.asarray(file) for file in files]))
