"""The embedded data set: the published splits, no overlap between them, and folders that other tools can read."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.images.image_file import read_photo
from spade_deploy.labels import earth
from spade_deploy.labels.files import read_label_map
from spade_deploy.labels.sets import label_set
from tests.support.listener import Listener

LABELS_SHA256 = "5221e4cbbe53d75a891c6ffea797a00735d610e771c20982c9668bf3f1a9e6c6"


def test_the_label_map_is_the_published_one() -> None:
    labels, photo = earth._world()
    assert hashlib.sha256(labels.tobytes()).hexdigest() == LABELS_SHA256
    assert photo.shape == (2700, 5400, 3)


def test_splits_have_the_published_sizes() -> None:
    assert {split: len(earth.earth_tiles(split)) for split in earth.SPLITS} == {"train": 348, "val": 23, "test": 76}
    assert [tile.index for tile in earth.earth_tiles("val")] == list(range(23))


@pytest.mark.parametrize(("size", "stride"), [(128, 64), (96, 50)])
def test_no_pixel_is_in_two_splits(size: int, stride: int) -> None:
    seen = np.zeros((2700, 5400), np.uint8)
    for bit, split in enumerate(earth.SPLITS):
        for tile in earth.earth_tiles(split, size, stride):
            seen[tile.top : tile.top + size, tile.left : tile.left + size] |= 1 << bit
    assert set(np.unique(seen)) == {0, 1, 2, 4}


def test_tiles_stay_between_the_latitudes_and_show_land() -> None:
    for tile in earth.earth_tiles("train"):
        assert 600 <= tile.top <= 2190 - 128
        labels, photo = earth.cut(tile)
        assert labels.shape == (128, 128)
        assert photo.shape == (128, 128, 3)
        assert (labels != 0).mean() > 0.25


def test_a_cut_belongs_to_the_caller() -> None:
    tile = earth.earth_tiles("val")[0]
    earth.cut(tile)[0][:] = 99
    assert earth.cut(tile)[0].max() <= 16


@pytest.mark.parametrize(("split", "size"), [("dev", 128), ("train", 8), ("train", 451)])
def test_impossible_tiles_are_refused(split: str, size: int) -> None:
    with pytest.raises(ConfigError, match="`"):
        earth.earth_tiles(split, size)


@pytest.fixture
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {split: earth.earth_tiles(split)[:2] for split in earth.SPLITS}
    monkeypatch.setattr(earth, "earth_tiles", every.__getitem__)


@pytest.mark.usefixtures("few_tiles")
def test_the_written_folders_are_the_data_set(tmp_path: Path) -> None:
    heard = Listener()
    counts = earth.write_earth(tmp_path / "earth", heard)
    assert counts == {"train": 2, "val": 2, "test": 2, "written": 12}
    assert [(done, total) for _, done, total in heard.counts] == [(n, 6) for n in range(1, 7)]
    for split, tile in product(earth.SPLITS, range(2)):
        labels, photo = earth.cut(earth.earth_tiles(split)[tile])
        label_file = tmp_path / "earth" / split / "labels" / f"{tile:04d}.png"
        np.testing.assert_array_equal(read_label_map(label_file, label_set("earth")), labels)
        np.testing.assert_array_equal(read_photo(tmp_path / "earth" / split / "images" / f"{tile:04d}.png"), photo)
        with Image.open(label_file) as image:
            assert image.getpalette()[:51] == [part for color in label_set("earth").palette for part in color]
    readme = (tmp_path / "earth" / "README.txt").read_text()
    assert "NASA Earth Observatory" in readme
    assert "15  snow and ice" in readme


@pytest.mark.usefixtures("few_tiles")
def test_a_second_call_adds_what_is_missing_and_replaces_nothing(tmp_path: Path) -> None:
    earth.write_earth(tmp_path)
    lost, other = tmp_path / "val" / "labels" / "0001.png", tmp_path / "val" / "images" / "0001.png"
    lost.unlink()
    kept = other.stat().st_mtime_ns
    assert earth.write_earth(tmp_path)["written"] == 1
    assert lost.exists()
    assert other.stat().st_mtime_ns == kept
    Image.new("RGB", (128, 128)).save(other)
    with pytest.raises(DatasetError, match=r"0001\.png: exists with other content"):
        earth.write_earth(tmp_path)
    other.write_text("not an image")
    with pytest.raises(DatasetError, match="not replaced"):
        earth.write_earth(tmp_path)


def test_a_foreign_readme_stops_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("my project")
    with pytest.raises(DatasetError, match=r"README\.txt"):
        earth.write_earth(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        earth.write_example_labels(tmp_path / "file" / "out")


@pytest.mark.usefixtures("few_tiles")
def test_example_labels_are_the_test_split(tmp_path: Path) -> None:
    assert earth.write_example_labels(tmp_path) == earth.write_example_labels(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.png", "0001.png"]
    expected = earth.cut(earth.earth_tiles("test")[1])[0]
    np.testing.assert_array_equal(read_label_map(tmp_path / "0001.png", label_set("earth")), expected)


def test_a_kill_leaves_no_half_of_the_example_labels(tmp_path: Path) -> None:
    """`spade train` writes them where there are none: half of them would stay half for ever."""
    script = (
        "import os, signal, sys; from pathlib import Path; from spade_deploy.labels import earth\n"
        "save, done = earth._save, []\n"
        "def kill(path, image):\n"
        "    save(path, image); done.append(path)\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "earth._save = kill; earth.write_example_labels(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "labels")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "labels").exists()
    assert earth.write_example_labels(tmp_path / "labels") == 76
    assert len(list((tmp_path / "labels").iterdir())) == 76
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_an_empty_file_is_written_again(tmp_path: Path) -> None:
    """As a loss of power leaves it."""
    earth.write_example_labels(tmp_path / "labels")
    before = (tmp_path / "labels" / "0000.png").read_bytes()
    (tmp_path / "labels" / "0000.png").write_bytes(b"")
    earth.write_example_labels(tmp_path / "labels")
    assert (tmp_path / "labels" / "0000.png").read_bytes() == before
