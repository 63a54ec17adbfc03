"""ONNX Runtime on GPUs: memory that is kept between runs, sessions, refusals; where there is a GPU, the real one."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Artifact
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.ort import messages
from spade_deploy.engines.ort import runtime as ort
from spade_deploy.engines.ort import session as sessions
from spade_deploy.engines.ort.binding import KEPT_SHAPES, DeviceBinding
from spade_deploy.engines.ort.providers import GpuOptions
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU, CUDA, TENSORRT, provider_loads
from spade_deploy.errors import ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.spec import Precision, ShapeProfile
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs, stand_in_artifact, stand_in_graph

NO_MEMORY = (
    "BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 8388608000"
)
NO_CUDNN = "Failed to load library libonnxruntime_providers_cuda.so: libcudnn.so.9: cannot open shared object file"
CARD = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30, "13.0")
PROFILE = ShapeProfile.parse("1x32x32:2x64x64:4x128x64")


# --- Memory that is kept: the same steps on the CPU -------------------------------------------------------------------


class CountingOrt(types.SimpleNamespace):
    """onnxruntime, counting the buffers that are made and noting which graph each run asks for."""

    def __init__(self) -> None:
        self.made, self.graphs = 0, []

        class OrtValue:
            @staticmethod
            def ortvalue_from_shape_and_type(*arguments: Any) -> Any:
                self.made += 1
                return onnxruntime.OrtValue.ortvalue_from_shape_and_type(*arguments)

        class RunOptions:
            def __new__(cls) -> Any:
                return onnxruntime.RunOptions()

        super().__init__(OrtValue=OrtValue, RunOptions=RunOptions)


def cpu_binding(made: Any, session: Any, **options: Any) -> DeviceBinding:
    return DeviceBinding(made, session, device="cpu", **options)


def wanted(inputs: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    count, height, width = inputs[LABEL].shape
    return {PIXELS: ((count, height, width, 3), "uint8"), IMAGE: ((count, 3, height, width), "float32")}


@pytest.fixture(scope="module")
def session() -> Any:
    return onnxruntime.InferenceSession(stand_in_graph(EDGES), providers=[CPU])


def test_memory_is_kept_for_shapes_that_come_again(session: Any) -> None:
    made = CountingOrt()
    binding = cpu_binding(made, session)
    first = random_inputs(EDGES, 2, seed=1)
    answered = binding.run(first, wanted(first))
    assert made.made == 4
    for seed in (2, 3):
        inputs = random_inputs(EDGES, 2, seed=seed)
        found = binding.run(inputs, wanted(inputs))
        for name, array in expected(EDGES, inputs).items():
            np.testing.assert_array_equal(found[name], array)
    assert made.made == 4
    # What was answered before is the caller's own, and is not written to by later runs.
    for name, array in expected(EDGES, first).items():
        np.testing.assert_array_equal(answered[name], array)
    other = random_inputs(EDGES, 1, (64, 96))
    np.testing.assert_array_equal(binding.run(other, wanted(other))[IMAGE], expected(EDGES, other)[IMAGE])
    assert made.made == 8
    only = binding.run(other, {IMAGE: wanted(other)[IMAGE]})
    assert list(only) == [IMAGE]


def test_inputs_of_another_layout_arrive_as_they_are(session: Any) -> None:
    inputs = {name: np.asfortranarray(array) for name, array in random_inputs(EDGES, 2, (32, 96)).items()}
    assert not inputs[LABEL].flags.c_contiguous
    before = {name: array.copy() for name, array in inputs.items()}
    found = cpu_binding(CountingOrt(), session).run(inputs, wanted(inputs))
    np.testing.assert_array_equal(found[IMAGE], expected(EDGES, inputs)[IMAGE])
    for name, array in before.items():
        np.testing.assert_array_equal(inputs[name], array)


def test_memory_of_few_shapes_is_kept(session: Any) -> None:
    made = CountingOrt()
    binding = cpu_binding(made, session)
    for count in range(1, KEPT_SHAPES + 3):
        inputs = random_inputs(EDGES, count)
        np.testing.assert_array_equal(binding.run(inputs, wanted(inputs))[IMAGE], expected(EDGES, inputs)[IMAGE])
    assert len(binding._slots) == KEPT_SHAPES
    newest = made.made
    binding.run(inputs, wanted(inputs))
    assert made.made == newest
    oldest = random_inputs(EDGES, 1)
    binding.run(oldest, wanted(oldest))
    assert made.made == newest + 4


class NotingSession:
    """Runs nothing; notes the memory and the graph number of each run."""

    def __init__(self, real: Any) -> None:
        self.real, self.runs, self.fails = real, [], False

    def io_binding(self) -> Any:
        return self.real.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        if self.fails:
            raise RuntimeError("CUDA failure 2: out of memory")
        self.runs.append((id(binding), options.get_run_config_entry("gpu_graph_id")))


def test_a_graph_number_belongs_to_one_memory_for_ever(session: Any) -> None:
    noting = NotingSession(session)
    binding = cpu_binding(CountingOrt(), noting, cuda_graph=True)

    def run(count: int) -> str:
        inputs = random_inputs(EDGES, count)
        binding.run(inputs, wanted(inputs))
        return str(noting.runs[-1][1])

    assert [run(count) for count in range(1, KEPT_SHAPES + 1)] == [str(n + 1) for n in range(KEPT_SHAPES)]
    later = range(KEPT_SHAPES + 1, 3 * KEPT_SHAPES)
    assert {run(count) for count in later} == {"-1"}
    assert [run(count) for count in range(1, KEPT_SHAPES + 1)] == [str(n + 1) for n in range(KEPT_SHAPES)]
    assert len({memory for memory, graph in noting.runs if graph == "1"}) == 1
    noting.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        run(1)
    assert not binding._slots
    noting.fails = False
    assert run(1) == "-1"  # its graph still reads at addresses that were given up


def test_without_cuda_graphs_no_graph_is_asked_for(session: Any) -> None:
    options = []
    plain = types.SimpleNamespace(
        io_binding=session.io_binding, run_with_iobinding=lambda _, given: options.append(given)
    )
    inputs = random_inputs(EDGES, 1)
    cpu_binding(CountingOrt(), plain).run(inputs, wanted(inputs))
    with pytest.raises(Exception, match="gpu_graph_id"):
        options[0].get_run_config_entry("gpu_graph_id")


# --- A runtime of a GPU build, played by the CPU ----------------------------------------------------------------------


class GpuOrt(CountingOrt):
    """A build whose GPU provider loads; what it is told is kept, and what it runs, runs on the CPU."""

    __version__ = "9.9.9"

    def __init__(self, provider: str) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.fails_with: str | None = None
        outer = self

        class Session:
            def __init__(
                self, model: Any, options: Any, providers: Any, enable_fallback: int, provider_options: Any = None
            ) -> None:
                outer.told.append(list(zip(providers, provider_options or [], strict=False)))
                self.providers = providers
                self.real = onnxruntime.InferenceSession(model, providers=[CPU])

            def get_providers(self) -> Any:
                return self.providers

            def run_with_iobinding(self, *arguments: Any) -> None:
                if outer.fails_with:
                    raise RuntimeError(outer.fails_with)
                self.real.run_with_iobinding(*arguments)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        self.InferenceSession = Session
        self.SessionOptions = onnxruntime.SessionOptions
        self.get_available_providers = lambda: [provider, CPU]
        self.set_default_logger_severity = lambda _: None


def play(monkeypatch: pytest.MonkeyPatch, provider: str) -> GpuOrt:
    build = GpuOrt(provider)
    monkeypatch.setattr(sessions, "load_onnxruntime", lambda: build)
    monkeypatch.setattr(ort, "require_gpu", lambda index: replace(CARD, index=index))
    monkeypatch.setattr(
        ort, "DeviceBinding", lambda made, session, **options: cpu_binding(made, session, cuda_graph=False)
    )
    return build


def test_a_run_on_a_gpu_goes_through_kept_memory(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    build = play(monkeypatch, CUDA)
    with OrtRuntime(artifact, Precision.FP16, CUDA, gpu=GpuOptions(device=1)) as runtime:
        assert runtime.name == "ONNX Runtime 9.9.9 CUDA, fp16"
        for seed in (1, 2):
            inputs = random_inputs(EDGES, 2, (32, 96), seed)
            found = runtime.run(inputs)
            assert list(found) == [PIXELS, IMAGE]
            for name, array in expected(EDGES, inputs).items():
                np.testing.assert_array_equal(found[name], array)
        assert list(runtime.run(inputs, [IMAGE, PIXELS])) == [IMAGE, PIXELS]
        assert list(runtime.run(inputs, [IMAGE])) == [IMAGE]
    assert build.made == 4 + 4 + 3
    assert build.told[-1][0][1]["device_id"] == "1"
    assert build.told[-1][1] == (CPU, {})
    with pytest.raises(RuntimeUnavailableError, match="it was closed"):
        runtime.run(inputs)


def test_a_style_vector_fixes_the_shapes_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, CUDA)
    inputs = random_inputs(STYLED, 2)
    found = OrtRuntime(stand_in_artifact(tmp_path / "a", STYLED), provider=CUDA).run(inputs)
    np.testing.assert_array_equal(found[IMAGE], expected(STYLED, inputs)[IMAGE])


def test_tensorrt_comes_before_cuda_before_the_cpu(
    artifact: Artifact, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = play(monkeypatch, TENSORRT)
    runtime = OrtRuntime(artifact, provider=TENSORRT, gpu=GpuOptions(profile=PROFILE))
    assert runtime.name == "ONNX Runtime 9.9.9 TensorRT, fp32"
    assert [name for name, _ in build.told[-1]] == [TENSORRT, CUDA, CPU]
    folder = Path(build.told[-1][0][1]["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(home)
    inputs = random_inputs(EDGES, 2, (64, 64))
    np.testing.assert_array_equal(runtime.run(inputs)[IMAGE], expected(EDGES, inputs)[IMAGE])
    with pytest.raises(InputRefusedError, match="is not within"):
        runtime.run(random_inputs(EDGES, 5, (64, 64)))


def test_no_memory_in_a_run_is_said_in_a_sentence(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    build = play(monkeypatch, CUDA)
    runtime = OrtRuntime(artifact, provider=CUDA)
    build.fails_with = NO_MEMORY
    with pytest.raises(RuntimeUnavailableError, match=r"failed on label .*: the GPU's memory ran out: 800") as caught:
        runtime.run(random_inputs(EDGES, 1))
    assert "`batch_size`" in str(caught.value.hint)
    build.fails_with = "something else\nat line 7"
    with pytest.raises(RuntimeUnavailableError, match=r"something else$"):
        runtime.run(random_inputs(EDGES, 1))


def test_options_of_a_gpu_are_refused_on_the_cpu(artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="session on the CPU"):
        OrtRuntime(artifact, gpu=GpuOptions())


class Listed(GpuOrt):
    """Lists its provider, which does not load."""

    def __init__(self) -> None:
        super().__init__(CUDA)
        self.InferenceSession = None


def test_a_provider_that_does_not_load_says_why(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "load_onnxruntime", Listed)

    def refused() -> RuntimeUnavailableError:
        with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider does not load here: ") as caught:
            OrtRuntime(artifact, provider=CUDA)
        return caught.value

    monkeypatch.setattr(messages, "loading_error", lambda _: NO_CUDNN)
    monkeypatch.setattr(messages, "find_gpus", lambda: [CARD])
    error = refused()
    assert error.message.endswith("cuDNN is missing: libcudnn.so.9 cannot be loaded")
    assert "[cuda,cudnn]" in str(error.hint)
    monkeypatch.setattr(messages, "loading_error", lambda _: "a\nTraceback\nValueError: strange")
    assert refused().message.endswith("here: ValueError: strange")
    monkeypatch.setattr(messages, "find_gpus", list)
    assert "sees no GPU" in refused().message

    def no_driver() -> list[Gpu]:
        raise RuntimeUnavailableError("the NVIDIA driver does not load here: libcuda.so.1", hint="install it")

    monkeypatch.setattr(messages, "find_gpus", no_driver)
    error = refused()
    assert error.message.endswith("libcuda.so.1")
    assert error.hint == "install it"


def test_a_provider_that_this_build_does_not_have_says_which_it_has(artifact: Artifact) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=r"NoSuchExecutionProvider does not .* this installation has .*CPU"
    ):
        OrtRuntime(artifact, provider="NoSuchExecutionProvider")


# --- The real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[CUDA, TENSORRT])
def provider(request: pytest.FixtureRequest) -> str:
    if not provider_loads(request.param):
        pytest.skip(f"ONNX Runtime's {request.param} does not load here")
    return str(request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "styled"])
def test_a_gpu_answers_as_the_cpu_does(provider: str, spec: Any, tmp_path: Path) -> None:
    gpu = GpuOptions(cache_folder=tmp_path / "cache") if provider == TENSORRT else GpuOptions()
    with OrtRuntime(stand_in_artifact(tmp_path / "a", spec), provider=provider, gpu=gpu) as runtime:
        assert {CUDA: " CUDA, ", TENSORRT: " TensorRT, "}[provider] in runtime.name
        for count, seed in ((2, 1), (2, 2), (1, 3)):
            inputs = random_inputs(spec, count, seed=seed)
            found, right = runtime.run(inputs), expected(spec, inputs)
            assert np.abs(found[IMAGE] - right[IMAGE]).max() < 1e-5
            # Truncation may flip a value that lies on an integer.
            assert np.abs(found[PIXELS].astype(int) - right[PIXELS].astype(int)).max() <= 1


@pytest.mark.gpu
def test_a_replayed_graph_answers_for_the_inputs_of_now(tmp_path: Path) -> None:
    if not provider_loads(CUDA):
        pytest.skip(f"ONNX Runtime's {CUDA} does not load here")
    with OrtRuntime(stand_in_artifact(tmp_path / "a"), provider=CUDA, gpu=GpuOptions(cuda_graph=True)) as runtime:
        for seed in range(5):
            for count in (1, 3):
                inputs = random_inputs(PLAIN, count, seed=seed)
                assert np.abs(runtime.run(inputs)[IMAGE] - expected(PLAIN, inputs)[IMAGE]).max() < 1e-5
