"""benchmarks/gpu: the steps of ONNX Runtime and TensorRT, as far as they go without a card."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import LABEL
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.ort.session import CPU
from spade_deploy.engines.tensorrt.builder import build_engine
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.engines.tensorrt.library import Library, load_library
from spade_deploy.errors import BuildError, ConfigError, MissingDependencyError
from spade_deploy.spec import (
    Flavour,
    GraphKind,
    Precision,
    ShapeProfile,
)
from tests.support import stand_in
from tests.support.bench_model import TINY, load_script, tiny_setting
from tests.support.generators import build_generator
from tests.support.paths import ROOT

records: Any = load_script("gpu.records")
timing: Any = load_script("gpu.timing")
setting: Any = load_script("gpu.setting")

CARD = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "13.0")


def test_onnxruntime_is_skipped_where_cuda_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = load_script("gpu.ort_cuda")
    monkeypatch.setattr(ort, "provider_loads", lambda _: False)
    outcome = records.run_step(records.Book("onnxruntime"), partial(ort.run_ort_cuda, tiny_setting(tmp_path)))
    assert outcome.status == "skipped"
    assert "spade-deploy[gpu]" in outcome.hint


def test_onnxruntime_validates_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = load_script("gpu.ort_cuda")
    monkeypatch.setattr(ort, "CUDA", CPU)  # the step itself, on the provider that is here
    spec = stand_in.PLAIN
    small = setting.Setting(spec, tmp_path, (1, 2), 2, "cpu", True, (Precision.FP32,))
    stand_in.stand_in_artifact(tmp_path / "artifact", spec)
    outcome = records.run_step(records.Book("onnxruntime"), partial(ort.run_ort_cuda, small))
    rows = {(row.name, row.batch): row for row in outcome.rows}
    assert len(rows["fp32 dense", 2].times_ms["end_to_end"]) == 2
    assert len(rows["fp32 dense", 2].times_ms["device"]) == 2
    assert rows["fp32 dense", 2].figures["max_abs"] < 1e-6
    # The stand-in has no lookup graph: that one fails, and says why.
    assert "lookup" in rows["fp32 lookup", 1].failures[0]
    assert outcome.status == "failed"


@pytest.mark.slow
def test_onnxruntime_times_a_plain_export_of_the_same_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real graphs of a tiny generator, on the CPU's provider: dense, lookup and plain, at both sizes."""
    ort = load_script("gpu.ort_cuda")
    monkeypatch.setattr(ort, "CUDA", CPU)
    small = tiny_setting(tmp_path, batches=(1,), precisions=(Precision.FP32,))
    outcome = records.run_step(records.Book("onnxruntime"), partial(ort.run_ort_cuda, small))
    assert outcome.status == "done", outcome.reason
    rows = {row.name: row for row in outcome.rows}
    assert set(rows) == {
        "fp32 dense",
        "fp32 lookup",
        "plain export fp32",
        "fp32 dense, 64 x 64",
        "fp32 lookup, 64 x 64",
        "plain export fp32, 64 x 64",
    }
    assert all(len(row.times_ms[which]) == 2 for row in rows.values() for which in ("device", "end_to_end"))
    assert not any(row.note for row in rows.values())  # nothing was left out, and the pixels on the card are the same
    # What the plain export makes is what the untouched module makes.
    path = ort.plain_path(small, Precision.FP32, (32, 32))
    segmap = numerics_segmap(small)
    session = ort.open_session(path)
    on_card = ort.OnCard(session, {"segmap": segmap}, [("image", "float32", (1, 3, 32, 32))])
    on_card.run()
    with torch.inference_mode():
        torch.testing.assert_close(on_card.outputs["image"], small.generator(segmap), rtol=0, atol=1e-4)


def numerics_segmap(small: Any) -> torch.Tensor:
    found: torch.Tensor = load_script("gpu.numerics").segmap_of(small, small.batch(1), torch.float32)
    return found


def test_a_wrong_graph_is_not_timed(tmp_path: Path) -> None:
    graphs = load_script("gpu.graphs")
    artifact = stand_in.stand_in_artifact(tmp_path / "artifact")

    class Wrong:
        def run(self, inputs: Any, names: Any) -> Any:
            right = stand_in.expected(stand_in.PLAIN, inputs)
            return {**right, "image": right["image"] + np.float32(self.off)}

        off = 0.0

    wrong = Wrong()
    for batch in (1, 2, 3):  # 3: more than there are golden maps
        errors, failures = graphs.judged(artifact, Precision.FP32, GraphKind.DENSE, wrong, batch)
        assert (errors["max_abs"], failures) == (0, ())
    wrong.off = 0.01
    assert graphs.judged(artifact, Precision.FP32, GraphKind.DENSE, wrong)[1]


def test_tensorrt_is_skipped_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = load_script("gpu.trt_engines")

    def missing() -> Library:
        raise MissingDependencyError("TensorRT is not installed", hint="pip install 'spade-deploy[trt]'")

    monkeypatch.setattr(engines, "load_library", missing)
    outcome = records.run_step(records.Book("tensorrt"), partial(engines.run_trt_engines, tiny_setting(tmp_path)))
    assert (outcome.status, outcome.reason) == ("skipped", "TensorRT is not installed")


def test_a_card_that_rtx_does_not_build_for_is_told_first(
    tmp_path: Path, without_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = Library(ModuleType("rtx"), Flavour.RTX, "1.7")
    monkeypatch.setattr(without_cuda, "load_library", lambda: rtx)
    monkeypatch.setattr(without_cuda, "require_gpu", lambda: CARD)
    outcome = records.run_step(records.Book("tensorrt"), partial(without_cuda.run_trt_engines, tiny_setting(tmp_path)))
    assert outcome.status == "skipped"
    assert "NVIDIA H100 80GB HBM3 (9.0)" in outcome.reason
    assert "spade-deploy[trt]" in outcome.hint
    monkeypatch.setattr(without_cuda, "require_gpu", lambda: replace(CARD, compute_capability=(8, 9)))
    without_cuda.require_card(rtx)
    without_cuda.require_card(replace(rtx, flavour=Flavour.TENSORRT))


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The step of TensorRT, with what it asks of PyTorch's CUDA taken away."""
    engines = load_script("gpu.trt_engines")
    monkeypatch.setattr(engines, "COMPILED", {})
    monkeypatch.setattr(engines, "cuda_timer", lambda _: timing.host_timer())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return engines


def test_an_engine_goes_through_all_of_the_step(
    tmp_path: Path, without_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "engines"))
    fakes, recording = (
        importlib.import_module("tests.support.fake_tensorrt"),
        importlib.import_module("tests.support.recording_device"),
    )
    device = recording.RecordingDevice()
    trt = fakes.FakeTensorRT(device, stand_in.PLAIN, GraphKind.DENSE, ShapeProfile.parse("2x64x32"))
    stand_in.stand_in_artifact(tmp_path / "artifact")
    asked: list[Any] = []
    launches: list[str] = []

    def build(artifact: Any, request: Any) -> Any:
        asked.append(request)
        (tmp_path / "an.engine").write_bytes(fakes.GOOD_ENGINE)
        return (SimpleNamespace(path=tmp_path / "an.engine", described="all of it", bytes=9, seconds=0.5),)

    class OnCard:
        def __init__(self, _: Library, content: bytes, inputs: dict[str, torch.Tensor]) -> None:
            assert (content, list(inputs)) == (fakes.GOOD_ENGINE, [LABEL])

        def run(self) -> None:
            launches.append("plainly")

    def not_captured(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def no_plain(*_: Any, **__: Any) -> None:
        raise BuildError("no plain export here")

    monkeypatch.setattr(without_cuda, "load_library", trt.library)
    monkeypatch.setattr(without_cuda, "open_device", lambda: device)
    monkeypatch.setattr(without_cuda, "build", build)
    monkeypatch.setattr(without_cuda, "DeviceEngine", OnCard)
    monkeypatch.setattr(without_cuda, "write_plain", no_plain)
    monkeypatch.setattr(without_cuda, "captured", not_captured)
    small = setting.Setting(
        stand_in.PLAIN, tmp_path, (2,), 2, "cpu", True, (Precision.FP32,), (GraphKind.DENSE,), optimization_level=1
    )
    outcome = records.run_step(records.Book("tensorrt"), partial(without_cuda.run_trt_engines, small))
    rows = {row.name: row for row in outcome.rows}
    ours = rows["fp32 dense"]
    assert ours.failures == (), ours.failures
    assert ours.figures["max_abs"] == 0
    assert ours.figures["images_per_s"] > 0
    assert len(ours.times_ms["device"]) == len(ours.times_ms["end_to_end"]) == 2
    assert ours.note.startswith("without a CUDA graph: RuntimeError")
    assert len(launches) == 3 + 2  # warm-up, rounds
    (request,) = asked
    assert (request.precision, str(request.profile), request.options.optimization_level) == (
        Precision.FP32,
        "2x64x32:2x64x32:2x64x32",
        1,
    )
    assert outcome.facts["proof of fp32 dense, batch 2"] == "all of it"
    # A baseline that does not run is told, and fails nothing.
    assert (rows["plain export fp32"].failures, rows["plain export fp32"].note) == (
        (),
        "not measured: no plain export here",
    )
    assert outcome.status == "done"
    assert device.complaints == []
    assert sum(name == "close" for name, _ in device.calls) == 1


def test_engines_that_are_not_built_leave_the_baselines(
    tmp_path: Path, without_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = without_cuda

    def refuses(*_: Any, **__: Any) -> None:
        raise BuildError("found no way to run a layer")

    monkeypatch.setattr(engines, "build", refuses)
    monkeypatch.setattr(engines, "build_engine", refuses)
    monkeypatch.setattr(engines, "write_plain", lambda *_, **__: None)
    monkeypatch.setattr(engines, "captured", lambda _, work: (work, None))
    monkeypatch.setattr(engines, "load_library", lambda: SimpleNamespace(title="TensorRT 11", flavour=Flavour.TENSORRT))
    stand_in.stand_in_artifact(tmp_path / "artifact", TINY, (Precision.FP32, Precision.FP16))
    small = tiny_setting(tmp_path, batches=(2,), precisions=(Precision.FP32, Precision.FP16))
    outcome = records.run_step(records.Book("tensorrt"), partial(engines.run_trt_engines, small))
    rows = {row.name: row for row in outcome.rows}
    ours = {f"{precision} {kind}" for precision in ("fp32", "fp16") for kind in GraphKind}
    assert {name for name, row in rows.items() if row.failures} == ours
    assert rows["fp16 lookup"].failures == ("found no way to run a layer",)
    assert rows["plain export fp16"].note == "not measured: found no way to run a layer"
    assert outcome.status == "failed"
    assert outcome.facts["library"] == "TensorRT 11"
    eager = rows[engines.EAGER]
    assert eager.figures["faster_than_eager"] == eager.figures["faster_than_eager_end_to_end"] == 1
    assert eager.figures["faster_than_plain_fp16"] is None
    graph = rows[engines.EAGER_GRAPH]
    pairs = zip(eager.times_ms["device"], graph.times_ms["device"], strict=True)
    assert graph.figures["faster_than_eager"] == np.median([slow / fast for slow, fast in pairs])
    assert graph.figures["faster_than_eager_graph"] == 1
    assert len(eager.times_ms["device"]) == len(eager.times_ms["end_to_end"]) == 2


def test_a_plain_export_in_half_precision_builds_as_such(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    plain = load_script("gpu.plain")
    generator = build_generator(base_channels=4, height=32, width=32)
    plain.write_plain(generator, tmp_path / "plain.onnx", half=True)
    shape = (2, generator.spec.labels.num_channels, 32, 32)
    library = load_library(Flavour.RTX)
    ranges = {plain.SEGMAP: (shape, shape, shape)}
    built = build_engine(library, tmp_path / "plain.onnx", ranges, BuildOptions(), compute_capability="8.9")
    assert built.engine
    assert {layer.type for layer in built.layers} == {"fp16"}


def test_a_plain_export_of_a_style_is_refused(tmp_path: Path) -> None:
    plain = load_script("gpu.plain")
    with pytest.raises(ConfigError, match="style"):
        plain.write_plain(build_generator(z_dim=4, training_steps=0), tmp_path / "plain.onnx", half=False)


class FakeEngine:
    """`segmap` in, `image` out; context and engine in one."""

    num_io_tensors = 2
    loads = runs = takes = True

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def create_execution_context(self) -> Any:
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("segmap", "image")[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (2, 3, 4, 4)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self.takes

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        return self.runs


def fake_library(engine: FakeEngine) -> Library:
    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None: ...

    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: engine if engine.loads else None)
    return Library(SimpleNamespace(Logger=Logger, Runtime=lambda _: runtime), Flavour.TENSORRT, "11.0")  # type: ignore[arg-type]


def test_an_input_that_would_be_copied_is_refused() -> None:
    device = load_script("gpu.trt_device")
    segmap = torch.zeros(2, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="row by row"):
        device.DeviceEngine(fake_library(FakeEngine()), b"plan", {"segmap": segmap})


def test_an_engine_is_bound_to_pytorchs_memory_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    device = load_script("gpu.trt_device")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    engine, segmap = FakeEngine(), torch.zeros(2, 5, 4, 4, dtype=torch.float16)
    ready = device.DeviceEngine(fake_library(engine), b"plan", {"segmap": segmap})
    ready.run()
    image = ready.outputs["image"]
    assert (tuple(image.shape), image.dtype) == ((2, 3, 4, 4), torch.float16)
    assert engine.addresses == {"segmap": segmap.data_ptr(), "image": image.data_ptr()}
    assert (engine.shape, engine.streams) == ((2, 5, 4, 4), [77])


@pytest.mark.parametrize(("what", "said"), [("loads", "does not load"), ("takes", "refuses"), ("runs", "does not run")])
def test_what_tensorrt_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch, what: str, said: str) -> None:
    device = load_script("gpu.trt_device")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    engine = FakeEngine()
    setattr(engine, what, False)
    with pytest.raises(Exception, match=said):
        device.DeviceEngine(fake_library(engine), b"", {"segmap": torch.zeros(2, 5, 4, 4)}).run()
