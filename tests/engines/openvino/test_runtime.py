"""OpenVINO on a stand-in graph: values, sizes, threads, and what is refused."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino import models
from spade_deploy.engines.openvino.library import has_bf16, load_openvino
from spade_deploy.engines.openvino.models import KEPT_SIZES, settings_of
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.errors import ArtifactError, ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.spec import GeneratorSpec, Precision
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs, stand_in_artifact, stand_in_graph


def opened(folder: Path, spec: GeneratorSpec = PLAIN, threads: int | None = 1) -> OpenVinoRuntime:
    return OpenVinoRuntime(stand_in_artifact(folder / "a", spec), Precision.FP32, threads)


def assert_right(spec: GeneratorSpec, inputs: Arrays, outputs: Arrays) -> None:
    right = expected(spec, inputs)
    # OpenVINO fuses a product and a sum: measured 6e-8, a unit in the last place; a truncated byte may fall by one.
    np.testing.assert_allclose(outputs[IMAGE], right[IMAGE], rtol=0, atol=2.5e-7)
    assert np.abs(outputs[PIXELS].astype(int) - right[PIXELS]).max() <= 1
    for name, array in right.items():
        assert outputs[name].dtype == array.dtype


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "styled"])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_those_of_the_graph(tmp_path: Path, spec: GeneratorSpec, count: int) -> None:
    inputs = random_inputs(spec, count, seed=count)
    with opened(tmp_path, spec) as runtime:
        outputs = runtime.run(inputs)
    assert list(outputs) == [PIXELS, IMAGE]
    assert_right(spec, inputs, outputs)


def test_the_name_is_that_of_the_engine_that_runs(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a", precisions=(Precision.FP32, Precision.FP16))
    with open_runtime(artifact, backend="openvino") as runtime:
        assert runtime.name == f"OpenVINO {load_openvino().__version__.split('-')[0]} CPU, fp32"
    with open_runtime(artifact, Precision.FP16, "openvino") as runtime:
        assert runtime.name.endswith(" CPU, fp16, computed in float32")
    if not has_bf16():
        return
    for backend in ("openvino", "auto"):
        with open_runtime(artifact, Precision.BF16, backend) as runtime:
            assert runtime.name.endswith(" CPU, bf16")
            assert runtime.name.startswith("OpenVINO ")
            assert runtime.precision is Precision.BF16


def test_each_size_is_compiled_once_and_a_bounded_number_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[int, ...]] = []
    compile_one = models.SizedModels._compile

    def counted(self: Any, extent: tuple[int, ...], inputs: Any) -> Any:
        compiled.append(extent)
        return compile_one(self, extent, inputs)

    monkeypatch.setattr(models.SizedModels, "_compile", counted)
    sizes = [(32 * number, 32) for number in range(1, KEPT_SIZES + 2)]
    with opened(tmp_path, EDGES) as runtime:
        assert runtime._models is not None
        runtime._models._cache = None  # else a size that was let go comes back without being compiled

        def run(size: tuple[int, int]) -> None:
            inputs = random_inputs(EDGES, 1, size)
            assert_right(EDGES, inputs, runtime.run(inputs))

        for size in (*sizes[:-1], *sizes[:-1]):
            run(size)
        assert compiled == [(1, *size) for size in sizes[:-1]]
        run(sizes[0])  # the second is now the one that was not used for longest
        run(sizes[-1])
        assert len(runtime._models._ready) == KEPT_SIZES
        run(sizes[0])
        assert len(compiled) == KEPT_SIZES + 1
        run(sizes[1])
        assert compiled[-1] == (1, *sizes[1])


def test_many_batches_in_order_and_what_fails_in_its_place(tmp_path: Path) -> None:
    batches = [random_inputs(EDGES, count, seed=number) for number, count in enumerate((2, 1, 3, 2))]
    with opened(tmp_path, EDGES) as runtime:
        found = list(runtime.run_many(iter(batches)))
        for inputs, outputs in zip(batches, found, strict=True):  # what is returned is never overwritten by a later run
            assert_right(EDGES, inputs, outputs)
        bad = {**batches[0], LABEL: np.full_like(batches[0][LABEL], 99)}
        answers = runtime.run_many([batches[0], bad], [IMAGE])
        assert list(next(answers)) == [IMAGE]
        with pytest.raises(InputRefusedError, match="id 99"):
            next(answers)


def test_arrays_of_any_layout_are_taken(tmp_path: Path) -> None:
    inputs = random_inputs(PLAIN, 2)
    turned = {LABEL: np.asfortranarray(inputs[LABEL])}
    turned[LABEL].flags.writeable = False
    with opened(tmp_path) as runtime:
        assert_right(PLAIN, inputs, runtime.run(turned))


def test_what_is_asked_wrongly_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened(tmp_path)
    monkeypatch.setattr(models.SizedModels, "request", lambda *_: pytest.fail("a model was made ready"))
    with pytest.raises(InputRefusedError, match="input label: id 9"):
        runtime.run({LABEL: np.full((1, 32, 32), 9, np.uint8)})
    with pytest.raises(ConfigError, match="output 'rgb' is not one of pixels, image"):
        runtime.run(random_inputs(PLAIN), ["rgb"])
    with pytest.raises(ConfigError, match="pattern tables are for a lookup graph"):
        runtime.run_tables({})


def test_a_failure_inside_openvino_is_wrapped(tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223:\nout of memory")

    runtime = opened(tmp_path)
    assert runtime._models is not None
    runtime._models.request = lambda _: types.SimpleNamespace(infer=fail)  # type: ignore[method-assign]
    with pytest.raises(RuntimeUnavailableError, match=r"failed on label 2 x 64 x 32: .*out of memory$"):
        runtime.run(random_inputs(PLAIN))


def test_a_closed_runtime_does_not_run(tmp_path: Path) -> None:
    with opened(tmp_path) as runtime:
        runtime.run(random_inputs(PLAIN))
    with pytest.raises(RuntimeUnavailableError, match="it was closed"):
        runtime.run(random_inputs(PLAIN))


def test_a_graph_that_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = stand_in_artifact(tmp_path / "a", graph=stand_in_graph(PLAIN)[:200])
    with pytest.raises(ArtifactError, match=r"generator\.fp32\.onnx: OpenVINO .* cannot read it: ") as caught:
        open_runtime(artifact, backend="openvino")
    assert "pip install --upgrade openvino, or `spade export` again" in (caught.value.hint or "")
    assert "Exception from" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    wrong = stand_in_artifact(tmp_path / "a", graph=stand_in_graph(PLAIN, wrong_output="rgb"))
    with pytest.raises(ArtifactError, match=r"its outputs are .*'rgb'.*, the manifest says .*'image'"):
        open_runtime(wrong, backend="openvino")
    with pytest.raises(ArtifactError, match="its inputs are"):
        open_runtime(stand_in_artifact(tmp_path / "b", graph=stand_in_graph(EDGES)), backend="openvino")


def test_what_openvino_is_told(tmp_path: Path) -> None:
    for precision, hint in ((Precision.FP32, "f32"), (Precision.FP16, "f32"), (Precision.INT8, "f32")):
        assert settings_of(precision, None)["INFERENCE_PRECISION_HINT"] == hint, "its default is bf16 on many CPUs"
    assert settings_of(Precision.BF16, None)["INFERENCE_PRECISION_HINT"] == "bf16"
    assert "INFERENCE_NUM_THREADS" not in settings_of(Precision.FP32, None)
    with opened(tmp_path, threads=1) as runtime:
        runtime.run(random_inputs(PLAIN))
        assert runtime._models is not None
        (ready,) = runtime._models._ready.values()
        told = ready.request.get_compiled_model()
        assert told.get_property("INFERENCE_NUM_THREADS") == 1
        assert told.get_property("NUM_STREAMS") == 1
        assert told.get_property("ENABLE_CPU_PINNING") is False
        assert told.get_property("INFERENCE_PRECISION_HINT") == load_openvino().Type.f32


def test_another_precision_than_was_asked_for_is_an_error(tmp_path: Path) -> None:
    runtime = opened(tmp_path)
    assert runtime._models is not None
    compiled = types.SimpleNamespace(
        inputs=runtime._models._model.inputs,
        outputs=runtime._models._model.outputs,
        get_property=lambda _: load_openvino().Type.bf16,
    )
    with pytest.raises(RuntimeUnavailableError, match=r"runs fp32 in .*bfloat16.*, not in f32"):
        runtime._models._check(compiled)


def test_a_dense_graph_of_many_ids_has_to_compare_them_in_bf16(tmp_path: Path) -> None:
    """The stand-in multiplies its ids, which bfloat16 would round; a graph of ours compares them as integers."""
    artifact = stand_in_artifact(tmp_path / "many", STYLED)
    with pytest.raises(RuntimeUnavailableError, match="bf16: the graph uses its label ids in"):
        OpenVinoRuntime(artifact, Precision.BF16, 1)
