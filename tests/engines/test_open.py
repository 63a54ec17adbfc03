from pathlib import Path

import numpy as np
import pytest

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z
from spade_deploy.engines.base import Backend, check_inputs
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ArtifactError, ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.spec import GeneratorSpec, Precision
from tests.support.stand_in import EDGES, PLAIN, STYLED, random_inputs, stand_in_artifact

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
    from spade_deploy.engines.ort import runtime as ort

    if ort.provider_loads(ort.CUDA):
        pytest.skip("CUDA loads on this machine")
    with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider does not load here") as caught:
        open_runtime(stand_in_artifact(tmp_path / "a"), backend=Backend.CUDA)
    assert "spade doctor" in (caught.value.hint or "")
    assert capfd.readouterr() == ("", "")


def test_impossible_requests(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    with pytest.raises(ConfigError, match="`backend`: 'tpu' is not one of auto, cpu, cuda"):
        open_runtime(artifact, backend="tpu")
    with pytest.raises(ConfigError, match="`threads`: 0"):
        open_runtime(artifact, threads=0)
    with pytest.raises(ArtifactError, match="no fp16 dense graph"):
        open_runtime(artifact, Precision.FP16)
