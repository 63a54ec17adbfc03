import errno
import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Arrays, Artifact, Source, Z
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.errors import ConfigError, FolderBusyError, NotFoundError, RuntimeUnavailableError, SpadeError
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.images.image_file import image_size
from spade_deploy.inference import InferRequest, InferSummary, infer, pipeline
from spade_deploy.inference.maker import RECORD
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.png import encode_png
from spade_deploy.labels.files import (
    list_label_files,
    read_instance_map,
    read_label_map,
    resize_nearest,
    synthetic_label_maps,
)
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.spade import SpadeGenerator, make_segmap, to_pixels
from spade_deploy.progress import SILENT, Silent
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision
from tests.support.generators import build_generator
from tests.support.listener import Listener
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, stand_in_artifact

Ids = NDArray[Any]


def write_labels(folder: Path, count: int, size: tuple[int, int], num_ids: int = 5, start: int = 0) -> list[Ids]:
    folder.mkdir(exist_ok=True)
    maps = []
    for number in range(start, start + count):
        ids = np.random.default_rng(number).integers(0, num_ids, size)
        ids = ids.astype(np.uint8 if num_ids <= 256 else np.uint16)
        Image.fromarray(ids).save(folder / f"{number:03d}.png")
        maps.append(ids)
    return maps


def read(path: Path | io.BytesIO) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def names(folder: Path) -> list[str]:
    """Hidden files too: what a stopped write would leave. Without the lock, the record and the list, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, RECORD, LOG))


def pixels(spec: GeneratorSpec, label: Ids, instance: Ids | None = None, z: Ids | None = None) -> NDArray[np.uint8]:
    inputs: Arrays = {LABEL: label[None]}
    if spec.labels.has_edges:
        inputs[INSTANCE] = np.zeros_like(label, np.int32)[None] if instance is None else instance[None]
    if spec.z_dim is not None:
        inputs[Z] = np.zeros((1, spec.z_dim), np.float32) if z is None else z
    return expected(spec, inputs)[PIXELS][0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("edges"), EDGES)


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("styled"), STYLED)


# --- Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_every_label_map_becomes_its_image(plain: Artifact, tmp_path: Path, batch_size: int) -> None:
    maps = write_labels(tmp_path / "labels", 7, (64, 32))
    seen = Listener()
    summary = infer(
        plain, InferRequest(tmp_path / "labels", tmp_path / "new" / "out", batch_size=batch_size), progress=seen
    )
    told = [step.rpartition(" with ")[2] for step in seen.steps]
    calls = [(done, total) for _, done, total in seen.counts]
    assert names(tmp_path / "new" / "out") == [f"{number:03d}.png" for number in range(7)]
    for number, label in enumerate(maps):
        np.testing.assert_array_equal(read(tmp_path / "new" / "out" / f"{number:03d}.png"), pixels(PLAIN, label))
    assert (summary.total, summary.written, summary.skipped, summary.resized, summary.failures) == (7, 7, 0, 0, ())
    assert told == [summary.runtime]
    assert summary.runtime.startswith("ONNX Runtime")
    assert [call[:2] for call in calls] == [(done, 7) for done in range(1, 8)]
    assert summary.images_per_s == pytest.approx(7 / summary.seconds)


def test_sizes_are_batched_without_mixing_names(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "labels"
    maps = [write_labels(labels, 1, (32 * (1 + n % 3 // 2), 32), start=n)[0] for n in range(8)]
    batches: list[tuple[int, ...]] = []
    real = OrtRuntime.run
    monkeypatch.setattr(OrtRuntime, "run", lambda self, i, o=None: batches.append(i[LABEL].shape) or real(self, i, o))
    summary = infer(plain, InferRequest(labels, tmp_path / "out", batch_size=2, resize="never"))
    assert summary.written == 8
    # Heights in the order of the names: 32 32 64 32 32 64 32 32.
    assert batches == [(2, 32, 32), (1, 64, 32), (2, 32, 32), (1, 64, 32), (2, 32, 32)]
    for number, label in enumerate(maps):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), pixels(PLAIN, label))


def test_instances_are_paired_by_stem(edges: Artifact, tmp_path: Path) -> None:
    maps = write_labels(tmp_path / "labels", 3, (32, 64))
    instances = write_labels(tmp_path / "instances", 3, (32, 64), num_ids=40_000, start=0)
    summary = infer(
        edges, InferRequest(tmp_path / "labels", tmp_path / "out", instances=tmp_path / "instances", batch_size=3)
    )
    assert summary.written == 3
    for number, (label, instance) in enumerate(zip(maps, instances, strict=True)):
        right = pixels(EDGES, label, instance.astype(np.int32))
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), right)
        assert (right != pixels(EDGES, label)).any(), "the instance map matters"


def test_no_instances_leaves_the_edge_channel_empty(edges: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (32, 64))
    infer(edges, InferRequest(tmp_path / "labels", tmp_path / "out", no_instances=True))
    np.testing.assert_array_equal(read(tmp_path / "out" / "000.png"), pixels(EDGES, label))


def test_unknown_pixels(edges: Artifact, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    label = np.full((32, 64), 255, np.uint8)
    Image.fromarray(label).save(tmp_path / "labels" / "a.png")
    infer(edges, InferRequest(tmp_path / "labels", tmp_path / "out", no_instances=True))
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), pixels(EDGES, np.full_like(label, 5)))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_one_style_for_every_image_whatever_the_batches(styled: Artifact, tmp_path: Path, batch_size: int) -> None:
    maps = write_labels(tmp_path / "labels", 5, (32, 32), num_ids=300)
    z = np.random.default_rng(7).standard_normal((1, 2), np.float32)
    for seed, style in ((None, None), (7, z)):
        out = tmp_path / f"out-{seed}"
        infer(styled, InferRequest(tmp_path / "labels", out, seed=seed, batch_size=batch_size))
        for number, label in enumerate(maps):
            np.testing.assert_array_equal(read(out / f"{number:03d}.png"), pixels(STYLED, label, z=style))
    first, second = (read(tmp_path / name / "000.png") for name in ("out-None", "out-7"))
    assert (first != second).any()


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_resize_model_is_nearest_and_counted(edges: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    own, other = write_labels(labels, 1, (32, 64)) + write_labels(labels, 1, (50, 75), start=1)
    instances = write_labels(tmp_path / "i", 1, (32, 64), 9) + write_labels(tmp_path / "i", 1, (50, 75), 9, start=1)
    summary = infer(edges, InferRequest(labels, tmp_path / "out", instances=tmp_path / "i", batch_size=2))
    assert (summary.written, summary.resized) == (2, 1)
    for number, (label, instance) in enumerate(zip((own, other), instances, strict=True)):
        small, small_instance = (resize_nearest(ids, (32, 64)) for ids in (label, instance))
        right = pixels(EDGES, small, small_instance.astype(np.int32))
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), right)


def test_another_size_to_run_at(plain: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (64, 32))
    summary = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", size=(96, 160)))
    assert summary.resized == 1
    np.testing.assert_array_equal(read(tmp_path / "out" / "000.png"), pixels(PLAIN, resize_nearest(label, (96, 160))))


def test_resize_never_takes_what_fits_and_reports_the_rest(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 1, (96, 64))
    write_labels(labels, 1, (96, 65), start=1)
    summary = infer(plain, InferRequest(labels, tmp_path / "out", resize="never"))
    assert names(tmp_path / "out") == ["000.png"]
    assert summary.resized == 0
    assert "width 65 is not a multiple of 32; `resize` model resizes it" in summary.failures[0].message


def test_resize_never_with_a_fixed_size(styled: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 1, (64, 64), num_ids=300)
    summary = infer(styled, InferRequest(tmp_path / "labels", tmp_path / "out", resize="never"))
    assert "expected N x 32 x 32" in summary.failures[0].message


# --- One bad file costs that file alone ------------------------------------------------------------------------------


def messages(summary: InferSummary) -> dict[str, str]:
    return {failure.path.name: failure.message for failure in summary.failures}


def damage(path: Path, harm: Callable[[bytes], bytes]) -> None:
    path.write_bytes(harm(path.read_bytes()))


def test_bad_files_are_reported_and_the_rest_is_done(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 6, (64, 32))
    (labels / "001.png").write_bytes((labels / "001.png").read_bytes()[:60])
    (labels / "002.png").write_bytes(b"not an image")
    Image.fromarray(np.full((64, 32), 9, np.uint8)).save(labels / "003.png")
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(labels / "004.png")
    seen = Listener()
    summary = infer(plain, InferRequest(labels, tmp_path / "out", batch_size=4), progress=seen)
    progress = [done for _, done, _ in seen.counts]
    assert names(tmp_path / "out") == ["000.png", "005.png"]
    found = messages(summary)
    assert list(found) == ["001.png", "002.png", "003.png", "004.png"]
    assert "ids out of range: 9 (2048 pixels)" in found["003.png"]
    assert all(str(labels / name) in message for name, message in found.items())
    assert (summary.total, summary.written) == (6, 2)
    assert progress == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_three_bad_files_among_forty(plain: Artifact, tmp_path: Path, batch_size: int) -> None:
    labels = tmp_path / "labels"
    maps = write_labels(labels, 40, (64, 32))
    damage(labels / "007.png", lambda content: content[: len(content) // 2])
    damage(labels / "008.png", lambda content: content[:50] + bytes([content[50] ^ 0xFF]) + content[51:])
    Image.fromarray(np.full((64, 32), 5, np.uint8)).save(labels / "039.png")
    summary = infer(plain, InferRequest(labels, tmp_path / "out", batch_size=batch_size))
    assert list(messages(summary)) == ["007.png", "008.png", "039.png"]
    assert (summary.total, summary.written) == (40, 37)
    for number, label in enumerate(maps):
        result = tmp_path / "out" / f"{number:03d}.png"
        assert result.exists() == (number not in (7, 8, 39))
        if result.exists():
            np.testing.assert_array_equal(read(result), pixels(PLAIN, label))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: content[:8], "damaged"),
        (lambda content: content[:40], "damaged"),
        (lambda content: content[:-30], "damaged"),
        (lambda content: content[:16] + b"\0\1\0\0" * 2 + content[24:], "damaged|more than"),
        (lambda content: b"\xff\xd8\xff" + content[3:], "damaged|JPEG"),
    ],
    ids=["empty", "signature", "header", "tail", "size", "kind"],
)
def test_a_damaged_instance_map_costs_its_image_alone(
    edges: Artifact, tmp_path: Path, harm: Callable[[bytes], bytes], reason: str
) -> None:
    write_labels(tmp_path / "labels", 2, (32, 64))
    write_labels(tmp_path / "instances", 2, (32, 64), num_ids=40_000)
    damage(tmp_path / "instances" / "000.png", harm)
    summary = infer(
        edges, InferRequest(tmp_path / "labels", tmp_path / "out", instances=tmp_path / "instances", batch_size=2)
    )
    assert names(tmp_path / "out") == ["001.png"]
    (failure,) = summary.failures
    assert failure.path == tmp_path / "labels" / "000.png"
    assert str(tmp_path / "instances" / "000.png") in failure.message
    assert re.search(reason, failure.message)


def test_a_failure_says_what_to_do_next(plain: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 1, (64, 32), num_ids=40)
    (failure,) = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out")).failures
    assert "check-labels" in (failure.hint or "")


def test_a_size_that_the_runtime_cannot_take_costs_its_files_alone(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, for one; at the model's own size it stops at once, as every other file would fail too."""
    labels = tmp_path / "labels"
    write_labels(labels, 4, (64, 32))
    write_labels(labels, 2, (96, 96), start=4)
    real = OrtRuntime.run

    def run(self: OrtRuntime, inputs: Arrays, output_names: Any = None) -> Arrays:
        if inputs[LABEL].shape[1] == refused:
            raise RuntimeUnavailableError("bad allocation", hint="a smaller --size")
        return real(self, inputs, output_names)

    monkeypatch.setattr(OrtRuntime, "run", run)
    refused = 96
    summary = infer(plain, InferRequest(labels, tmp_path / "out", resize="never", batch_size=2))
    assert (summary.total, summary.written) == (6, 4)
    assert list(messages(summary)) == ["004.png", "005.png"]
    assert "bad allocation" in summary.failures[0].message
    refused = 64
    with pytest.raises(RuntimeUnavailableError, match="bad allocation"):
        infer(plain, InferRequest(labels, tmp_path / "other"))


def test_instances_that_do_not_pair(edges: Artifact, tmp_path: Path) -> None:
    labels, instances = tmp_path / "labels", tmp_path / "instances"
    write_labels(labels, 4, (32, 64))
    write_labels(instances, 1, (32, 64))
    write_labels(instances, 1, (64, 32), start=1)
    write_labels(instances, 1, (32, 64), start=3)
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(instances / "003.bmp")
    summary = infer(edges, InferRequest(labels, tmp_path / "out", instances=instances))
    assert names(tmp_path / "out") == ["000.png"]
    found = messages(summary)
    assert "has 64 x 32 pixels, its label map 32 x 64" in found["001.png"]
    assert "there is no instance map for it in" in found["002.png"]
    assert re.search(r"003 occurs 2 times: .*003\.bmp, .*003\.png", found["003.png"])


def test_two_label_files_of_one_stem(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 2, (64, 32))
    Image.fromarray(np.zeros((64, 32), np.uint8)).save(labels / "000.bmp")
    summary = infer(plain, InferRequest(labels, tmp_path / "out"))
    assert names(tmp_path / "out") == ["001.png"]
    assert list(messages(summary)) == ["000.bmp", "000.png"]
    assert re.search(r"000 occurs 2 times: .*000\.bmp, .*000\.png", messages(summary)["000.png"])


# --- Stopping and going on -------------------------------------------------------------------------------------------


def test_results_that_are_there_are_skipped(plain: Artifact, tmp_path: Path) -> None:
    maps = write_labels(tmp_path / "labels", 3, (64, 32))
    out = tmp_path / "out"
    infer(plain, InferRequest(tmp_path / "labels" / "000.png", out))
    Image.new("RGB", (32, 64), "red").save(out / "001.png")
    mine = (out / "001.png").read_bytes()
    first = infer(plain, InferRequest(tmp_path / "labels", out))
    assert (first.written, first.skipped, (out / "001.png").read_bytes()) == (1, 2, mine)
    times = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    (out / "002.png").unlink()
    second = infer(plain, InferRequest(tmp_path / "labels", out))
    assert (second.written, second.skipped) == (1, 2)
    assert {name for name, at in times.items() if (out / name).stat().st_mtime_ns != at} == {"002.png"}
    third = infer(plain, InferRequest(tmp_path / "labels", out))
    assert (third.written, third.skipped, third.runtime) == (0, 3, ""), "nothing to do loads nothing"
    last = infer(plain, InferRequest(tmp_path / "labels", out, overwrite=True))
    assert (last.written, last.skipped) == (3, 0)
    np.testing.assert_array_equal(read(out / "001.png"), pixels(PLAIN, maps[1]))


def in_place(out: Path, kind: str, image_format: str) -> None:
    """Put something where the result of 001.png belongs."""
    place = out / f"001.{image_format}"
    whole = out / f"whole.{image_format}"
    Image.new("RGB", (32, 64), "red").save(whole)
    content = whole.read_bytes()
    whole.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "dangling link":
        place.symlink_to("nowhere")
    else:
        cut = {"empty": b"", "cut": content[:-1], "half": content[: len(content) // 2], "begun": content[:1]}
        place.write_bytes({**cut, "somebody's": b"a poem", "zeros": bytes(200)}[kind])


@pytest.mark.parametrize("image_format", ["png", "jpg"])
class TestWhatLiesInThePlaceOfAResult:
    @pytest.mark.parametrize("kind", ["empty", "begun", "half", "cut", "dangling link"])
    def test_a_result_that_was_never_finished_is_made_again(
        self, plain: Artifact, tmp_path: Path, kind: str, image_format: str
    ) -> None:
        write_labels(tmp_path / "labels", 3, (64, 32))
        (tmp_path / "out").mkdir()
        in_place(tmp_path / "out", kind, image_format)
        done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format=image_format))
        assert (done.written, done.skipped, done.failures) == (3, 0, ())
        assert read(tmp_path / "out" / f"001.{image_format}").shape == (64, 32, 3)
        assert infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format=image_format)).skipped == 3

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("folder", "is a folder, not a regular file"),
            ("pipe", "is a pipe, not a regular file"),
            ("device", "is a device, not a regular file"),
            ("somebody's", "may be another file of yours"),
            ("zeros", "may be another file of yours"),
        ],
    )
    def test_what_is_no_result_is_reported_and_the_rest_is_done(
        self, plain: Artifact, tmp_path: Path, kind: str, said: str, image_format: str
    ) -> None:
        write_labels(tmp_path / "labels", 3, (64, 32))
        (tmp_path / "out").mkdir()
        in_place(tmp_path / "out", kind, image_format)
        done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format=image_format))
        assert (done.written, done.skipped) == (2, 0)
        (found,) = done.failures
        assert said in found.message
        assert found.path.name == "001.png"
        assert found.hint is not None
        again = infer(
            plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format=image_format, overwrite=True)
        )
        is_file = kind in ("somebody's", "zeros")
        assert (again.written, len(again.failures)) == ((3, 0) if is_file else (2, 1))


@pytest.mark.parametrize("stem", ["a" * 251, "漢" * 83 + "xy", "a" * 240, "漢" * 80])
def test_a_long_name_that_fits_has_its_result(plain: Artifact, tmp_path: Path, stem: str) -> None:
    write_labels(tmp_path / "labels", 2, (64, 32))
    (tmp_path / "labels" / "000.png").rename(tmp_path / "labels" / f"{stem}.png")
    done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
    assert (done.written, done.failures) == (2, ())
    assert names(tmp_path / "out") == sorted(["001.png", f"{stem}.png"])


def test_a_name_that_does_not_fit_with_its_suffix_is_reported_and_the_rest_is_done(
    plain: Artifact, tmp_path: Path
) -> None:
    write_labels(tmp_path / "labels", 3, (64, 32))
    (tmp_path / "labels" / "000.png").rename(tmp_path / "labels" / ("b" * 251 + ".png"))
    for written in (2, 0):
        done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format="jpeg"))
        assert done.written == written
        (found,) = done.failures
        assert "would have a name of 256 bytes" in found.message
        assert found.hint == "give the label map a shorter name"


def test_a_path_that_is_too_long_costs_its_file_alone(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems and paths have limits that no name tells."""
    write_labels(tmp_path / "labels", 3, (64, 32))
    write = Path.write_bytes

    def too_long(path: Path, content: bytes) -> int:
        if "001" in path.name:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", too_long)
    done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
    assert done.written == 2
    assert "001.png: its result cannot be written: File name too long" in done.failures[0].message
    assert names(tmp_path / "out") == ["000.png", "002.png"]


def test_a_second_infer_into_the_same_folder_is_refused(plain: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 2, (64, 32))
    with locked(tmp_path / "out", "making other images"):
        with pytest.raises(FolderBusyError, match="making other images"):
            infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
        assert infer(plain, InferRequest(tmp_path / "labels" / "001.png", tmp_path / "out")).written == 1
    assert infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out")).skipped == 1


def test_a_listener_that_raises_loses_no_image(plain: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 20, (64, 32))
    threads = threading.active_count()

    class Raising(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 5:
                raise RuntimeError("the screen is gone")

    with pytest.raises(RuntimeError, match="the screen is gone"):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), Raising())
    assert threading.active_count() == threads
    left = names(tmp_path / "out")
    assert 5 <= len(left) < 20
    assert all(read(tmp_path / "out" / name).shape == (64, 32, 3) for name in left)
    summary = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
    assert (summary.skipped, summary.written) == (len(left), 20 - len(left))


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("where", ["progress", "model"])
def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_labels(tmp_path / "labels", 40, (64, 32))
    threads, calls, real = threading.active_count(), [0], OrtRuntime.run

    def interrupt(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == 8:
            signal.raise_signal(signal.SIGINT)

    class Interrupting(Silent):
        def count(self, *_: Any) -> None:
            interrupt()

    def run(*arguments: Any) -> Arrays:
        interrupt()
        return real(*arguments)

    progress = Interrupting() if where == "progress" else SILENT
    with monkeypatch.context() as patch:
        if where == "model":
            patch.setattr(OrtRuntime, "run", run)
        with pytest.raises(KeyboardInterrupt):
            infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), progress=progress)
    assert threading.active_count() == threads
    left = names(tmp_path / "out")
    assert 1 <= len(left) < 40
    assert all(name.endswith(".png") and not name.startswith(".") for name in left)
    assert all(read(tmp_path / "out" / name).shape == (64, 32, 3) for name in left)
    summary = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
    assert (summary.skipped, summary.written) == (len(left), 40 - len(left))


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_does_not_wait_for_what_has_not_begun(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps and images that wait in the queues are dropped; each worker ends what it has in hand."""
    write_labels(tmp_path / "labels", 40, (64, 32))
    begun, real = [], Folder.take

    def slow_write(folder: Folder, name: str, content: bytes) -> None:
        begun.append(name)
        time.sleep(0.05)
        real(folder, name, content)

    at_interrupt: list[int] = []

    def run(*arguments: Any) -> Arrays:
        if len(begun) >= 2:
            at_interrupt.append(len(begun))
            signal.raise_signal(signal.SIGINT)
        return real_run(*arguments)

    real_run = OrtRuntime.run
    monkeypatch.setattr(Folder, "take", slow_write)
    monkeypatch.setattr(OrtRuntime, "run", run)
    with pytest.raises(KeyboardInterrupt):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", batch_size=4))
    # Another one each may have begun between the signal and the order to stop.
    assert len(begun) <= at_interrupt[0] + workers()
    assert names(tmp_path / "out") == sorted(begun)


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_a_full_disk_stops_with_a_clear_error(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    write_labels(tmp_path / "labels", 20, (64, 32))
    real_write, saved = Path.write_bytes, []

    def write_bytes(path: Path, content: bytes) -> None:
        saved.append(path)
        real_write(path, content if len(saved) <= 3 else content[:100])
        if len(saved) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(SpadeError, match=r"003\.\w+ cannot be written: .*No space left on device.*; 3 of 20") as caught:
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", image_format=image_format))
    assert "the same command continues" in (caught.value.hint or "")
    assert len(saved) < 20, "it stops instead of trying every file"
    assert names(tmp_path / "out") == [f"{number:03d}.{image_format}" for number in range(3)]


def workers() -> int:
    """Threads that decode, and as many that encode."""
    return max(1, min(pipeline._MAX_WORKERS, (pipeline.os.cpu_count() or 2) // 2))


@pytest.mark.parametrize("is_bounded", [True, False], ids=["bounded", "counter-test"])
def test_memory_does_not_grow_with_the_folder(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_bounded: bool
) -> None:
    """Never more decoded maps and unwritten images than the queues hold, while writing is the slow part."""
    write_labels(tmp_path / "labels", 200, (32, 32))
    lock, alive, most = threading.Lock(), [0], [0]
    real_read, real_write, real_init = pipeline.Reader.read, Folder.take, pipeline.Pipeline.__init__

    def count_read(self: Any, job: Any) -> Any:
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return real_read(self, job)

    def count_write(folder: Folder, name: str, content: bytes) -> None:
        time.sleep(0.003)
        real_write(folder, name, content)
        with lock:
            alive[0] -= 1

    def unbounded(self: Any, *arguments: Any, **more: Any) -> None:
        real_init(self, *arguments, **more)
        self._ahead = self._unwritten = 1000

    monkeypatch.setattr(pipeline.Reader, "read", count_read)
    monkeypatch.setattr(Folder, "take", count_write)
    if not is_bounded:
        monkeypatch.setattr(pipeline.Pipeline, "__init__", unbounded)
    assert infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", size=(32, 32), batch_size=2)).written == 200
    # What is read ahead, what waits to be written, and the batch that runs; measured 11 of the 12 that two cores allow.
    bound = 2 * (2 * 2 + workers()) + 2
    assert (2 < most[0] <= bound) if is_bounded else (most[0] > 5 * bound)


# --- Where results go ------------------------------------------------------------------------------------------------


def test_a_single_file(plain: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (64, 32))
    file = tmp_path / "labels" / "000.png"
    infer(plain, InferRequest(file, tmp_path / "folder"))
    infer(plain, InferRequest(file, tmp_path / "deep" / "named.png"))
    infer(plain, InferRequest(file, tmp_path / "labels" / "beside.png"))
    for result in (
        tmp_path / "folder" / "000.png",
        tmp_path / "deep" / "named.png",
        tmp_path / "labels" / "beside.png",
    ):
        np.testing.assert_array_equal(read(result), pixels(PLAIN, label))


def test_a_single_file_with_its_instance_map(edges: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (32, 64))
    (instance,) = write_labels(tmp_path / "other", 1, (32, 64), num_ids=40, start=9)
    infer(
        edges,
        InferRequest(tmp_path / "labels" / "000.png", tmp_path / "out.png", instances=tmp_path / "other" / "009.png"),
    )
    np.testing.assert_array_equal(read(tmp_path / "out.png"), pixels(EDGES, label, instance.astype(np.int32)))


def test_jpeg(plain: Artifact, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 32), 3, np.uint8)).save(tmp_path / "a.png")
    infer(plain, InferRequest(tmp_path / "a.png", tmp_path / "out", image_format="jpg"))
    found = read(tmp_path / "out" / "a.jpg").astype(int)
    # One flat colour at quality 95: measured worst difference 1.
    assert np.abs(found - pixels(PLAIN, np.full((64, 32), 3, np.uint8))).max() <= 2


def test_results_never_overwrite_inputs(plain: Artifact, edges: Artifact, tmp_path: Path) -> None:
    labels, instances = tmp_path / "labels", tmp_path / "instances"
    write_labels(labels, 1, (32, 64))
    write_labels(instances, 1, (32, 64))
    (tmp_path / "link").symlink_to(labels)
    before = (labels / "000.png").read_bytes()
    for source, out in (
        (labels, labels),
        (labels, tmp_path / "link"),
        (labels, instances),
        (labels / "000.png", labels),
        (labels / "000.png", labels / "000.png"),
        (labels / "000.png", instances),
        (labels / "000.png", instances / "000.png"),
    ):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is an input: results would overwrite it"):
                infer(edges, InferRequest(source, out, instances=instances, overwrite=overwrite))
    assert (labels / "000.png").read_bytes() == before
    assert names(labels) == names(instances) == ["000.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size`: 0"),
        ({"size": (64, 50)}, "`size`: 50 of 64x50 is not a multiple of 32"),
        ({"size": (64, 0)}, "`size`: 0 of 64x0"),
        ({"size": (64, 64), "resize": "never"}, "`size` and `resize` never contradict"),
        ({"resize": "crop"}, "`resize`: 'crop' is not one of model, never"),
        ({"seed": 1}, "`seed`: this model has no style vector"),
        ({"image_format": "webp"}, "`image_format`: 'webp'"),
        ({"instances": Path("x")}, "`instances`: this model has no edge channel"),
        ({"no_instances": True}, "`no_instances`: this model has no edge channel"),
        ({"backend": "tpu"}, "`backend`: 'tpu'"),
    ],
)
def test_impossible_requests_name_the_field(
    plain: Artifact, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_labels(tmp_path / "labels", 1, (64, 32))
    with pytest.raises(ConfigError) as caught:
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out", **options))
    assert message in str(caught.value)


def test_impossible_requests_of_other_models(edges: Artifact, styled: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 1, (32, 64))
    with pytest.raises(ConfigError, match="`instances`: this model has an edge channel") as caught:
        infer(edges, InferRequest(labels, tmp_path / "out"))
    assert "`no_instances`" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="`instances` and `no_instances` contradict"):
        infer(edges, InferRequest(labels, tmp_path / "out", instances=labels, no_instances=True))
    with pytest.raises(ConfigError, match="is a file, but"):
        infer(edges, InferRequest(labels, tmp_path / "out", instances=labels / "000.png"))
    with pytest.raises(ConfigError, match="`size`: this model runs at 32x32 only"):
        infer(styled, InferRequest(labels, tmp_path / "out", size=(64, 64)))
    with pytest.raises(ConfigError, match="`seed`: -1 is negative"):
        infer(styled, InferRequest(labels, tmp_path / "out", seed=-1))


def test_nothing_to_work_on(plain: Artifact, edges: Artifact, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_labels(tmp_path / "labels", 1, (64, 32))
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="does not exist"):
        infer(plain, InferRequest(tmp_path / "missing", tmp_path / "out"))
    with pytest.raises(NotFoundError, match=r"`instances`: .*missing does not exist"):
        infer(edges, InferRequest(tmp_path / "labels", tmp_path / "out", instances=tmp_path / "missing"))
    with pytest.raises(NotFoundError, match="holds no label maps"):
        infer(plain, InferRequest(tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(ConfigError, match="is a file"):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"written as \.png, \.jpg, \.jpeg, not as \.webp"):
        infer(plain, InferRequest(tmp_path / "labels" / "000.png", tmp_path / "a.webp"))
    with pytest.raises(SpadeError, match="cannot be made"):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "file" / "out"))


# --- Layouts, photos beside label maps, palettes ---------------------------------------------------------------------

CITY = GeneratorSpec(label_set("cityscapes"), base_channels=2, height=32, width=64)


def test_cityscapes_official_files_get_their_own_instance_maps(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "city", CITY)
    place = tmp_path / "root" / "gtFine" / "val" / "ulm"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    expectations = {}
    for number in range(2):
        label = rng.integers(0, 34, (32, 64)).astype(np.uint8)
        instance = rng.integers(0, 40_000, (32, 64)).astype(np.uint16)
        stem = f"ulm_00000{number}_000019"
        for kind, values in (("labelIds", label), ("instanceIds", instance), ("labelTrainIds", label % 19)):
            Image.fromarray(values).save(place / f"{stem}_gtFine_{kind}.png")
        expectations[f"{stem}.png"] = pixels(CITY, label, instance.astype(np.int32))
        assert (expectations[f"{stem}.png"] != pixels(CITY, label, label.astype(np.int32))).any()
    for number, (labels, instances) in enumerate(
        ((place, place), (place, None), (tmp_path / "root", None), (tmp_path / "root", tmp_path / "root"))
    ):
        out = tmp_path / f"out{number}"
        summary = infer(artifact, InferRequest(labels, out, instances=instances))
        assert (summary.written, summary.failures) == (2, ())
        assert names(out) == list(expectations)
        for name, right in expectations.items():
            np.testing.assert_array_equal(read(out / name), right)


def test_a_label_map_is_not_its_own_instance_map(edges: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 2, (32, 64))
    summary = infer(edges, InferRequest(tmp_path / "labels", tmp_path / "out", instances=tmp_path / "labels"))
    assert summary.written == 0
    assert all("is the label map itself" in message for message in messages(summary).values())
    assert list(messages(summary)) == ["000.png", "001.png"]


def test_results_of_a_layout_never_overwrite_its_files(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "facades", replace(CITY, labels=label_set("facades")))
    root = tmp_path / "root"
    for split in ("train", "test"):
        (root / f"{split}_label").mkdir(parents=True)
        write_labels(root / f"{split}_label", 1, (32, 64))
    with pytest.raises(ConfigError, match="is an input"):
        infer(artifact, InferRequest(root, root / "test_label", overwrite=True))
    summary = infer(artifact, InferRequest(root, tmp_path / "out"))
    assert summary.written == 0  # both splits have a 000
    assert all("would have the same name as that of" in failure.message for failure in summary.failures)


def test_photos_beside_label_maps_are_left_out_and_said(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 2, (64, 32))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3)).astype(np.uint8))
    photo.save(labels / "000.jpg")
    summary = infer(plain, InferRequest(labels, tmp_path / "out"))
    assert (summary.written, summary.failures, summary.total) == (2, (), 2)
    assert summary.left_out == (f"{labels / '000.jpg'}: a photo (JPEG) beside the label map 000.png: left out",)
    photo.save(labels / "lone.jpg")
    summary = infer(plain, InferRequest(labels, tmp_path / "out", overwrite=True))
    assert "is a JPEG" in messages(summary)["lone.jpg"]
    assert "photo?" in messages(summary)["lone.jpg"]


def test_a_palette_that_speaks_against_its_indices_is_said(plain: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (64, 32), num_ids=4)
    image = Image.fromarray(label)
    image.putpalette([grey for grey in (0, 1, 3, 4) for _ in range(3)])
    image.save(tmp_path / "labels" / "grey.png")
    summary = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"))
    assert names(tmp_path / "out") == ["000.png"]
    assert "the palette is of greys other than their index: index 2 is the grey 3" in messages(summary)["grey.png"]


def test_links_that_lead_nowhere_and_pipes_are_said(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 1, (64, 32))
    (labels / "none.png").symlink_to(tmp_path / "none")
    (labels / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(labels / "pipe.png")
    summary = infer(plain, InferRequest(labels, tmp_path / "out"))
    assert names(tmp_path / "out") == ["000.png"]
    assert list(messages(summary)) == ["none.png", "pipe.png", "zero.png"]
    assert summary.total == 4


# --- The PNG encoder -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["isal", "zlib"])
def compressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the encoder compresses with; the extra `serve` brings isal."""
    if request.param == "isal":
        pytest.importorskip("isal", reason="pip install 'spade-deploy[serve]'")
    else:
        monkeypatch.setattr("spade_deploy.inference.png.isal_zlib", None)


@pytest.mark.usefixtures("compressor")
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 65)])
def test_png_is_lossless(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(io.BytesIO(encode_png(image))), image)
    wide = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous
    np.testing.assert_array_equal(read(io.BytesIO(encode_png(wide))), image)


@pytest.mark.usefixtures("compressor")
def test_png_is_about_as_small_as_pillow_makes_it() -> None:
    rows, columns = np.mgrid[:128, :128]
    noise = np.random.default_rng(0).normal(0, 2, (128, 128, 3))
    smooth = np.stack([rows, columns, rows + columns], axis=2) * 0.8 + 20 + noise
    image = smooth.clip(0, 255).astype(np.uint8)
    pillow = io.BytesIO()
    Image.fromarray(image).save(pillow, "PNG", compress_level=1)
    # Measured 0.85 of Pillow's size with zlib, 0.94 with isal; without the filter it would be 1.64 of it.
    assert len(encode_png(image)) < 1.1 * len(pillow.getvalue())


# --- Real exports ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """An artifact, and the untouched PyTorch module that it was made of."""

    artifact: Artifact
    generator: SpadeGenerator

    def pixels(self, label: Ids, instance: Ids | None = None, z: Ids | None = None) -> NDArray[np.uint8]:
        return to_pixels(self.image(label, instance, z)).numpy()[0]

    def image(self, label: Ids, instance: Ids | None = None, z: Ids | None = None) -> torch.Tensor:
        label, instance, z = (None if array is None else torch.tensor(array) for array in (label, instance, z))
        with torch.inference_mode():
            segmap = make_segmap(label[None], None if instance is None else instance[None], self.generator.spec.labels)
            return self.generator(segmap, z)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two libraries that each want all cores wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def export(folder: Path, **spec_fields: Any) -> Exported:
    generator = build_generator(base_channels=4, hidden_channels=8, **spec_fields)
    spec = generator.spec
    ids, regions = synthetic_label_maps(spec.labels, spec.height, spec.width, 1, seed=0)
    inputs: Arrays = {LABEL: ids}
    if spec.labels.has_edges:
        inputs[INSTANCE] = regions
    if spec.z_dim is not None:
        inputs[Z] = np.zeros((1, spec.z_dim), np.float32)
    source = Source("tiny", None, "train", "0" * 64)
    export_artifact(generator, folder, ExportRequest(precisions=[Precision.FP32], golden_inputs=inputs, source=source))
    return Exported(Artifact.open(folder), generator)


@pytest.fixture(scope="module")
def coco_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("coco"), labels=LabelSpec(182, has_dontcare=True, has_edges=True))


@pytest.fixture(scope="module")
def vae_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("vae"), labels=LabelSpec(5), z_dim=16)


def assert_same_pixels(found: NDArray[np.uint8], right: NDArray[np.uint8]) -> None:
    """Equal but for values on the edge of truncation, which rounding in float32 tips over by one."""
    difference = np.abs(found.astype(int) - right)
    assert difference.max() <= 1
    # Measured over all calls of this file: at most 1.6e-4 of the values; rounded instead of truncated: 0.49.
    assert (difference > 0).mean() <= 0.002


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_real_export_gives_the_modules_pixels(coco_model: Exported, tmp_path: Path, batch_size: int) -> None:
    spec = coco_model.generator.spec
    ids, regions = synthetic_label_maps(spec.labels, 64, 64, 4, seed=3)
    for name, arrays in (("labels", ids), ("instances", (regions * 3000).astype(np.uint16))):
        (tmp_path / name).mkdir()
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / name / f"{number}.png")
    infer(
        coco_model.artifact,
        InferRequest(
            tmp_path / "labels", tmp_path / "out", instances=tmp_path / "instances", batch_size=batch_size, threads=1
        ),
    )
    for number, (label, region) in enumerate(zip(ids, regions, strict=True)):
        found = read(tmp_path / "out" / f"{number}.png")
        assert_same_pixels(found, coco_model.pixels(label, region))
        rounded = ((coco_model.image(label, region) + 1) / 2 * 255).round().permute(0, 2, 3, 1).numpy()[0]
        with pytest.raises(AssertionError):
            assert_same_pixels(found, rounded.astype(np.uint8))
        with pytest.raises(AssertionError):
            assert_same_pixels(found, coco_model.pixels(ids[number - 1], regions[number - 1]))


def test_instance_ids_beyond_8_bits_make_edges(coco_model: Exported, tmp_path: Path) -> None:
    label = np.zeros((64, 64), np.uint8)
    instance = np.full((64, 64), 1, np.uint16)
    instance[:, 32:] = 257  # in 8 bits the same object
    Image.fromarray(label).save(tmp_path / "label.png")
    Image.fromarray(instance).save(tmp_path / "instance.png")
    infer(
        coco_model.artifact,
        InferRequest(tmp_path / "label.png", tmp_path / "out.png", instances=tmp_path / "instance.png", threads=1),
    )
    found = read(tmp_path / "out.png")
    assert_same_pixels(found, coco_model.pixels(label, instance.astype(np.int32)))
    without = coco_model.pixels(label, instance.astype(np.uint8).astype(np.int32))
    with pytest.raises(AssertionError):
        assert_same_pixels(found, without)
    infer(
        coco_model.artifact, InferRequest(tmp_path / "label.png", tmp_path / "empty.png", no_instances=True, threads=1)
    )
    assert_same_pixels(read(tmp_path / "empty.png"), without)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_styles_of_a_real_vae_model(vae_model: Exported, tmp_path: Path, batch_size: int) -> None:
    ids, _ = synthetic_label_maps(vae_model.generator.spec.labels, 64, 64, 3, seed=5)
    (tmp_path / "labels").mkdir()
    for number, label in enumerate(ids):
        Image.fromarray(label).save(tmp_path / "labels" / f"{number}.png")
    mean = np.zeros((1, 16), np.float32)
    seeded = np.random.default_rng(11).standard_normal((1, 16), np.float32)
    for seed, right, wrong in ((None, mean, seeded), (11, seeded, mean)):
        out = tmp_path / f"out-{seed}"
        infer(vae_model.artifact, InferRequest(tmp_path / "labels", out, seed=seed, batch_size=batch_size, threads=1))
        for number, label in enumerate(ids):
            found = read(out / f"{number}.png")
            assert_same_pixels(found, vae_model.pixels(label, z=right))
            with pytest.raises(AssertionError):
                assert_same_pixels(found, vae_model.pixels(label, z=wrong))


# --- Real label maps -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_coco_stuff_samples(shared_folder: Path, coco_model: Exported, tmp_path: Path) -> None:
    labels, instances = (shared_folder / "data" / "coco_stuff_sample" / f"train_{kind}" for kind in ("label", "inst"))
    files = list_label_files(labels)
    summary = infer(
        coco_model.artifact, InferRequest(labels, tmp_path / "out", instances=instances, batch_size=4, threads=1)
    )
    assert summary.failures == ()
    assert summary.written == summary.resized == len(files) == 13
    spec = coco_model.generator.spec
    for file in files:
        label = read_label_map(file, spec.labels, (64, 64))
        right = coco_model.pixels(label, read_instance_map(instances / file.name, (64, 64)))
        assert_same_pixels(read(tmp_path / "out" / file.name), right)


@pytest.mark.shared
def test_coco_stuff_samples_that_must_fit(shared_folder: Path, coco_model: Exported, tmp_path: Path) -> None:
    """640 x 480 is a size that the model can run at; 640 x 427 and the like are not."""
    labels, instances = (shared_folder / "data" / "coco_stuff_sample" / f"train_{kind}" for kind in ("label", "inst"))
    summary = infer(
        coco_model.artifact, InferRequest(labels, tmp_path / "out", instances=instances, resize="never", threads=1)
    )
    fit = [path.name for path in list_label_files(labels) if not any(side % 32 for side in image_size(path))]
    assert names(tmp_path / "out") == fit
    assert (len(fit), len(summary.failures), summary.resized) == (5, 8, 0)
    assert all("is not a multiple of 32; `resize` model resizes it" in failure.message for failure in summary.failures)
    assert {read(tmp_path / "out" / name).shape for name in fit} == {(480, 640, 3)}


def test_a_runtime_that_takes_batches_ahead_gives_each_file_its_own_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_many(self: OrtRuntime, batches: Iterator[Arrays], names: list[str]) -> Iterator[Arrays]:
        taken: list[Arrays] = []
        for inputs in batches:
            taken.append(inputs)
            if len(taken) > 2:
                yield self.run(taken.pop(0), names)
        yield from (self.run(inputs, names) for inputs in taken)

    monkeypatch.setattr(OrtRuntime, "run_many", run_many)
    labels = tmp_path / "labels"
    labels.mkdir()
    for number in range(5):
        Image.fromarray(np.full((64, 32), number, np.uint8)).save(labels / f"{number}.png")
    request = InferRequest(labels, tmp_path / "out", backend="cpu", batch_size=1)
    assert infer(stand_in_artifact(tmp_path / "artifact", PLAIN), request).written == 5
    for number in range(5):
        right = expected(PLAIN, {LABEL: np.full((1, 64, 32), number, np.uint8)})[PIXELS][0]
        with Image.open(tmp_path / "out" / f"{number}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), right)


def test_images_in_folders_inside_are_left_alone_and_named(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 2, (64, 32))
    write_labels(labels / "berlin", 1, (64, 32))
    (labels / "notes").mkdir()
    (labels / "notes" / "text.txt").write_text("x", encoding="utf-8")
    listener = Listener()
    summary = infer(plain, InferRequest(labels, labels / "out"), listener)
    assert (summary.total, summary.written) == (2, 2)
    told = [note for note in listener.notes if "left alone" in note]
    assert told == [
        f"{labels}: images in the folder 'berlin' are left alone; '{labels}/**/*.png' names those in folders, too"
    ]
    write_labels(labels / "paris", 1, (64, 32))
    again = Listener()
    infer(plain, InferRequest(labels, labels / "out"), again)
    assert any("2 folders, such as 'berlin' are" in note for note in again.notes)

    alone = Listener()
    infer(plain, InferRequest(labels / "berlin", tmp_path / "out"), alone)
    assert not any("left alone" in note for note in alone.notes)
