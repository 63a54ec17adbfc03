from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays, Artifact, Z
from spade_deploy.engines import open as opening
from spade_deploy.engines.base import Backend, check_inputs
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.engines.open import ENGINES, Engine, open_runtime
from spade_deploy.errors import ArtifactError, ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision
from tests.support import toy_engine
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs, stand_in_artifact

SPECS = {"plain": PLAIN, "edges": EDGES, "styled": STYLED}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("count", [1, 3])
def test_right_inputs_are_taken(spec: GeneratorSpec, count: int) -> None:
    check_inputs(spec, random_inputs(spec, count))
    if spec.is_dynamic:
        check_inputs(spec, random_inputs(spec, count, (96, 160)))


def with_pixel(inputs: Arrays, value: int, dtype: str | None = None) -> Arrays:
    label = inputs[LABEL].astype(dtype or inputs[LABEL].dtype)
    label[1, 2, 3] = value
    return {**inputs, LABEL: label}


EDGE_INPUTS, STYLE_INPUTS, PLAIN_INPUTS = (random_inputs(spec) for spec in (EDGES, STYLED, PLAIN))


@pytest.mark.parametrize(
    ("spec", "inputs", "problem"),
    [
        (EDGES, {LABEL: EDGE_INPUTS[LABEL]}, "input instance: missing"),
        (PLAIN, {**PLAIN_INPUTS, INSTANCE: EDGE_INPUTS[INSTANCE]}, "input instance: unknown tensor"),
        (PLAIN, {LABEL: PLAIN_INPUTS[LABEL].astype(np.int64)}, "input label: type int64, expected uint8"),
        (STYLED, {**STYLE_INPUTS, Z: STYLE_INPUTS[Z].astype(np.float64)}, "input z: type float64, expected float32"),
        (STYLED, {**STYLE_INPUTS, Z: STYLE_INPUTS[Z][:1]}, "input z: shape 1 x 2: N is 1, but 2 in label"),
        (PLAIN, {LABEL: PLAIN_INPUTS[LABEL][0]}, "input label: shape 64 x 32, expected N x H x W"),
        (EDGES, {**EDGE_INPUTS, INSTANCE: EDGE_INPUTS[INSTANCE][:, :16]}, "instance: shape 2 x 16 x 64: H is 16"),
        (PLAIN, random_inputs(PLAIN, size=(64, 40)), "input label: width 40 is not a multiple of 32"),
        (PLAIN, random_inputs(PLAIN, size=(33, 32)), "input label: height 33 is not a multiple of 32"),
        (STYLED, random_inputs(STYLED, size=(64, 64)), "shape 2 x 64 x 64, expected N x 32 x 32"),
        (PLAIN, with_pixel(PLAIN_INPUTS, 5), "input label: id 5 is out of range; allowed are 0..4"),
        (EDGES, with_pixel(EDGE_INPUTS, 255), "input label: id 255 is out of range; allowed are 0..5"),
        (STYLED, with_pixel(STYLE_INPUTS, -1), "input label: id -1 is out of range; allowed are 0..299"),
    ],
)
def test_wrong_inputs_are_refused_by_name(spec: GeneratorSpec, inputs: Arrays, problem: str) -> None:
    with pytest.raises(InputRefusedError) as caught:
        check_inputs(spec, inputs)
    assert problem in str(caught.value)


def test_auto_runs_on_the_cpu_here_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = stand_in_artifact(tmp_path / "a", precisions=(Precision.FP16, Precision.FP32))
    with open_runtime(artifact) as runtime:
        if "CUDA" in runtime.name:
            pytest.skip("CUDA loads on this machine")
        assert runtime.name.startswith("ONNX Runtime ")
        assert runtime.name.endswith(" CPU, fp32"), "fp32 is the default on a CPU whatever comes first"
    with open_runtime(artifact, Precision.FP16, "cpu", threads=1) as runtime:
        assert runtime.name.endswith(" CPU, fp16")
        assert runtime.precision == Precision.FP16
    assert capfd.readouterr() == ("", ""), "a probe is silent"


def test_cuda_by_name_is_never_a_silent_cpu_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from spade_deploy.engines.ort import session as ort

    if ort.provider_loads(ort.CUDA):
        pytest.skip("CUDA loads on this machine")
    with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider does not load here") as caught:
        open_runtime(stand_in_artifact(tmp_path / "a"), backend=Backend.CUDA)
    assert "spade doctor" in (caught.value.hint or "")
    assert capfd.readouterr() == ("", "")


def test_impossible_requests(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    with pytest.raises(ConfigError, match="`backend`: 'tpu' is not one of auto, cpu, openvino, cuda"):
        open_runtime(artifact, backend="tpu")
    with pytest.raises(ConfigError, match="`threads`: 0"):
        open_runtime(artifact, threads=0)
    with pytest.raises(ArtifactError, match="no fp16 dense graph"):
        open_runtime(artifact, Precision.FP16)


# --- Adding an engine: one entry, and a module with two functions -----------------------------------------------------

TOY = Engine("toy", toy_engine.__name__, note_on_failure="the toy does not run here")


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ENGINES", (TOY, *ENGINES))


def with_lookup(artifact: Artifact, share: float | None) -> Artifact:
    """The artifact, as if it had a lookup graph that wins up to that share of unique patterns."""
    (dense,) = artifact.manifest.graphs
    lookup = replace(dense, kind=GraphKind.LOOKUP, break_even_share=share)
    return Artifact(artifact.path, replace(artifact.manifest, graphs=(dense, lookup)))


@pytest.mark.usefixtures("with_toy")
@pytest.mark.parametrize("spec", [PLAIN, STYLED], ids=["plain", "styled"])
@pytest.mark.parametrize("graph", ["dense", "lookup"])
def test_an_engine_that_is_added_by_one_entry_makes_images(tmp_path: Path, spec: GeneratorSpec, graph: str) -> None:
    artifact, inputs = with_lookup(stand_in_artifact(tmp_path / "a", spec), None), random_inputs(spec, 2)
    with open_runtime(artifact, backend="toy", graph=graph) as runtime:
        assert runtime.name == f"Toy, fp32 {graph}"
        (found,) = runtime.run_many([inputs], [PIXELS])
    np.testing.assert_array_equal(found[PIXELS], expected(spec, inputs)[PIXELS])


@pytest.mark.usefixtures("with_toy")
def test_an_engine_that_is_added_decides_map_by_map_too(tmp_path: Path) -> None:
    artifact = with_lookup(stand_in_artifact(tmp_path / "a"), 0.5)
    many, few = random_inputs(PLAIN), {LABEL: np.ones((1, 64, 32), np.uint8)}
    with open_runtime(artifact, backend="toy") as runtime:
        assert isinstance(runtime, AutoRuntime)
        assert runtime.name == "Toy, fp32 lookup (dense above 50% unique patterns)"
        for inputs, kind in ((few, GraphKind.LOOKUP), (many, GraphKind.DENSE), (few, GraphKind.LOOKUP)):
            np.testing.assert_array_equal(runtime.run(inputs)[IMAGE], expected(PLAIN, inputs)[IMAGE])
            assert runtime.kind is kind


@pytest.mark.usefixtures("with_toy")
@pytest.mark.parametrize(("precision", "share"), [(Precision.FP32, "20%"), (Precision.INT8, "70%")])
def test_the_rule_is_that_of_the_graphs_that_run(tmp_path: Path, precision: Precision, share: str) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    (dense,) = artifact.manifest.graphs
    graphs = tuple(
        replace(dense, precision=one, kind=kind, break_even_share=found)
        for one, rule in ((Precision.FP32, 0.2), (Precision.INT8, 0.7))
        for kind, found in ((GraphKind.DENSE, None), (GraphKind.LOOKUP, rule))
    )
    artifact = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
    with open_runtime(artifact, precision, backend="toy") as runtime:
        assert runtime.name == f"Toy, {precision} lookup (dense above {share} unique patterns)"


@pytest.mark.usefixtures("with_toy")
def test_auto_tries_engines_in_order_and_says_why_one_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    assert open_runtime(artifact).name == "Toy, fp32 dense"
    monkeypatch.setattr(toy_engine, "FAILS", True)
    name = open_runtime(artifact).name
    assert name.startswith("ONNX Runtime")
    assert name.endswith(" (the toy does not run here: the toy is broken)")
    with pytest.raises(RuntimeUnavailableError, match="the toy is broken"):
        open_runtime(artifact, backend="toy")
    monkeypatch.setattr(toy_engine, "IS_HERE", False)
    assert "toy" not in open_runtime(artifact).name
    monkeypatch.setattr(opening, "ENGINES", (replace(TOY, is_automatic=False), *ENGINES))
    monkeypatch.setattr(toy_engine, "IS_HERE", True)
    assert "toy" not in open_runtime(artifact).name


def test_an_engine_is_imported_only_when_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Engine("nowhere", "no.such.module")
    monkeypatch.setattr(opening, "ENGINES", (*ENGINES, nowhere))
    assert open_runtime(stand_in_artifact(tmp_path / "a")).name.startswith("ONNX Runtime")
    with pytest.raises(ConfigError, match=r"'tpu' is not one of auto, cpu, .*, ort-tensorrt, nowhere"):
        open_runtime(stand_in_artifact(tmp_path / "a"), backend="tpu")
    with pytest.raises(ModuleNotFoundError):
        open_runtime(stand_in_artifact(tmp_path / "a"), backend="nowhere")


def test_where_no_engine_runs_the_reasons_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "ENGINES", (TOY,))
    monkeypatch.setattr(toy_engine, "FAILS", True)
    with pytest.raises(RuntimeUnavailableError, match=r"no engine runs .* \(the toy does not run here: the toy is"):
        open_runtime(stand_in_artifact(tmp_path / "a"))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.backend)
def test_every_engine_has_the_same_face_and_is_a_choice_of_the_command_line(engine: Engine) -> None:
    opener: SimpleNamespace = engine.load()  # type: ignore[assignment]
    assert callable(opener.can_run)
    assert callable(opener.open_runtime)
    assert {entry.backend for entry in ENGINES} == set(Backend) - {Backend.AUTO}
