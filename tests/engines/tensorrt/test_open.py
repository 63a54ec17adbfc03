"""Which runtime is opened where engines were built: the one that fits, or the reason why not. The engine is a fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import LABEL, PIXELS, Artifact, engine_name
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.tensorrt import open as trt_open
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.errors import ArtifactError, InputRefusedError, NotFoundError, RuntimeUnavailableError
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inspection.describe import inspect_path
from spade_deploy.spec import Flavour, GraphKind, Precision
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.built_engine import HERE, PROFILE, add_engine
from tests.support.fake_tensorrt import COMPATIBLE_ENGINE, GOOD_ENGINE, FakeTensorRT
from tests.support.listener import Listener
from tests.support.recording_device import RecordingDevice
from tests.support.stand_in import PLAIN, expected, random_inputs, stand_in_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return stand_in_artifact(tmp_path / "artifact", precisions=(Precision.FP32, Precision.FP16))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDevice]:
    """A machine with the card and TensorRT; at the end everything on the card was freed."""
    device = RecordingDevice()
    fake = FakeTensorRT(device, PLAIN, GraphKind.DENSE, PROFILE)
    monkeypatch.setattr(trt_open, "require_gpu", lambda: HERE)
    monkeypatch.setattr(trt_open, "is_installed", lambda flavour: flavour is Flavour.TENSORRT)
    monkeypatch.setattr(trt_open, "load_library", lambda flavour: fake.library(flavour))
    monkeypatch.setattr(trt_open, "open_device", lambda index: device)
    yield device
    device.close()
    assert device.complaints == []


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_an_engine_that_fits_is_what_runs(artifact: Artifact, card: RecordingDevice, backend: str) -> None:
    add_engine(artifact)
    inputs = random_inputs(PLAIN, 2)
    with open_runtime(artifact, backend=backend) as runtime:
        assert runtime.name == "TensorRT 9.9.9, fp16"
        np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])


def test_an_engine_whose_key_says_that_it_is_version_compatible_may_bring_code(
    artifact: Artifact, card: RecordingDevice
) -> None:
    add_engine(artifact, COMPATIBLE_ENGINE, version="9.9.1", options=BuildOptions(version_compatible=True))
    inputs = random_inputs(PLAIN, 2)
    with open_runtime(artifact, backend="tensorrt") as runtime:
        np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])


def test_auto_says_in_one_line_why_its_engine_does_not_run(artifact: Artifact, card: RecordingDevice) -> None:
    add_engine(artifact, version="9.9.8")
    with open_runtime(artifact) as runtime:
        assert runtime.name.startswith("ONNX Runtime")
        assert "its TensorRT engine does not run here" in runtime.name
        assert "built by version 9.9.8, here is 9.9.9" in runtime.name
        assert "\n" not in runtime.name


def test_a_damaged_engine_manifest_keeps_nobody_from_running(artifact: Artifact) -> None:
    (artifact.path / "engines").mkdir()
    (artifact.path / "engines" / "x.json").write_text("{")
    with open_runtime(artifact) as runtime:
        assert "x.json: the engine manifest is damaged" in runtime.name
        inputs = random_inputs(PLAIN, 1)
        np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])
    with pytest.raises(ArtifactError, match="damaged"):
        open_runtime(artifact, backend="tensorrt")


def test_what_was_asked_for_by_name_runs_or_is_an_error(artifact: Artifact, card: RecordingDevice) -> None:
    with pytest.raises(NotFoundError, match="has no TensorRT engines") as caught:
        open_runtime(artifact, backend="tensorrt")
    assert "spade build" in str(caught.value.hint)
    add_engine(artifact, gpu="NVIDIA L4", compute_capability="8.9")
    with pytest.raises(ArtifactError, match=r"compute capability 8\.9, here is NVIDIA H100 \(9\.0\)"):
        open_runtime(artifact, backend="tensorrt")
    with pytest.raises(NotFoundError, match="no fp32 engine"):
        open_runtime(artifact, Precision.FP32, backend="tensorrt")


def test_without_a_driver_nothing_is_imported(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    add_engine(artifact)

    def none_here() -> Gpu:
        raise RuntimeUnavailableError("the NVIDIA driver does not load here")

    monkeypatch.setattr(trt_open, "require_gpu", none_here)
    monkeypatch.setattr(trt_open, "load_library", lambda flavour: pytest.fail("it was imported"))
    with pytest.raises(RuntimeUnavailableError, match="driver does not load"):
        open_runtime(artifact, backend="tensorrt")
    with open_runtime(artifact) as runtime:
        assert "driver does not load here" in runtime.name


def test_an_engine_that_was_changed_is_not_run(artifact: Artifact, card: RecordingDevice) -> None:
    add_engine(artifact)
    (engine,) = (artifact.path / "engines").glob("*.engine")
    engine.write_bytes(GOOD_ENGINE[:-1] + b"!")
    with pytest.raises(ArtifactError, match="sha256 is not the one"):
        open_runtime(artifact, backend="tensorrt")


def write_labels(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, PLAIN.labels.num_ids, size).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_infer_runs_a_folder_through_the_engine(artifact: Artifact, card: RecordingDevice, tmp_path: Path) -> None:
    add_engine(artifact)
    labels = write_labels(tmp_path / "labels", [(PLAIN.height, PLAIN.width)] * 5)
    seen = Listener()
    summary = infer(artifact, InferRequest(labels, tmp_path / "out", backend="tensorrt", batch_size=2), progress=seen)
    names = [step.rpartition(" with ")[2] for step in seen.steps]
    assert (summary.written, names) == (5, ["TensorRT 9.9.9, fp16"])
    for path in labels.iterdir():
        inputs = {LABEL: np.array(Image.open(path))[None]}
        found = np.array(Image.open(tmp_path / "out" / path.name))
        np.testing.assert_array_equal(found, expected(PLAIN, inputs)[PIXELS][0])


def test_a_map_outside_the_profile_is_reported_and_the_rest_is_done(
    artifact: Artifact, card: RecordingDevice, tmp_path: Path
) -> None:
    add_engine(artifact)
    own, other = (PLAIN.height, PLAIN.width), (PLAIN.height, 2 * PLAIN.width)
    labels = write_labels(tmp_path / "labels", [own, other, own, own, other, own, other])
    summary = infer(artifact, InferRequest(labels, tmp_path / "out", backend="tensorrt", resize="never"))
    assert summary.written == 4
    assert sorted(failure.path.name for failure in summary.failures) == ["1.png", "4.png", "6.png"]
    assert "outside" in summary.failures[0].message
    assert "spade build --profile" in str(summary.failures[0].hint)


def test_at_one_size_for_all_a_profile_that_is_too_small_ends_the_run(
    artifact: Artifact, card: RecordingDevice, tmp_path: Path
) -> None:
    add_engine(artifact)
    labels = write_labels(tmp_path / "labels", [(PLAIN.height, PLAIN.width)] * 4)
    with pytest.raises(InputRefusedError, match="outside"):
        infer(artifact, InferRequest(labels, tmp_path / "out", backend="tensorrt", batch_size=3))


def test_validate_compares_the_graphs_that_have_an_engine(artifact: Artifact, card: RecordingDevice) -> None:
    with pytest.raises(NotFoundError, match="has no TensorRT engines"):
        validate(artifact, ValidationRequest(backend="tensorrt"))
    add_engine(artifact)
    report = validate(artifact, ValidationRequest(backend="tensorrt"))
    assert [(result.name, result.runtime) for result in report.results] == [("fp16", "TensorRT 9.9.9, fp16")]
    assert report.passed


def test_layers_are_timed_on_the_card(artifact: Artifact, card: RecordingDevice) -> None:
    key = add_engine(artifact)
    path = artifact.path / "engines" / f"{engine_name(key.precision, key.kind, key.digest)}.engine"
    plain = inspect_path(path)
    assert plain.tables[0].rows == (("node_conv_2", "conv", "fp16", "node_conv_2, node_add", "-"),)
    timed = inspect_path(path, with_times=True)
    assert dict(timed.rows)["time"].startswith("1.500 ms")
    assert timed.tables[0].rows == (
        ("node_conv_2", "conv", "fp16", "node_conv_2, node_add", "1.0000"),
        ("node_conv_1 + node_leaky_relu", "", "-", "-", "0.5000"),
    )


def test_an_engine_of_another_card_is_not_timed(artifact: Artifact, card: RecordingDevice) -> None:
    key = add_engine(artifact, gpu="NVIDIA L4", compute_capability="8.9")
    path = artifact.path / "engines" / f"{engine_name(key.precision, key.kind, key.digest)}.engine"
    assert inspect_path(path).title == "TensorRT engine"
    with pytest.raises(ArtifactError, match="must not run here"):
        inspect_path(path, with_times=True)


def test_onnxruntimes_own_tensorrt_is_never_replaced_in_silence(artifact: Artifact) -> None:
    """Here its provider does not load: an error that names it, and no run on the CPU."""
    with pytest.raises(RuntimeUnavailableError, match="TensorrtExecutionProvider does not load here"):
        open_runtime(artifact, backend="ort-tensorrt")
