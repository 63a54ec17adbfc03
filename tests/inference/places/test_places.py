"""Sources and targets: every one gives the images of a plain folder, byte for byte, and names what it cannot use."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.registry import _registry
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, MissingDependencyError, NotFoundError, SpadeError
from spade_deploy.inference import InferRequest, InferSummary, infer
from spade_deploy.inference.places import packs
from spade_deploy.inference.places.found import Finder
from spade_deploy.inference.places.listed import maps_of
from spade_deploy.inference.places.listing import expanded
from spade_deploy.inference.places.origins import Member, Remote
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.places.tables import Row
from spade_deploy.inference.places.url_store import UrlFolder
from spade_deploy.inference.places.urls import as_place, place_of, without_secrets
from spade_deploy.progress import Silent
from spade_deploy.spec import LabelSpec
from tests.support.stand_in import EDGES, PLAIN, stand_in_artifact

NAMES = [f"{number:03d}" for number in range(6)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    made = {"plain": PLAIN, "edges": EDGES, "other": replace(PLAIN, labels=LabelSpec(6))}
    return {name: stand_in_artifact(tmp_path_factory.mktemp(name), spec) for name, spec in made.items()}


def png(number: int, size: tuple[int, int] = (64, 32)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 5, size).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


MAPS = {name: png(number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "labels"
    folder.mkdir()
    for name, content in MAPS.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def right(models: dict[str, Artifact], labels: Path) -> dict[str, bytes]:
    """The images of the plain folder."""
    infer(models["plain"], InferRequest(labels, labels.parent / "right"))
    return {path.name: path.read_bytes() for path in (labels.parent / "right").glob("*.png")}


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def reasons(summary: InferSummary) -> dict[str, str]:
    return {failure.id: failure.message for failure in summary.failures}


# --- Sources ---------------------------------------------------------------------------------------------------------


def make_source(kind: str, labels: Path, root: Path) -> Path:
    """The maps of `labels` as another kind of source."""
    if kind == "glob":
        for number, name in enumerate(NAMES):
            part = root / "maps" / f"part{number % 2}" / "deep"
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{name}.png").write_bytes(MAPS[name])
        return root / "maps" / "**" / "*.png"
    if kind == "list":
        (root / "near").mkdir()
        (root / "near" / "000.png").write_bytes(MAPS["000"])
        rest = [str(labels / f"{name}.png") for name in NAMES[1:]]
        (root / "list.txt").write_text("\n".join(["# the maps", "near/000.png", "", *rest]) + "\n")
        return root / "list.txt"
    if kind == "shards":
        for number in range(2):
            part = {f"./{name}.png": MAPS[name] for name in NAMES[number::2]}
            photos = {f"./{name}.jpg": b"a photo" for name in NAMES[number::2]}
            (root / f"{number:03d}.tar").write_bytes(tar({**part, **photos, "about.json": b"{}"}))
        return root / "{000..001}.tar"
    parts = (NAMES[:4], NAMES[4:])
    for number, part in enumerate(parts):
        as_struct = [{"bytes": MAPS[name], "path": None} for name in part]
        values = as_struct if kind == "structs" else [MAPS[name] for name in part]
        if kind == "paths":
            values = [str(labels / f"{name}.png") for name in part]
        table = pyarrow.table({"name": part, "map": values})
        pyarrow.parquet.write_table(table, root / f"part-{number}.parquet", row_group_size=3)
    return root / "part-*.parquet"


@pytest.mark.parametrize("kind", ["glob", "list", "shards", "bytes", "structs", "paths"])
def test_every_source_gives_the_images_of_the_folder(
    models: dict[str, Artifact], labels: Path, right: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "source").mkdir()
    source, out = make_source(kind, labels, tmp_path / "source"), tmp_path / "out"
    columns = {"label_column": "map", "id_column": "name"} if str(source).endswith(".parquet") else {}
    request = InferRequest(source, out, **columns)
    done = infer(models["plain"], request)
    assert (done.written, done.failures) == (6, ())
    assert images(out) == right
    (out / "003.png").unlink()
    again = infer(models["plain"], request)
    assert (again.written, again.skipped) == (1, 5)
    assert images(out) == right
    # Any run can be continued by any other: here by that of the plain folder.
    assert infer(models["plain"], InferRequest(labels, out)).skipped == 6


def test_instances_come_with_every_source(models: dict[str, Artifact], tmp_path: Path) -> None:
    maps, instances = ({name: png(n + first, (32, 64)) for n, name in enumerate("abc")} for first in (0, 50))
    for folder, content in (("labels", maps), ("instances", instances)):
        (tmp_path / folder).mkdir()
        for name in content:
            (tmp_path / folder / f"{name}.png").write_bytes(content[name])
    infer(models["edges"], InferRequest(tmp_path / "labels", tmp_path / "right", instances=tmp_path / "instances"))
    members = {f"{name}.label.png": maps[name] for name in maps}
    members |= {f"{name}.instance.png": instances[name] for name in maps}
    (tmp_path / "s.tar").write_bytes(tar(members))
    table = {"id": list(maps), "label": list(maps.values()), "instance": list(instances.values())}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "s.parquet")
    (tmp_path / "s.txt").write_text("".join(f"labels/{name}.png\tinstances/{name}.png\n" for name in maps))
    for suffix in ("tar", "parquet", "txt"):
        infer(models["edges"], InferRequest(tmp_path / f"s.{suffix}", tmp_path / suffix))
        assert images(tmp_path / suffix) == images(tmp_path / "right"), suffix
    for suffix in ("tar", "parquet"):
        refused = InferRequest(tmp_path / f"s.{suffix}", tmp_path / "no", instances=tmp_path / "instances")
        with pytest.raises(ConfigError, match=r"`instances`: .* is not paired with instance maps in other files"):
            infer(models["edges"], refused)
    asked = InferRequest(tmp_path / "labels" / "*.png", tmp_path / "glob", instances=tmp_path / "instances")
    infer(models["edges"], asked)
    assert images(tmp_path / "glob") == images(tmp_path / "right")
    (tmp_path / "none.tar").write_bytes(tar({"a.png": maps["a"]}))
    with pytest.raises(ConfigError, match="this model has an edge channel") as caught:
        infer(models["edges"], InferRequest(tmp_path / "none.tar", tmp_path / "none"))
    assert "NAME.instance.png" in str(caught.value.hint)
    del members["b.instance.png"]
    (tmp_path / "s.tar").write_bytes(tar(members))
    missing = infer(models["edges"], InferRequest(tmp_path / "s.tar", tmp_path / "missing"))
    assert (missing.written, list(reasons(missing))) == (2, ["b"])


def test_in_a_shard_a_label_map_goes_before_the_photo_beside_it(
    models: dict[str, Artifact], right: dict[str, bytes], tmp_path: Path
) -> None:
    members = {
        "000.png": MAPS["003"],
        "000.label.png": MAPS["000"],
        "001.label.png": MAPS["001"],
        "001.png": MAPS["002"],
    }
    (tmp_path / "s.tar").write_bytes(tar(members))
    infer(models["plain"], InferRequest(tmp_path / "s.tar", tmp_path / "out"))
    assert images(tmp_path / "out") == {name: right[name] for name in ("000.png", "001.png")}


def test_a_shard_that_is_cut_off_gives_what_is_before_the_cut(
    models: dict[str, Artifact], right: dict[str, bytes], tmp_path: Path
) -> None:
    whole = tar({f"{name}.png": MAPS[name] for name in NAMES[:4]})
    (tmp_path / "1.tar").write_bytes(tar({f"{name}.png": MAPS[name] for name in NAMES[4:]}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        third = archive.getmembers()[2]
    ends = {"in a member": third.offset_data + 100, "at a header": third.offset, "in a header": third.offset + 100}
    for name, end in ends.items():
        (tmp_path / "0.tar").write_bytes(whole[:end])
        out = tmp_path / f"out {name}"
        done = infer(models["plain"], InferRequest(tmp_path / "{0,1}.tar", out))
        assert images(out) == {f"{one}.png": right[f"{one}.png"] for one in ("000", "001", "004", "005")}, name
        (failure,) = done.failures
        assert "0.tar" in failure.message
        assert "cut off" in failure.message
        assert ("002.png" in failure.message) == (name == "in a member")
        assert [line["id"] for line in lines(out) if line["error"]] == ["0"]
    (tmp_path / "0.tar").write_bytes(whole)
    assert infer(models["plain"], InferRequest(tmp_path / "{0,1}.tar", out)).written == 2


def test_a_broken_member_costs_its_image_alone(models: dict[str, Artifact], tmp_path: Path) -> None:
    members = {"a.png": MAPS["000"], "b.png": MAPS["001"][:60], "c.png": b"", "d.png": MAPS["002"]}
    (tmp_path / "s.tar").write_bytes(tar(members))
    done = infer(models["plain"], InferRequest(tmp_path / "s.tar", tmp_path / "out"))
    assert (done.written, list(reasons(done))) == (2, ["b", "c"])
    assert all("s.tar/" in text for text in reasons(done).values())
    errors = {line["id"]: line["error"] for line in lines(tmp_path / "out")}
    assert errors == {**reasons(done), "a": None, "d": None}


@pytest.mark.parametrize(
    "name", ["../x", "/abs/x", "a/../../b", "a//b", "a/.b", "a\\b", ".hidden", "..", "", "a/", "line\nbreak"]
)
def test_ids_that_lead_elsewhere_are_refused(models: dict[str, Artifact], tmp_path: Path, name: str) -> None:
    table = {"id": ["good", name, None], "label": [MAPS["000"], MAPS["001"], MAPS["002"]]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "s.parquet")
    before = sorted(tmp_path.parent.rglob("*.png"))
    done = infer(models["plain"], InferRequest(tmp_path / "s.parquet", tmp_path / "out"))
    assert done.written == 1
    assert len(done.failures) == 2
    assert (done.total, images(tmp_path / "out").keys()) == (3, {"good.png"})
    assert sorted(tmp_path.parent.rglob("*.png")) == sorted([*before, tmp_path / "out" / "good.png"])


def test_a_label_map_that_a_list_names_twice_is_told_as_that(models: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("000", "001"):
        (tmp_path / f"{name}.png").write_bytes(MAPS[name])
    (tmp_path / "list.txt").write_text("000.png\n001.png\n000.png\n", encoding="utf-8")
    done = infer(models["plain"], InferRequest(tmp_path / "list.txt", tmp_path / "out"))
    assert images(tmp_path / "out").keys() == {"001.png"}
    assert {str(one.message).rpartition(": ")[2] for one in done.failures} == {"it is named more than once"}
    assert {one.hint for one in done.failures} == {"name each label map once"}


def test_ids_that_would_collide_are_refused_all(models: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"same.png": MAPS["000"], "Case.png": MAPS["001"], "one.png": MAPS["002"]}))
    (tmp_path / "1.tar").write_bytes(tar({"same.png": MAPS["003"], "case.png": MAPS["004"], "../x.png": MAPS["005"]}))
    done = infer(models["plain"], InferRequest(tmp_path / "*.tar", tmp_path / "out"))
    assert images(tmp_path / "out").keys() == {"one.png"}
    found = reasons(done)
    assert found.keys() == {"same", "Case", "case", "../x"}
    assert "like that of" in found["same"]
    assert "but for upper and lower case" in found["case"]
    assert "begins with a dot" in found["../x"]
    assert len(done.failures) == 5


def test_what_is_no_source_is_said(models: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for source, said in (
        ("*.none", "there are no files of that pattern"),
        ("x.tar.gz", "plain .tar"),
        ("none.txt", "the list cannot be read"),
    ):
        with pytest.raises(NotFoundError, match=said):
            infer(models["plain"], InferRequest(tmp_path / source, tmp_path / "out"))
    for source in ("x.parquet", "none.tar"):
        done = infer(models["plain"], InferRequest(tmp_path / source, tmp_path / "out"))
        assert (done.written, len(done.failures)) == (0, 1)
    table = pyarrow.table({"id": ["a"], "label": [MAPS["000"]]})
    pyarrow.parquet.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(ConfigError, match="has no column 'map'; it has id, label"):
        infer(models["plain"], InferRequest(tmp_path / "y.parquet", tmp_path / "out", label_column="map"))


def test_braces_and_ranges() -> None:
    assert expanded(Path("s/{08..11}.tar"), "shards") == [Path(f"s/{n}.tar") for n in ("08", "09", "10", "11")]
    assert expanded("s3://b/{x,y}-{0..1}.tar", "shards") == [
        f"s3://b/{a}-{n}.tar" for a, n in (("x", 0), ("x", 1), ("y", 0), ("y", 1))
    ]


def test_places_are_paths_or_urls() -> None:
    assert place_of("s3://bucket/a") == "s3://bucket/a"
    assert as_place(Path("s3://bucket/a")) == "s3://bucket/a"
    assert place_of("file:///tmp/a") == Path("/tmp/a")
    assert place_of("maps/**/*.png") == Path("maps/**/*.png")
    assert place_of("C:/maps") == Path("C:/maps")


def test_messages_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aVerySecretKey")
    said = without_secrets("https://me:pw@host/a.png?X-Amz-Signature=1 failed; key aVerySecretKey, s3://u:p@b/x")
    assert said == "https://host/a.png failed; key ***, s3://b/x"
    assert str(Remote("https://me:pw@host/a.png?sig=1")) == "https://host/a.png"


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("gs://bucket/maps", "gcsfs", "gcsfs"),
        ("hf://datasets/someone/maps/*.png", "huggingface_hub", "huggingface_hub"),
        ("az://box/maps", "adlfs", "adlfs"),
        ("s3://bucket/maps", "s3fs", "'spade-deploy[cloud]'"),
    ],
)
def test_the_package_of_a_store_is_named_where_it_is_missing(
    models: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        infer(models["plain"], InferRequest(url, tmp_path / "out"))
    assert caught.value.message.startswith(f"{url}: a package is missing: ")
    assert caught.value.hint == f"pip install {package}"


def test_a_data_set_on_the_hub_is_read_through_its_package(
    models: dict[str, Artifact], right: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the network: the package's own file system lists and reads what is here."""
    hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
    folder = "datasets/someone/maps/train"
    files = {f"{folder}/{name}.png": content for name, content in MAPS.items()}

    def ls(self: Any, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        assert path.rstrip("/") == folder
        return [{"name": name, "type": "file", "size": len(content)} for name, content in files.items()]

    monkeypatch.setattr(hub.HfFileSystem, "ls", ls)
    monkeypatch.setattr(hub.HfFileSystem, "cat_file", lambda self, path, **_: files[path])
    infer(models["plain"], InferRequest(f"hf://{folder}", tmp_path / "out"))
    assert images(tmp_path / "out") == right


def test_an_object_store_is_waited_for_by_many_threads(
    models: dict[str, Artifact], right: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All six reads, and then all six writes, are on their way at once, which two cores' own threads would not be."""
    fs = fsspec.filesystem("memory")
    for name, content in MAPS.items():
        fs.pipe_file(f"/waited/{name}.png", content)
    reading, writing = threading.Barrier(6, timeout=20), threading.Barrier(6, timeout=20)
    load, take = Remote.load, UrlFolder.take

    def wait_and_load(self: Remote) -> Any:
        reading.wait()
        return load(self)

    def wait_and_take(self: UrlFolder, name: str, content: bytes) -> None:
        if name.endswith(".png"):
            writing.wait()
        take(self, name, content)

    monkeypatch.setattr(Remote, "load", wait_and_load)
    monkeypatch.setattr(UrlFolder, "take", wait_and_take)
    try:
        infer(models["plain"], InferRequest("memory://waited", "memory://waited-out"))
        assert {name: fs.cat_file(f"/waited-out/{name}") for name in right} == right
    finally:
        fs.rm("/", recursive=True)


def test_origins_can_be_pickled(tmp_path: Path) -> None:
    for origin in (Remote("s3://b/x.png"), Member(tmp_path / "a.tar", "x", 1, 2), Row("s3://b/p", "label", 1, 0, 1)):
        assert pickle.loads(pickle.dumps(origin)) == origin


def test_a_large_row_group_is_read_in_parts_and_in_any_order(tmp_path: Path) -> None:
    values = [f"{number}".encode() * 10 for number in range(400)]
    table = pyarrow.table({"id": [str(n) for n in range(400)], "label": values})
    pyarrow.parquet.write_table(table, tmp_path / "big.parquet")
    order = [*range(40), *range(80, 40, -1), 5, 399, 0]
    found = [Row(tmp_path / "big.parquet", "label", n, 0, n).load().content for n in order]
    assert found == [values[n] for n in order]


def test_a_photo_beside_a_map_is_left_out() -> None:
    finder = Finder()
    files = maps_of(((name, Path(name)) for name in ("m/a.png", "m/a.jpg", "m/b.jpg")), finder)
    assert [path for path, _ in files] == ["m/a.png", "m/b.jpg"]
    assert finder.left_out == ["m/a.jpg: a photo (JPEG) beside the label map a.png: left out"]


# --- Targets ---------------------------------------------------------------------------------------------------------


def unpacked(folder: Path) -> dict[str, bytes]:
    """The images in all shards of a folder; none twice."""
    found: list[tuple[str, bytes]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                found += [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
        elif path.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
            assert all(row["file"] == f"{row['id']}.png" for row in rows)
            found += [(row["file"], row["image"]) for row in rows]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_shards_hold_the_images_of_the_folder_and_are_continued(
    models: dict[str, Artifact], labels: Path, right: dict[str, bytes], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "out"
    request = InferRequest(labels, out / f"{{000..}}.{suffix}", shard_size=2)

    class Stop(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 3:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        infer(models["plain"], request, Stop())
    made = unpacked(out)
    assert 3 <= len(made) < 6, "the shard that was begun is there"
    done = infer(models["plain"], request)
    assert (done.skipped, done.written) == (len(made), 6 - len(made))
    assert unpacked(out) == right
    assert infer(models["plain"], request).skipped == 6
    listed = {line["id"]: line for line in lines(out)}
    assert listed.keys() == set(NAMES)
    for name, line in listed.items():
        shard, _, file = line["file"].partition("/")
        assert (out / shard).exists()
        assert file == f"{name}.png"
        assert line["sha256"] == hashlib.sha256(right[f"{name}.png"]).hexdigest()
    with pytest.raises(ConfigError, match="in another way"):
        infer(models["other"], request)
    with pytest.raises(ConfigError, match="images in shards are not replaced"):
        infer(models["plain"], replace(request, overwrite=True))
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]


def test_a_killed_run_loses_no_finished_shard(
    models: dict[str, Artifact], labels: Path, right: dict[str, bytes], tmp_path: Path
) -> None:
    """A shard whose lines are missing from the list is there all the same, and gets its lines."""
    request = InferRequest(labels, tmp_path / "{000..}.tar", shard_size=4)
    infer(models["plain"], request)
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole.splitlines(keepends=True)[0] + b'{"id": "00')
    assert infer(models["plain"], request).skipped == 6
    found = {line["id"]: line["sha256"] for line in lines(tmp_path)}
    assert found == {name: hashlib.sha256(right[f"{name}.png"]).hexdigest() for name in NAMES}


def test_the_names_of_shards() -> None:
    assert packs.pack_parts(Path("out/{0000..}.tar")) == (Path("out"), "{0000..}.tar")
    assert packs.pack_parts(Path("photos.tar")) == (Path(), "photos-{000000..}.tar")
    assert packs.pack_parts("s3://b/x/p-%04d.parquet") == ("s3://b/x", "p-%04d.parquet")
    with pytest.raises(ConfigError, match="more than one number"):
        packs.pack_parts(Path("{0..}-{1..}.tar"))


def test_the_list_says_what_the_files_are(models: dict[str, Artifact], labels: Path, tmp_path: Path) -> None:
    infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    infer(models["plain"], InferRequest(labels, tmp_path / "out", overwrite=True))
    found = lines(tmp_path / "out")
    assert [line["id"] for line in found] == NAMES * 2
    for line in found:
        content = (tmp_path / "out" / line["file"]).read_bytes()
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        assert line["seconds"] > 0
        assert (line["seed"], line["style"], line["error"]) == (None, "none", None)
    (record,) = {line["artifact_sha256"] for line in found}
    assert json.loads((tmp_path / "out" / ".infer.json").read_text())["maker"]["artifact_sha256"] == record


def test_a_run_that_was_killed_before_its_lines_gets_them(
    models: dict[str, Artifact], labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    infer(models["plain"], InferRequest(labels, out))
    whole = lines(out)
    (out / LOG).write_text(json.dumps(whole[0]) + '\n{"id": "00')
    assert infer(models["plain"], InferRequest(labels, out)).skipped == 6
    assert [(line["id"], line["sha256"]) for line in lines(out)] == [(line["id"], line["sha256"]) for line in whole]
    assert [line["seconds"] for line in lines(out)][1:] == [None] * 5


def test_a_disk_that_fills_while_the_list_grows_leaves_whole_lines(
    models: dict[str, Artifact], labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    real = os.write

    def full(file: int, content: bytes) -> int:
        if b'"003"' in content:
            if len(content) > 40:
                return real(file, content[:40])
            raise OSError(errno.ENOSPC, "No space left on device")
        if not content.startswith(b'{"id"') and content.endswith(b"null}\n"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpadeError, match=r"results\.jsonl cannot be written: .*No space left.*; 3 of 6 images were"):
        infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    monkeypatch.undo()
    assert [line["id"] for line in lines(tmp_path / "out")] == NAMES[:3]
    infer(models["plain"], InferRequest(labels, tmp_path / "out"))
    assert {line["id"] for line in lines(tmp_path / "out")} == set(NAMES)
