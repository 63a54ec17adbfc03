"""Object stores: whole runs with a local S3 server, and everything that can go wrong with a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, FolderBusyError, NotFoundError, SpadeError
from spade_deploy.inference import InferRequest, infer, pipeline
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.workers import LocalWorkers
from spade_deploy.inference.workers.places import Place
from spade_deploy.progress import Silent
from spade_deploy.spec import LabelSpec
from tests.inference.places.test_places import MAPS, NAMES, tar, unpacked
from tests.support.s3 import SECRET, Bucket, s3_server
from tests.support.stand_in import PLAIN, stand_in_artifact


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server() as found:
        for name, content in MAPS.items():
            found.put(f"labels/{name}.png", content)
        yield found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def right(plain: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("right")
    (root / "labels").mkdir()
    for name, content in MAPS.items():
        (root / "labels" / f"{name}.png").write_bytes(content)
    infer(plain, InferRequest(root / "labels", root / "out"))
    return {path.name: path.read_bytes() for path in (root / "out").glob("*.png")}


def images(bucket: Bucket, folder: str) -> dict[str, bytes]:
    return {name: bucket.get(f"{folder}/{name}") for name in bucket.names(folder)}


def lines(bucket: Bucket, folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bucket.get(f"{folder}/{LOG}").splitlines()]


def test_a_bucket_is_a_source_and_a_target_that_is_continued(
    plain: Artifact, bucket: Bucket, right: dict[str, bytes], tmp_path: Path
) -> None:
    request = InferRequest("s3://maps/labels", "s3://maps/whole")
    done = infer(plain, request)
    assert (done.written, done.failures) == (6, ())
    assert images(bucket, "whole") == right
    bucket.fs.rm_file("maps/whole/002.png")
    # Two processes go on where one stopped, and a glob names the same maps.
    again = infer(
        plain,
        InferRequest("s3://maps/labels/*.png", "s3://maps/whole/"),
        crew=LocalWorkers([Place((), 1), Place((), 1)]),
    )
    assert (again.written, again.skipped) == (1, 5)
    assert images(bucket, "whole") == right
    assert {line["id"]: line["sha256"] for line in lines(bucket, "whole")}.keys() == set(NAMES)
    infer(plain, InferRequest("s3://maps/labels", tmp_path / "out"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")} == right
    assert ".lock" not in [path.rpartition("/")[2] for path in bucket.fs.ls("maps/whole", detail=False)]


def test_shards_and_tables_in_a_bucket(
    plain: Artifact, bucket: Bucket, right: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.put("shards/000.tar", tar({f"{name}.png": MAPS[name] for name in NAMES[:3]}))
    bucket.put("shards/001.tar", tar({f"{name}.png": MAPS[name] for name in NAMES[3:]}))
    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"id": NAMES, "label": list(MAPS.values())}), stream, row_group_size=4)
    bucket.put("table.parquet", stream.getvalue().to_pybytes())
    bucket.put("list.txt", "".join(f"labels/{name}.png\n" for name in NAMES).encode())
    for number, source in enumerate(("shards/{000..001}.tar", "shards/*.tar", "table.parquet", "list.txt")):
        infer(plain, InferRequest(f"s3://maps/{source}", tmp_path / str(number)))
        assert {path.name: path.read_bytes() for path in (tmp_path / str(number)).glob("*.png")} == right, source
    for suffix in ("tar", "parquet"):
        request = InferRequest("s3://maps/labels", f"s3://maps/packed-{suffix}/{{000..}}.{suffix}", shard_size=4)
        assert infer(plain, request).written == 6
        again = infer(plain, request)
        assert (again.written, again.skipped) == (0, 6)
        bucket.fs.get(f"maps/packed-{suffix}/", str(tmp_path / suffix), recursive=True)
        assert unpacked(tmp_path / suffix) == right


def test_a_shard_that_is_cut_off_in_a_bucket(plain: Artifact, bucket: Bucket, right: dict[str, bytes]) -> None:
    whole = tar({f"{name}.png": MAPS[name] for name in NAMES[:3]})
    bucket.put("cut/000.tar", whole[: len(whole) // 3])
    bucket.put("cut/001.tar", tar({f"{name}.png": MAPS[name] for name in NAMES[3:]}))
    done = infer(plain, InferRequest("s3://maps/cut/*.tar", "s3://maps/cut-out"))
    made = images(bucket, "cut-out")
    assert made == {name: right[name] for name in made}
    assert {"003.png", "004.png", "005.png"} <= made.keys() < right.keys()
    (failure,) = done.failures
    assert "s3://maps/cut/000.tar" in failure.message
    assert "cut off" in failure.message


def test_a_bucket_that_is_read_only_stops_the_run_before_its_first_image(plain: Artifact, bucket: Bucket) -> None:
    bucket.forbid("s3:PutObject")
    try:
        with pytest.raises(SpadeError, match=r"s3://maps/closed/\.lock cannot be written: ") as caught:
            infer(plain, InferRequest("s3://maps/labels", "s3://maps/closed"))
        assert "may write there" in str(caught.value.hint)
        assert SECRET not in str(caught.value)
    finally:
        bucket.forbid()
    assert infer(plain, InferRequest("s3://maps/labels", "s3://maps/closed")).written == 6


def test_a_bucket_that_becomes_read_only_keeps_what_was_written(
    plain: Artifact, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_REMOTE_WORKERS", 1)  # with sixteen, all six images are on their way at once

    class Closing(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 1:
                bucket.forbid("s3:PutObject")

    request = InferRequest("s3://maps/labels", "s3://maps/closing")
    try:
        with pytest.raises(SpadeError, match=r"cannot be written: .*; \d of 6 images were"):
            infer(plain, request, Closing())
    finally:
        bucket.forbid()
    left = bucket.names("closing")
    assert 1 <= len(left) < 6
    again = infer(plain, request)
    assert (again.skipped, again.written) == (len(left), 6 - len(left))
    assert {line["id"] for line in lines(bucket, "closing")} == set(NAMES), "all have their lines"


def test_an_object_that_may_not_be_read_costs_its_image_alone(plain: Artifact, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s3://maps/labels/000.png\ns3://maps/labels/none.png\n")
    done = infer(plain, InferRequest(tmp_path / "list.txt", tmp_path / "out"))
    assert done.written == 1
    (failure,) = done.failures
    assert failure.message == "s3://maps/labels/none.png: there is no such object"


def test_buckets_that_are_not_there(plain: Artifact, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="s3://nobody/labels: there is nothing there"):
        infer(plain, InferRequest("s3://nobody/labels", tmp_path / "out"))
    with pytest.raises(SpadeError, match=r"s3://nobody/out: .*bucket does not exist"):
        infer(plain, InferRequest("s3://maps/labels", "s3://nobody/out"))


def test_an_endpoint_that_cannot_be_reached(
    plain: Artifact, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with pytest.raises(SpadeError, match=r"s3://maps/labels cannot be read: Could not connect") as caught:
            infer(plain, InferRequest("s3://maps/labels", tmp_path / "out"))
        assert "the same command continues" in caught.value.next_step
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_another_artifact_in_the_same_place_is_refused(
    plain: Artifact, bucket: Bucket, right: dict[str, bytes], tmp_path: Path
) -> None:
    other = stand_in_artifact(tmp_path / "other", replace(PLAIN, labels=LabelSpec(6)))
    request = InferRequest("s3://maps/labels", "s3://maps/mixed")
    infer(plain, request)
    with pytest.raises(ConfigError, match=r"were made in another way.*artifact [0-9a-f]{12}, not [0-9a-f]{12}"):
        infer(other, request)
    assert images(bucket, "mixed") == right
    assert infer(other, replace(request, overwrite=True)).written == 6
    assert not set(images(bucket, "mixed").values()) & set(right.values())


def test_a_place_where_another_run_works_is_refused(plain: Artifact, bucket: Bucket) -> None:
    request = InferRequest("s3://maps/labels", "s3://maps/busy")

    class Second(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 1:
                # Had it no image to make, since all are there by now, it would have nothing to be refused.
                with pytest.raises(FolderBusyError, match=r"another process is working on it: process \d+ on"):
                    infer(plain, replace(request, overwrite=True))

    assert infer(plain, request, Second()).written == 6
    facts = {"pid": 1, "host": "gone", "doing": "nothing", "renewed": 0.0}
    bucket.put("dead/.lock", json.dumps(facts).encode())
    assert infer(plain, InferRequest("s3://maps/labels", "s3://maps/dead")).written == 6


def test_no_secret_is_written_anywhere(plain: Artifact, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        f"s3://tests:{SECRET}@maps/labels/000.png\nhttp://me:{SECRET}@127.0.0.1:9/x.png\n"
    )
    with pytest.raises(SpadeError) as caught:
        infer(plain, InferRequest(tmp_path / "list.txt", tmp_path / "out"))
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    for path in (tmp_path / "out").rglob("*"):
        assert SECRET.encode() not in path.read_bytes()
