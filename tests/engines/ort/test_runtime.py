import builtins
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from spade_deploy.artifact import IMAGE, LABEL, PIXELS
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort import session as sessions
from spade_deploy.engines.ort.messages import PROBE_MODEL
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU, CUDA, provider_loads
from spade_deploy.errors import (
    ArtifactError,
    ConfigError,
    InputRefusedError,
    MissingDependencyError,
    RuntimeUnavailableError,
)
from spade_deploy.spec import GeneratorSpec, Precision
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs, stand_in_artifact, stand_in_graph


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "styled"])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_those_of_the_graph(tmp_path: Path, spec: GeneratorSpec, count: int) -> None:
    inputs = random_inputs(spec, count, seed=count)
    right = expected(spec, inputs)
    with OrtRuntime(stand_in_artifact(tmp_path / "a", spec)) as runtime:
        outputs = runtime.run(inputs)
    assert list(outputs) == [PIXELS, IMAGE]
    # The same float operations in the same order: measured 0.
    for name, array in right.items():
        np.testing.assert_array_equal(outputs[name], array)
        assert outputs[name].dtype == array.dtype


def test_one_session_serves_every_size(tmp_path: Path) -> None:
    with OrtRuntime(stand_in_artifact(tmp_path / "a", EDGES)) as runtime:
        for size in ((32, 32), (96, 64), (32, 160)):
            inputs = random_inputs(EDGES, 2, size)
            np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(EDGES, inputs)[PIXELS])


def test_many_batches_in_order_and_what_fails_in_its_place(tmp_path: Path) -> None:
    batches = [random_inputs(EDGES, count, seed=count) for count in (2, 1, 3)]
    with OrtRuntime(stand_in_artifact(tmp_path / "a", EDGES)) as runtime:
        for inputs, outputs in zip(batches, runtime.run_many(iter(batches), [IMAGE]), strict=True):
            assert list(outputs) == [IMAGE]
            np.testing.assert_array_equal(outputs[IMAGE], expected(EDGES, inputs)[IMAGE])
        bad = {**batches[0], LABEL: np.full_like(batches[0][LABEL], 99)}
        answers = runtime.run_many([batches[0], bad])
        assert next(answers)[IMAGE].shape[0] == 2
        with pytest.raises(InputRefusedError, match="id 99"):
            next(answers)


def test_no_block_of_memory_is_kept_for_each_number_of_patterns(tmp_path: Path) -> None:
    # At COCO-Stuff's size such blocks take 280 MB after two maps and 480 after 13, and make no map faster.
    with OrtRuntime(stand_in_artifact(tmp_path / "a")) as runtime:
        assert not runtime._session.get_session_options().enable_mem_pattern
    assert sessions.open_session(PROBE_MODEL).get_session_options().enable_mem_pattern


def test_only_the_outputs_that_are_asked_for_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OrtRuntime(stand_in_artifact(tmp_path / "a"))
    asked = []

    class Session:
        def run(self, names: list[str], inputs: Any) -> list[Any]:
            asked.append(names)
            return [None] * len(names)

    runtime._session = Session()
    assert list(runtime.run(random_inputs(PLAIN), [PIXELS])) == [PIXELS]
    assert asked == [[PIXELS]]
    with pytest.raises(ConfigError, match="output 'rgb' is not one of pixels, image"):
        runtime.run(random_inputs(PLAIN), ["rgb"])


def test_inputs_are_refused_before_the_session_runs(tmp_path: Path) -> None:
    runtime = OrtRuntime(stand_in_artifact(tmp_path / "a"))
    runtime._session = types.SimpleNamespace(run=lambda *_: pytest.fail("the session ran"))
    with pytest.raises(InputRefusedError, match="input label: id 9"):
        runtime.run({LABEL: np.full((1, 32, 32), 9, np.uint8)})


def test_a_failure_inside_the_session_is_wrapped(tmp_path: Path) -> None:
    class FailedError(Exception):
        pass

    def fail(*_: Any) -> None:
        raise FailedError("[ONNXRuntimeError] : 1 : FAIL : out of memory\nat line 7")

    runtime = OrtRuntime(stand_in_artifact(tmp_path / "a"))
    runtime._session = types.SimpleNamespace(run=fail)
    with pytest.raises(RuntimeUnavailableError, match=r"failed on label 2 x 64 x 32: .*out of memory$") as caught:
        runtime.run(random_inputs(PLAIN))
    assert isinstance(caught.value.__cause__, FailedError)


def test_a_closed_runtime_does_not_run(tmp_path: Path) -> None:
    with OrtRuntime(stand_in_artifact(tmp_path / "a")) as runtime:
        pass
    with pytest.raises(RuntimeUnavailableError, match="it was closed"):
        runtime.run(random_inputs(PLAIN))


def test_a_graph_that_cannot_be_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = stand_in_artifact(tmp_path / "a", graph=stand_in_graph(PLAIN)[:200])
    with pytest.raises(ArtifactError, match=r"generator\.fp32\.onnx: ONNX Runtime .* cannot load it"):
        OrtRuntime(artifact)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"its outputs are .*'rgb'.*, the manifest says .*'image'"):
        OrtRuntime(stand_in_artifact(tmp_path / "a", graph=stand_in_graph(PLAIN, wrong_output="rgb")))
    with pytest.raises(ArtifactError, match="its inputs are"):
        OrtRuntime(stand_in_artifact(tmp_path / "b", graph=stand_in_graph(EDGES)))


def test_the_embedded_probe_is_the_model_that_its_docstring_says() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString() == PROBE_MODEL
    onnx.checker.check_model(onnx.load_model_from_string(PROBE_MODEL))


def test_providers_that_load() -> None:
    assert provider_loads(CPU)
    assert not provider_loads("NoSuchExecutionProvider")


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    real_import = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="ONNX Runtime") as caught:
        open_runtime(artifact)
    assert "pip install 'spade-deploy[cpu]'" in (caught.value.hint or "")


# --- A build with CUDA, played by a stand-in: what matters is what the session says that it runs on -------------------


class FakeOrt(types.SimpleNamespace):
    """Lists CUDA; `loads` says whether a session with it gets it, `model_loads` the same for a real model."""

    __version__ = "9.9.9"

    def __init__(self, spec: GeneratorSpec, *, loads: bool, model_loads: bool = True) -> None:
        import onnxruntime

        class Session:
            def __init__(
                self, model: Any, options: Any, providers: list[str], enable_fallback: int, provider_options: Any = None
            ) -> None:
                assert enable_fallback == 0
                assert provider_options is None or len(provider_options) == len(providers)
                self.told = dict(zip(providers, provider_options or [{}], strict=False))
                works = loads and (model_loads or isinstance(model, bytes))
                self.providers = [p for p in providers if p == CPU or works] or [CPU]
                self.real = onnxruntime.InferenceSession(model, providers=[CPU])

            def get_providers(self) -> list[str]:
                return self.providers

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        super().__init__(
            InferenceSession=Session,
            SessionOptions=onnxruntime.SessionOptions,
            get_available_providers=lambda: [CUDA, CPU],
            set_default_logger_severity=lambda _: None,
            preload_dlls=lambda directory: print("Failed to load libcublasLt.so.12"),
        )


BOTH = (Precision.FP32, Precision.FP16)


def test_where_cuda_loads_auto_takes_it_with_fp16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "load_onnxruntime", lambda: FakeOrt(PLAIN, loads=True))
    both, single = stand_in_artifact(tmp_path / "a", precisions=BOTH), stand_in_artifact(tmp_path / "b")
    assert open_runtime(both).name == "ONNX Runtime 9.9.9 CUDA, fp16"
    assert open_runtime(both, backend="cuda").name == "ONNX Runtime 9.9.9 CUDA, fp16"
    assert open_runtime(both, Precision.FP32).name == "ONNX Runtime 9.9.9 CUDA, fp32"
    assert open_runtime(both, backend="cpu").name == "ONNX Runtime 9.9.9 CPU, fp32"
    assert open_runtime(single).name == "ONNX Runtime 9.9.9 CUDA, fp32"
    assert capfd.readouterr() == ("", "")


def test_cuda_that_is_listed_but_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "load_onnxruntime", lambda: FakeOrt(PLAIN, loads=False))
    artifact = stand_in_artifact(tmp_path / "a", precisions=BOTH)
    assert open_runtime(artifact).name == "ONNX Runtime 9.9.9 CPU, fp32"
    with pytest.raises(RuntimeUnavailableError, match="does not load here"):
        open_runtime(artifact, backend="cuda")


def test_cuda_that_loads_but_not_for_this_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "load_onnxruntime", lambda: FakeOrt(PLAIN, loads=True, model_loads=False))
    with pytest.raises(RuntimeUnavailableError, match="the session runs on CPUExecutionProvider instead"):
        open_runtime(stand_in_artifact(tmp_path / "a", precisions=BOTH), backend="cuda")
