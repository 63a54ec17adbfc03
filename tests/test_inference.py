import errno
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from stand_in import EDGES, PLAIN, STYLED, expected, stand_in_artifact

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Arrays, Artifact, Z
from spade_deploy.engines.ort import OrtRuntime
from spade_deploy.errors import ConfigError, NotFoundError, SpadeError
from spade_deploy.inference import InferSummary, infer, pipeline
from spade_deploy.inference.png import encode_png
from spade_deploy.label_map import read_label_map, resize_nearest
from spade_deploy.spec import GeneratorSpec, LabelSpec

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


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def names(folder: Path) -> list[str]:
    """Hidden files too: what a stopped write would leave."""
    return sorted(path.name for path in folder.iterdir())


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
    calls: list[tuple[int, int, float]] = []
    told: list[str] = []
    summary = infer(
        plain,
        tmp_path / "labels",
        tmp_path / "new" / "out",
        batch_size=batch_size,
        on_progress=lambda *call: calls.append(call),
        on_runtime=told.append,
    )
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
    summary = infer(plain, labels, tmp_path / "out", batch_size=2, resize="never")
    assert summary.written == 8
    # Heights in the order of the names: 32 32 64 32 32 64 32 32.
    assert batches == [(2, 32, 32), (1, 64, 32), (2, 32, 32), (1, 64, 32), (2, 32, 32)]
    for number, label in enumerate(maps):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), pixels(PLAIN, label))


def test_instances_are_paired_by_stem(edges: Artifact, tmp_path: Path) -> None:
    maps = write_labels(tmp_path / "labels", 3, (32, 64))
    instances = write_labels(tmp_path / "instances", 3, (32, 64), num_ids=40_000, start=0)
    summary = infer(edges, tmp_path / "labels", tmp_path / "out", instances=tmp_path / "instances", batch_size=3)
    assert summary.written == 3
    for number, (label, instance) in enumerate(zip(maps, instances, strict=True)):
        right = pixels(EDGES, label, instance.astype(np.int32))
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), right)
        assert (right != pixels(EDGES, label)).any(), "the instance map matters"


def test_no_instances_leaves_the_edge_channel_empty(edges: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (32, 64))
    infer(edges, tmp_path / "labels", tmp_path / "out", no_instances=True)
    np.testing.assert_array_equal(read(tmp_path / "out" / "000.png"), pixels(EDGES, label))


def test_unknown_pixels(edges: Artifact, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    label = np.full((32, 64), 255, np.uint8)
    Image.fromarray(label).save(tmp_path / "labels" / "a.png")
    infer(edges, tmp_path / "labels", tmp_path / "out", no_instances=True)
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), pixels(EDGES, np.full_like(label, 5)))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_one_style_for_every_image_whatever_the_batches(styled: Artifact, tmp_path: Path, batch_size: int) -> None:
    maps = write_labels(tmp_path / "labels", 5, (32, 32), num_ids=300)
    z = np.random.default_rng(7).standard_normal((1, 2), np.float32)
    for seed, style in ((None, None), (7, z)):
        out = tmp_path / f"out-{seed}"
        infer(styled, tmp_path / "labels", out, seed=seed, batch_size=batch_size)
        for number, label in enumerate(maps):
            np.testing.assert_array_equal(read(out / f"{number:03d}.png"), pixels(STYLED, label, z=style))
    first, second = (read(tmp_path / name / "000.png") for name in ("out-None", "out-7"))
    assert (first != second).any()


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_resize_model_is_nearest_and_counted(edges: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    own, other = write_labels(labels, 1, (32, 64)) + write_labels(labels, 1, (50, 75), start=1)
    instances = write_labels(tmp_path / "i", 1, (32, 64), 9) + write_labels(tmp_path / "i", 1, (50, 75), 9, start=1)
    summary = infer(edges, labels, tmp_path / "out", instances=tmp_path / "i", batch_size=2)
    assert (summary.written, summary.resized) == (2, 1)
    for number, (label, instance) in enumerate(zip((own, other), instances, strict=True)):
        small, small_instance = (resize_nearest(ids, (32, 64)) for ids in (label, instance))
        right = pixels(EDGES, small, small_instance.astype(np.int32))
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{number:03d}.png"), right)


def test_another_size_to_run_at(plain: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (64, 32))
    summary = infer(plain, tmp_path / "labels", tmp_path / "out", size=(96, 160))
    assert summary.resized == 1
    np.testing.assert_array_equal(read(tmp_path / "out" / "000.png"), pixels(PLAIN, resize_nearest(label, (96, 160))))


def test_resize_never_takes_what_fits_and_reports_the_rest(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 1, (96, 64))
    write_labels(labels, 1, (96, 65), start=1)
    summary = infer(plain, labels, tmp_path / "out", resize="never")
    assert names(tmp_path / "out") == ["000.png"]
    assert summary.resized == 0
    assert "width 65 is not a multiple of 32; --resize model resizes it" in summary.failures[0].message


def test_resize_never_with_a_fixed_size(styled: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 1, (64, 64), num_ids=300)
    summary = infer(styled, tmp_path / "labels", tmp_path / "out", resize="never")
    assert "expected N x 32 x 32" in summary.failures[0].message


# --- One bad file costs that file alone ------------------------------------------------------------------------------


def messages(summary: InferSummary) -> dict[str, str]:
    return {failure.path.name: failure.message for failure in summary.failures}


def test_bad_files_are_reported_and_the_rest_is_done(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 6, (64, 32))
    (labels / "001.png").write_bytes((labels / "001.png").read_bytes()[:60])
    (labels / "002.png").write_bytes(b"not an image")
    Image.fromarray(np.full((64, 32), 9, np.uint8)).save(labels / "003.png")
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(labels / "004.png")
    progress: list[int] = []
    summary = infer(plain, labels, tmp_path / "out", batch_size=4, on_progress=lambda done, *_: progress.append(done))
    assert names(tmp_path / "out") == ["000.png", "005.png"]
    found = messages(summary)
    assert list(found) == ["001.png", "002.png", "003.png", "004.png"]
    assert "ids out of range: 9 (2048 pixels)" in found["003.png"]
    assert all(str(labels / name) in message for name, message in found.items())
    assert (summary.total, summary.written) == (6, 2)
    assert progress == [1, 2, 3, 4, 5, 6]


def test_instances_that_do_not_pair(edges: Artifact, tmp_path: Path) -> None:
    labels, instances = tmp_path / "labels", tmp_path / "instances"
    write_labels(labels, 4, (32, 64))
    write_labels(instances, 1, (32, 64))
    write_labels(instances, 1, (64, 64), start=1)
    write_labels(instances, 1, (32, 64), start=3)
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(instances / "003.bmp")
    summary = infer(edges, labels, tmp_path / "out", instances=instances)
    assert names(tmp_path / "out") == ["000.png"]
    found = messages(summary)
    assert "has 64 x 64 pixels, its label map 32 x 64" in found["001.png"]
    assert "there is no instance map 002.png" in found["002.png"]
    assert "003.bmp and 003.png" in found["003.png"]


def test_two_label_files_of_one_stem(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 2, (64, 32))
    Image.fromarray(np.zeros((64, 32), np.uint8)).save(labels / "000.bmp")
    summary = infer(plain, labels, tmp_path / "out")
    assert names(tmp_path / "out") == ["001.png"]
    assert list(messages(summary)) == ["000.bmp", "000.png"]
    assert "like that of 000.bmp" in messages(summary)["000.png"]


# --- Stopping and going on -------------------------------------------------------------------------------------------


def test_results_that_are_there_are_skipped(plain: Artifact, tmp_path: Path) -> None:
    maps = write_labels(tmp_path / "labels", 3, (64, 32))
    out = tmp_path / "out"
    out.mkdir()
    (out / "001.png").write_bytes(b"mine")
    first = infer(plain, tmp_path / "labels", out)
    assert (first.written, first.skipped, (out / "001.png").read_bytes()) == (2, 1, b"mine")
    second = infer(plain, tmp_path / "labels", out)
    assert (second.written, second.skipped, second.runtime) == (0, 3, ""), "nothing to do loads nothing"
    third = infer(plain, tmp_path / "labels", out, overwrite=True)
    assert (third.written, third.skipped) == (3, 0)
    np.testing.assert_array_equal(read(out / "001.png"), pixels(PLAIN, maps[1]))


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(plain: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 40, (64, 32))
    threads = threading.active_count()

    def interrupt(done: int, total: int, rate: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer(plain, tmp_path / "labels", tmp_path / "out", on_progress=interrupt)
    assert threading.active_count() == threads
    left = names(tmp_path / "out")
    assert 5 <= len(left) < 40
    assert all(name.endswith(".png") and not name.startswith(".") for name in left)
    assert all(read(tmp_path / "out" / name).shape == (64, 32, 3) for name in left)
    summary = infer(plain, tmp_path / "labels", tmp_path / "out")
    assert (summary.skipped, summary.written) == (len(left), 40 - len(left))


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_a_full_disk_stops_with_a_clear_error(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    write_labels(tmp_path / "labels", 10, (64, 32))
    written = []

    def full(*_: Any, **__: Any) -> Any:
        written.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "atomic_file", full)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        SpadeError, match=r"00\d\.\w+ cannot be written: .*No space left on device.*; 0 of 10"
    ) as caught:
        infer(plain, tmp_path / "labels", tmp_path / "out", image_format=image_format)
    assert "the same command goes on" in (caught.value.hint or "")
    assert len(written) < 10, "it stops instead of trying every file"
    assert names(tmp_path / "out") == []


def test_memory_does_not_grow_with_the_folder(plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more decoded maps or unwritten images than the queues hold, with a slow model and with slow writes."""
    write_labels(tmp_path / "labels", 60, (32, 32))
    lock, decoded, written, worst = threading.Lock(), [0], [0], [0]
    real_read, real_write = pipeline.Reader.read, pipeline._write

    def count_read(self: Any, job: Any) -> Any:
        with lock:
            decoded[0] += 1
            worst[0] = max(worst[0], decoded[0] - written[0])
        return real_read(self, job)

    def count_write(result: Path, image: Any) -> None:
        threading.Event().wait(0.002)
        real_write(result, image)
        with lock:
            written[0] += 1

    monkeypatch.setattr(pipeline.Reader, "read", count_read)
    monkeypatch.setattr(pipeline, "_write", count_write)
    assert infer(plain, tmp_path / "labels", tmp_path / "out", batch_size=2).written == 60
    workers = max(1, min(pipeline._MAX_WORKERS, (pipeline.os.cpu_count() or 2) // 2))
    # Twice the look-ahead (decoding, writing), the batch that runs, and one more in each worker's hands.
    bound = 2 * (2 * 2 + workers) + 2 + 2 * workers
    assert 2 < worst[0] <= bound < 60


# --- Where results go ------------------------------------------------------------------------------------------------


def test_a_single_file(plain: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (64, 32))
    file = tmp_path / "labels" / "000.png"
    infer(plain, file, tmp_path / "folder")
    infer(plain, file, tmp_path / "deep" / "named.png")
    infer(plain, file, tmp_path / "labels" / "beside.png")
    for result in (
        tmp_path / "folder" / "000.png",
        tmp_path / "deep" / "named.png",
        tmp_path / "labels" / "beside.png",
    ):
        np.testing.assert_array_equal(read(result), pixels(PLAIN, label))


def test_a_single_file_with_its_instance_map(edges: Artifact, tmp_path: Path) -> None:
    (label,) = write_labels(tmp_path / "labels", 1, (32, 64))
    (instance,) = write_labels(tmp_path / "other", 1, (32, 64), num_ids=40, start=9)
    infer(edges, tmp_path / "labels" / "000.png", tmp_path / "out.png", instances=tmp_path / "other" / "009.png")
    np.testing.assert_array_equal(read(tmp_path / "out.png"), pixels(EDGES, label, instance.astype(np.int32)))


def test_jpeg(plain: Artifact, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 32), 3, np.uint8)).save(tmp_path / "a.png")
    infer(plain, tmp_path / "a.png", tmp_path / "out", image_format="jpg")
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
    ):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is an input: results would overwrite it"):
                infer(edges, source, out, instances=instances, overwrite=overwrite)
    assert (labels / "000.png").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size: 0"),
        ({"size": (64, 50)}, "--size: 64x50 are not multiples of 32"),
        ({"size": (64, 0)}, "--size: 64x0"),
        ({"size": (64, 64), "resize": "never"}, "--size and --resize never contradict"),
        ({"resize": "crop"}, "--resize: 'crop' is not one of model, never"),
        ({"seed": 1}, "--seed: this model has no style vector"),
        ({"image_format": "webp"}, "--format: 'webp'"),
        ({"instances": Path("x")}, "--instances: this model has no edge channel"),
        ({"no_instances": True}, "--no-instances: this model has no edge channel"),
        ({"backend": "tpu"}, "--backend: 'tpu'"),
    ],
)
def test_impossible_requests_name_the_flag(
    plain: Artifact, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_labels(tmp_path / "labels", 1, (64, 32))
    with pytest.raises(ConfigError) as caught:
        infer(plain, tmp_path / "labels", tmp_path / "out", **options)
    assert message in str(caught.value)


def test_impossible_requests_of_other_models(edges: Artifact, styled: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 1, (32, 64))
    with pytest.raises(ConfigError, match="--instances: this model has an edge channel") as caught:
        infer(edges, labels, tmp_path / "out")
    assert "--no-instances" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="--instances and --no-instances contradict"):
        infer(edges, labels, tmp_path / "out", instances=labels, no_instances=True)
    with pytest.raises(ConfigError, match="is a file, but"):
        infer(edges, labels, tmp_path / "out", instances=labels / "000.png")
    with pytest.raises(ConfigError, match="--size: this model runs at 32x32 alone"):
        infer(styled, labels, tmp_path / "out", size=(64, 64))
    with pytest.raises(ConfigError, match="--seed: -1 is negative"):
        infer(styled, labels, tmp_path / "out", seed=-1)


def test_nothing_to_work_on(plain: Artifact, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_labels(tmp_path / "labels", 1, (64, 32))
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match="does not exist"):
        infer(plain, tmp_path / "missing", tmp_path / "out")
    with pytest.raises(NotFoundError, match="holds no label maps"):
        infer(plain, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="is a file"):
        infer(plain, tmp_path / "labels", tmp_path / "file")
    with pytest.raises(ConfigError, match=r"written as \.png, \.jpg, \.jpeg, not as \.webp"):
        infer(plain, tmp_path / "labels" / "000.png", tmp_path / "a.webp")
    with pytest.raises(SpadeError, match="cannot be made"):
        infer(plain, tmp_path / "labels", tmp_path / "file" / "out")


# --- The PNG encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 65)])
def test_png_is_lossless(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(io.BytesIO(encode_png(image))), image)  # type: ignore[arg-type]
    wide = np.repeat(image, 2, axis=1)[:, ::2]  # not contiguous
    np.testing.assert_array_equal(read(io.BytesIO(encode_png(wide))), image)  # type: ignore[arg-type]


def test_png_is_about_as_small_as_pillow_makes_it() -> None:
    rows, columns = np.mgrid[:128, :128]
    noise = np.random.default_rng(0).normal(0, 2, (128, 128, 3))
    smooth = np.stack([rows, columns, rows + columns], axis=2) * 0.8 + 20 + noise
    image = smooth.clip(0, 255).astype(np.uint8)
    pillow = io.BytesIO()
    Image.fromarray(image).save(pillow, "PNG", compress_level=1)
    # Measured 0.85 of Pillow's size; without the filter it would be 1.64 of it.
    assert len(encode_png(image)) < 1.1 * len(pillow.getvalue())


# --- Real label maps -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_coco_stuff_samples(shared_folder: Path, tmp_path: Path) -> None:
    coco = shared_folder / "data" / "coco_stuff_sample"
    spec = GeneratorSpec(LabelSpec(182, True, True), base_channels=2, height=64, width=64)
    artifact = stand_in_artifact(tmp_path / "a", spec)
    summary = infer(artifact, coco / "train_label", tmp_path / "out", instances=coco / "train_inst", batch_size=4)
    assert summary.failures == ()
    assert summary.written == summary.resized == len(names(tmp_path / "out")) > 0
    for result in sorted((tmp_path / "out").iterdir()):
        label = read_label_map(coco / "train_label" / result.name, spec.labels, (64, 64))
        np.testing.assert_array_equal(read(result)[..., 0], pixels(spec, label)[..., 0])
