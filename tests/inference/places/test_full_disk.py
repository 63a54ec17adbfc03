"""A disk that is really full: what was made is counted and kept, the error names it, and the run goes on later."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.errors import SpadeError
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.work import Crew, OneProcess
from spade_deploy.inference.workers import LocalWorkers
from spade_deploy.inference.workers.places import Place
from spade_deploy.spec import GeneratorSpec, LabelSpec
from tests.inference.places.test_places import unpacked
from tests.support.small_disk import grow, small_disk
from tests.support.stand_in import stand_in_artifact

SPEC = GeneratorSpec(LabelSpec(250), base_channels=2, hidden_channels=2, height=64, width=64)
COUNT = 40
FULL = r"cannot be written: .*No space left on device.*; \d+ of 40 images were"
SMALL, LARGE = 120_000, 2_000_000
"""The room on the disk: for about 20 of the images, whose files have about 5 kB, and for all of them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("model"), SPEC)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, whose images do not get small."""
    folder = tmp_path_factory.mktemp("labels")
    for number in range(COUNT):
        ids = np.random.default_rng(number).integers(0, 250, (64, 64)).astype(np.uint8)
        Image.fromarray(ids).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def right(model: Artifact, labels: Path) -> dict[str, bytes]:
    infer(model, InferRequest(labels, labels.parent / "right"))
    return {path.name: path.read_bytes() for path in (labels.parent / "right").glob("*.png")}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", SMALL) as folder:
        yield folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def crews() -> dict[str, Crew]:
    return {"one process": OneProcess(), "two workers": LocalWorkers([Place((), 1), Place((), 1)])}


@pytest.mark.parametrize("who", list(crews()))
def test_a_folder_on_a_full_disk(model: Artifact, labels: Path, right: dict[str, bytes], disk: Path, who: str) -> None:
    request = InferRequest(labels, disk / "out")
    with pytest.raises(SpadeError, match=FULL) as caught:
        infer(model, request, crew=crews()[who])
    assert str(disk / "out") in caught.value.message
    assert "free some space" in str(caught.value.hint)
    counted = int(caught.value.message.rpartition(";")[2].split()[0])
    there = {path.name: path.read_bytes() for path in (disk / "out").glob("*.png")}
    assert 5 < len(there) < 35
    assert all(content == right[name] for name, content in there.items()), "half an image got a name"
    # Images that were being written when another one failed are there, and not counted; the next run lists them.
    assert counted <= len(there)
    assert {line["file"] for line in lines(disk / "out")} <= there.keys()
    assert not list((disk / "out").glob(".*.tmp*"))
    grow(disk, LARGE)
    again = infer(model, request, crew=crews()[who])
    assert (again.written, again.skipped) == (COUNT - len(there), len(there))
    assert {path.name: path.read_bytes() for path in (disk / "out").glob("*.png")} == right
    assert {line["file"] for line in lines(disk / "out")} == right.keys()


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_shards_on_a_full_disk(model: Artifact, labels: Path, right: dict[str, bytes], disk: Path, suffix: str) -> None:
    request = InferRequest(labels, disk / "out" / f"{{00..}}.{suffix}", shard_size=7)
    with pytest.raises(SpadeError, match=FULL) as caught:
        infer(model, request)
    counted = int(caught.value.message.rpartition(";")[2].split()[0])
    made = unpacked(disk / "out")
    assert len(made) == counted
    assert counted in (7, 14, 21), "a shard is there whole or not at all"
    assert made == {name: right[name] for name in made}
    assert sorted(line["file"].partition("/")[2] for line in lines(disk / "out")) == sorted(made)
    grow(disk, LARGE)
    again = infer(model, request)
    assert (again.written, again.skipped) == (COUNT - counted, counted)
    assert unpacked(disk / "out") == right


def test_the_command_ends_with_1(model: Artifact, labels: Path, disk: Path) -> None:
    words = ["infer", labels, disk / "out", "--artifact", model.path, "--backend", "cpu"]
    command = [sys.executable, "-m", "spade_deploy", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "of 40 images were" in done.stderr
