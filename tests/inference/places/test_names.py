"""Names of images: by stem, or by path where the label maps of several folders have equal stems."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.maker import RECORD
from spade_deploy.inference.places.names import around, before_wildcards, below, chosen, whole
from spade_deploy.inference.places.store import LOG
from spade_deploy.spec import LabelSpec, Naming
from tests.inference.places.test_places import png, reasons, tar, unpacked
from tests.support.served import pixels_of
from tests.support.stand_in import EDGES, PLAIN, stand_in_artifact

CITIES = ("berlin/0001", "berlin/0002", "paris/0001", "paris/day/0001")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("plain"), PLAIN)


def write_maps(root: Path, names: tuple[str, ...] = CITIES) -> Path:
    for number, name in enumerate(names):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


@pytest.fixture(scope="module")
def right(plain: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The image of each map, made alone."""
    root, found = tmp_path_factory.mktemp("right"), {}
    write_maps(root / "maps")
    for name in CITIES:
        infer(plain, InferRequest(root / "maps" / f"{name}.png", root / "one.png", overwrite=True))
        found[f"{name}.png"] = (root / "one.png").read_bytes()
    return found


def made(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def record(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / RECORD).read_text())
    return found


def test_equal_stems_in_several_folders_keep_their_folders(
    plain: Artifact, right: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_maps(tmp_path / "maps")
    (tmp_path / "maps" / "list.txt").write_text("".join(f"{name}.png\n" for name in CITIES))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "far.txt").write_text("".join(f"{tmp_path}/maps/{name}.png\n" for name in reversed(CITIES)))
    monkeypatch.chdir(tmp_path)
    sources = ("maps/**/*.png", "maps/list.txt", tmp_path / "lists" / "far.txt", "./maps/../maps/**/*.png")
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        done = infer(plain, InferRequest(source, out))
        assert (done.written, done.failures) == (4, ()), source
        assert made(out) == right, source
        lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        assert sorted((line["id"], line["file"]) for line in lines) == [(name, f"{name}.png") for name in CITIES]
        assert record(out)["naming"] == "path"
    (out / "paris/0001.png").unlink()
    again = infer(plain, InferRequest("maps/**/*.png", out))
    assert (again.written, again.skipped) == (1, 3)
    # A part of the maps, whose stems differ, goes on in the same way, since the record says so.
    write_maps(tmp_path / "maps", (*CITIES, "berlin/0003"))
    more = infer(plain, InferRequest("maps/{berlin,rome}/*.png", out))
    assert (more.written, more.skipped) == (1, 2)
    assert made(out).keys() == {*right, "berlin/0003.png"}


def test_names_of_stems_stay_what_they_were(plain: Artifact, right: dict[str, bytes], tmp_path: Path) -> None:
    """A folder that an older version began has no word on names in its record: it goes on with stems."""
    write_maps(tmp_path / "maps", ("berlin/0001", "berlin/0002"))
    request = InferRequest(tmp_path / "maps" / "**" / "*.png", tmp_path / "out")
    infer(plain, request)
    assert made(tmp_path / "out").keys() == {"0001.png", "0002.png"}
    old = record(tmp_path / "out")
    assert old.pop("naming") == "stem"
    (tmp_path / "out" / RECORD).write_text(json.dumps(old))
    assert infer(plain, request).skipped == 2
    write_maps(tmp_path / "maps")
    done = infer(plain, request)
    assert (done.written, done.skipped) == (0, 1)
    assert len(done.failures) == 3
    assert "its result would be named '0001', like that of" in reasons(done)["0001"]
    assert {failure.hint for failure in done.failures} == {
        "`names` path keeps the folders of the label maps; the results then need a folder of their own"
    }
    with pytest.raises(ConfigError, match=r"`names`: the images in .* are named by stem, not by path"):
        infer(plain, replace(request, names="path"))
    assert infer(plain, replace(request, names="path", out=tmp_path / "other")).written == 4
    assert made(tmp_path / "other") == right
    with pytest.raises(ConfigError, match="`names`: 'folder' is not one of auto, stem, path"):
        replace(request, names="folder")


def test_the_path_can_be_asked_for_from_the_beginning(plain: Artifact, tmp_path: Path) -> None:
    write_maps(tmp_path / "maps", ("berlin/0001", "paris/0002"))
    request = InferRequest(tmp_path / "maps" / "*" / "*.png", tmp_path / "out", names="path")
    infer(plain, request)
    assert made(tmp_path / "out").keys() == {"berlin/0001.png", "paris/0002.png"}
    assert infer(plain, replace(request, names="auto")).skipped == 2


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_folders_in_shards(plain: Artifact, right: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    """Keys and ids with folders are kept, both where they come from and where they go."""
    maps = {name: png(number) for number, name in enumerate(CITIES)}
    (tmp_path / "s.tar").write_bytes(tar({f"{name}.png": content for name, content in maps.items()}))
    pyarrow.parquet.write_table(pyarrow.table({"id": list(maps), "label": list(maps.values())}), tmp_path / "s.parquet")
    infer(plain, InferRequest(tmp_path / f"s.{suffix}", tmp_path / "out"))
    assert made(tmp_path / "out") == right
    request = InferRequest(tmp_path / f"s.{suffix}", tmp_path / "packed" / f"{{00..}}.{suffix}", shard_size=3)
    infer(plain, request)
    assert unpacked(tmp_path / "packed") == right
    again = infer(plain, request)
    assert (again.written, again.skipped) == (0, 4)
    if suffix == "tar":  # what comes out is what went in, for whoever reads it with its keys
        with tarfile.open(tmp_path / "packed" / "00.tar") as archive:
            assert archive.getnames() == [f"{name}.png" for name in CITIES[:3]]


def test_folders_behind_a_url(plain: Artifact, right: dict[str, bytes], tmp_path: Path) -> None:
    """With fsspec's own memory in the place of a bucket."""
    fs = fsspec.filesystem("memory")
    try:
        for number, name in enumerate(CITIES):
            fs.pipe_file(f"/maps/{name}.png", png(number))
        request = InferRequest("memory://maps/**/*.png", "memory://out")
        assert infer(plain, request).written == 4
        assert {path.removeprefix("/out/"): fs.cat_file(path) for path in fs.find("/out") if ".png" in path} == right
        fs.rm_file("/out/paris/day/0001.png")
        again = infer(plain, request)
        assert (again.written, again.skipped) == (1, 3)
        other = stand_in_artifact(tmp_path / "other", replace(PLAIN, labels=LabelSpec(6)))
        part = replace(request, labels="memory://maps/berlin/*.png", overwrite=True)
        with pytest.raises(ConfigError, match="holds 4 images that were made in another way"):
            infer(other, part)
    finally:
        fs.rm("/", recursive=True)


def test_instance_maps_are_paired_by_their_paths(tmp_path: Path) -> None:
    """With equal stems a pairing by stem would take another city's instance map."""
    edges = stand_in_artifact(tmp_path / "edges", EDGES)
    size = (EDGES.height, EDGES.width)
    for number, name in enumerate(("a/1", "b/1")):
        for folder, seed in (("maps", number), ("instances", 50 + number)):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png(seed, size))
        one = InferRequest(
            tmp_path / "maps" / f"{name}.png",
            tmp_path / f"right{number}.png",
            instances=tmp_path / "instances" / f"{name}.png",
        )
        infer(edges, one)
    wanted = {f"{name}/1.png": (tmp_path / f"right{n}.png").read_bytes() for n, name in enumerate("ab")}
    assert not np.array_equal(*map(pixels_of, wanted.values()))
    for number, instances in enumerate((tmp_path / "instances", tmp_path / "instances" / "**" / "*.png")):
        out = tmp_path / f"out{number}"
        infer(edges, InferRequest(tmp_path / "maps" / "**" / "*.png", out, instances=instances))
        assert made(out) == wanted
    (tmp_path / "instances" / "b" / "1.png").rename(tmp_path / "instances" / "1.png")
    done = infer(edges, InferRequest(tmp_path / "maps/**/*.png", tmp_path / "less", instances=tmp_path / "instances"))
    assert (done.written, list(reasons(done))) == (1, ["b/1"])
    assert "there is no instance map for it" in reasons(done)["b/1"]


def test_results_never_lie_among_the_label_maps(plain: Artifact, tmp_path: Path) -> None:
    before = made(write_maps(tmp_path / "maps"))
    request = InferRequest(tmp_path / "maps" / "**" / "*.png", tmp_path / "maps", overwrite=True)
    with pytest.raises(ConfigError, match=r"maps/\w+ is an input: results would overwrite it"):
        infer(plain, request)
    assert made(tmp_path / "maps") == before
    inside = replace(request, out=tmp_path / "maps" / "out", overwrite=False)
    assert infer(plain, inside).written == 4
    with pytest.raises(ConfigError, match=r"`out`: the pattern .* also names files in .*out/\w+, where results are"):
        infer(plain, inside)


def test_a_file_in_the_place_of_a_folder_costs_its_images_alone(plain: Artifact, tmp_path: Path) -> None:
    write_maps(tmp_path / "maps")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "berlin").write_text("a note of mine")
    done = infer(plain, InferRequest(tmp_path / "maps" / "**" / "*.png", tmp_path / "out"))
    assert (done.written, sorted(reasons(done))) == (2, ["berlin/0001", "berlin/0002"])
    assert (tmp_path / "out" / "berlin").read_text() == "a note of mine"


def test_folders_in_front_of_names() -> None:
    assert before_wildcards(Path("/data/maps/*/x[0-9].png")) == "/data/maps"
    assert before_wildcards("s3://me:pw@bucket/a/{b,c}/*.png") == "bucket/a"
    assert (before_wildcards(Path("**/*.png")), before_wildcards(Path("maps*/1.png"))) == ("", "")
    assert below("/data/maps/a/1", "/data/maps") == "a/1"
    assert below("/data/maps2/a/1", "/data/maps") == "data/maps2/a/1"
    assert around(Path("/data/list.txt"), ["/data/a/1.png", "/data/1.png"]) == "/data"
    assert around(Path("/lists/list.txt"), ["/data/a/1.png", "/data/b/1.png"]) == "/data"
    assert around(Path("/lists/list.txt"), ["/data/a/1.png", "bucket/b/1.png"]) == ""
    assert whole("s3://bucket/a.png?version=2") == "bucket/a.png"


@pytest.mark.parametrize(
    ("paths", "naming"),
    [
        (["a/1", "b/2"], Naming.STEM),
        (["a/1", "b/1"], Naming.PATH),
        (["a/x", "b/X"], Naming.PATH),  # one file where case does not count
        (["a/1", "a/1"], Naming.STEM),  # listed twice: the path would not tell them apart
    ],
)
def test_what_auto_means(paths: list[str], naming: Naming) -> None:
    assert chosen(Naming.AUTO, paths) is naming
    assert chosen(Naming.STEM, paths) is Naming.STEM
    assert chosen(Naming.PATH, paths) is Naming.PATH
