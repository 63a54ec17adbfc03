"""What ONNX Runtime's GPU providers are told, and what their messages mean."""

from __future__ import annotations

import ctypes
import os
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact, Graph
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.ort import messages as ort_messages
from spade_deploy.engines.ort import providers as ort_providers
from spade_deploy.engines.ort.messages import explain, loading_error
from spade_deploy.engines.ort.providers import (
    ConvSearch,
    GpuOptions,
    cache_folder,
    cache_key,
    check_profile,
    provider_options,
)
from spade_deploy.engines.ort.session import CPU, CUDA, TENSORRT
from spade_deploy.errors import ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.spec import GraphKind, Precision, ShapeProfile
from tests.support.stand_in import EDGES, PLAIN, STYLED, random_inputs, stand_in_artifact

CARD = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30, "13.0")
PROFILE = ShapeProfile.parse("1x32x32:2x64x64:4x128x64")


def told(provider: str, artifact: Artifact, options: GpuOptions, precision: Precision = Precision.FP32) -> Any:
    return provider_options(provider, artifact, artifact.graph(precision), CARD, options, "1.26.0")


# --- What the providers are told --------------------------------------------------------------------------------------


def test_cuda_searches_where_the_size_is_fixed_and_estimates_where_it_is_not(
    artifact: Artifact, tmp_path: Path
) -> None:
    assert told(CUDA, artifact, GpuOptions(device=2)) == {
        "device_id": "2",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
    }
    fixed = stand_in_artifact(tmp_path / "fixed", STYLED)
    assert told(CUDA, fixed, GpuOptions())["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    asked = GpuOptions(conv_search=ConvSearch.EXHAUSTIVE, cuda_graph=True)
    assert told(CUDA, artifact, asked)["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert told(CUDA, artifact, asked)["enable_cuda_graph"] == "1"


def test_tf32_never_runs_a_float32_graph(artifact: Artifact) -> None:
    assert told(CUDA, artifact, GpuOptions())["use_tf32"] == "0"
    assert told(CUDA, artifact, GpuOptions(), Precision.FP16)["use_tf32"] == "1"


def test_tensorrt_keeps_the_types_of_the_graph_and_its_engines_in_a_folder_of_the_user(
    artifact: Artifact, home: Path
) -> None:
    options = told(TENSORRT, artifact, GpuOptions(), Precision.FP16)
    assert {name: options[name] for name in ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")} == {
        "trt_fp16_enable": "False",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "False",
    }
    folder = str(home / "spade-deploy" / "onnxruntime-tensorrt")
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == folder
    assert options["trt_engine_cache_prefix"].startswith("spade-")
    assert not any(name.startswith("trt_profile") for name in options)
    assert told(CPU, artifact, GpuOptions()) == {}
    with pytest.raises(ConfigError, match="need the GPU"):
        provider_options(TENSORRT, artifact, artifact.graph(), None, GpuOptions(), "1.31.1")


@pytest.mark.parametrize("version", ["1.27.0", "1.31.1", "2.0.0.dev1"])
def test_a_version_that_does_not_keep_the_types_runs_float32_alone(
    artifact: Artifact, home: Path, version: str
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"ONNX Runtime {version} does not keep .*: fp16 would"):
        provider_options(TENSORRT, artifact, artifact.graph(Precision.FP16), CARD, GpuOptions(), version)
    assert provider_options(TENSORRT, artifact, artifact.graph(), CARD, GpuOptions(), version)
    assert provider_options(CUDA, artifact, artifact.graph(Precision.FP16), CARD, GpuOptions(), version)


def test_tensorrt_is_told_the_shapes_of_every_input(artifact: Artifact, home: Path) -> None:
    options = told(TENSORRT, artifact, GpuOptions(profile=PROFILE))
    assert options["trt_profile_min_shapes"] == "label:1x32x32,instance:1x32x32"
    assert options["trt_profile_opt_shapes"] == "label:2x64x64,instance:2x64x64"
    assert options["trt_profile_max_shapes"] == "label:4x128x64,instance:4x128x64"
    lookup = Graph(artifact.graph().file, Precision.FP32, kind=GraphKind.LOOKUP)
    options = provider_options(TENSORRT, artifact, lookup, CARD, GpuOptions(profile=PROFILE), "1.31.1")
    assert "index_1:4x128x64" in options["trt_profile_max_shapes"]
    assert "patterns_32:1x9" in options["trt_profile_min_shapes"]


def test_every_fact_makes_another_cache_key(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stand_in_artifact(tmp_path / "other", PLAIN)
    graph, half = artifact.graph(), artifact.graph(Precision.FP16)
    keys = [
        cache_key(artifact, graph, CARD, None, "1.31.1"),
        cache_key(artifact, half, CARD, None, "1.31.1"),  # the stand-in's two files are the same bytes
        cache_key(other, other.graph(), CARD, None, "1.31.1"),
        cache_key(artifact, graph, replace(CARD, name="NVIDIA L40"), None, "1.31.1"),
        cache_key(artifact, graph, replace(CARD, compute_capability=(9, 0)), None, "1.31.1"),
        cache_key(artifact, graph, CARD, PROFILE, "1.31.1"),
        cache_key(artifact, graph, CARD, None, "1.32.0"),
    ]
    monkeypatch.setattr(ort_providers, "loaded_tensorrt", lambda: "101303")
    keys.append(cache_key(artifact, graph, CARD, None, "1.31.1"))
    assert len(set(keys)) == len(keys)
    # Neither the driver nor the memory makes another engine.
    same = replace(CARD, index=3, driver_cuda="13.1")
    assert cache_key(artifact, graph, same, None, "1.31.1") == keys[-1]


@pytest.mark.skipif(not hasattr(os, "RTLD_NOLOAD"), reason="this system cannot ask which libraries are loaded")
def test_tensorrt_is_asked_for_its_version_only_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ort_providers.loaded_tensorrt() is None
    modes = []

    def load(name: str, mode: int) -> Any:
        modes.append(mode)
        if not name.endswith(".10"):
            raise OSError(name)
        return types.SimpleNamespace(getInferLibVersion=lambda: 101303)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert ort_providers.loaded_tensorrt() == "101303"
    assert all(mode & os.RTLD_NOLOAD for mode in modes)


def test_engines_are_not_kept_inside_the_artifact(artifact: Artifact, tmp_path: Path) -> None:
    assert cache_folder(artifact, GpuOptions(cache_folder=tmp_path / "cache")) == tmp_path / "cache"
    for folder in (artifact.path, artifact.path / "engines", tmp_path / "cache" / ".." / artifact.path.name):
        with pytest.raises(ConfigError, match="inside the artifact"):
            cache_folder(artifact, GpuOptions(cache_folder=folder))


@pytest.mark.parametrize(
    ("provider", "kind", "options", "message"),
    [
        (TENSORRT, GraphKind.DENSE, GpuOptions(cuda_graph=True), "`cuda_graph`: Tensorrt"),
        (CUDA, GraphKind.LOOKUP, GpuOptions(cuda_graph=True), "another size for every map"),
        (CUDA, GraphKind.DENSE, GpuOptions(profile=PROFILE), "`profile`: CUDA"),
        (CUDA, GraphKind.DENSE, GpuOptions(cache_folder=Path("a")), "`cache_folder`: CUDA"),
        (TENSORRT, GraphKind.DENSE, GpuOptions(conv_search=ConvSearch.HEURISTIC), "`conv_search`: Tensorrt"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    provider: str, kind: GraphKind, options: GpuOptions, message: str
) -> None:
    GpuOptions().check(provider, kind)
    with pytest.raises(ConfigError, match=message):
        options.check(provider, kind)


def test_a_gpu_has_a_number_from_zero_on() -> None:
    with pytest.raises(ConfigError, match="`device`: -1"):
        GpuOptions(device=-1)


def test_shapes_beyond_the_profile_are_refused() -> None:
    check_profile(EDGES, GraphKind.DENSE, PROFILE, random_inputs(EDGES, 4, (128, 64)))
    for count, size in ((5, (64, 64)), (1, (160, 64)), (1, (64, 96))):
        with pytest.raises(InputRefusedError, match=r"input label: .* is not within 1x32x32 and 4x128x64"):
            check_profile(EDGES, GraphKind.DENSE, PROFILE, random_inputs(EDGES, count, size))


# --- Messages, as people reported them --------------------------------------------------------------------------------

CALL = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:122 std::conditional_t<THRW, void, Status> "
LOG = (
    "2025-07-31 15:09:16.647314988 [E:onnxruntime:Default, provider_bridge_ort.cc:2195 TryGetProviderInfo_CUDA] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:1778 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "libonnxruntime_providers_{provider}.so with error: {library}: cannot open shared object file: No such file or"
    " directory\n"
    "2025-07-31 15:09:16.647341862 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1055"
    " CreateExecutionProviderInstance] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 12.*."
)
OUT_OF_MEMORY = [
    (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running FusedMatMul node."
        " Name:'MatMul_92_FusedMatMulAndScale' Status Message: /onnxruntime_src/onnxruntime/core/framework/"
        "bfc_arena.cc:331 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for"
        " requested buffer of size 8388608000"
    ),
    f"[ONNXRuntimeError] : 1 : FAIL : {CALL}CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; line=175",
    "BFCArena::AllocateRawInternal(size_t, bool) Available memory of 209 is smaller than requested bytes of 8388608",
    "[ONNXRuntimeError] : 1 : FAIL : CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h",
]
RECORDED = {
    f"{CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=c4"
    " ; file=cuda_execution_provider.cc ; line=336 ; expr=cudaSetDevice(info_.device_id); ": (
        "the NVIDIA driver is too old",
        "newer driver",
    ),
    LOG.format(provider="cuda", library="libcudnn.so.9"): ("cuDNN is missing: libcudnn.so.9", "[cuda,cudnn]"),
    LOG.format(provider="cuda", library="libcublasLt.so.12"): (
        "a CUDA library is missing: libcublasLt.so.12",
        "[cuda,cudnn]",
    ),
    LOG.format(provider="tensorrt", library="libnvinfer.so.10"): (
        "TensorRT 10 is missing: libnvinfer.so.10",
        "'tensorrt>=10,<11'",
    ),
    '[ONNXRuntimeError] : 1 : FAIL : Error loading "C:\\onnxruntime\\capi\\onnxruntime_providers_cuda.dll"'
    ' which depends on "cudnn64_9.dll" which is missing. (Error 126)': ("cuDNN is missing: cudnn64_9.dll", "[cuda"),
    f"{CALL}CUDA failure 100: no CUDA-capable device is detected ; GPU=32 ; hostname=h": (
        "CUDA sees no GPU",
        "CUDA_VISIBLE_DEVICES",
    ),
    f"{CALL}CUDA failure 101: invalid device ordinal ; GPU=0 ; hostname=h ; expr=cudaSetDevice(info_.device_id);": (
        "no GPU of that number",
        "spade doctor",
    ),
    f"{CALL}CUDA failure 209: no kernel image is available for execution on the device ; GPU=0": (
        "no code for this GPU",
        "upgrade",
    ),
    **dict.fromkeys(OUT_OF_MEMORY, ("the GPU's memory ran out", "`batch_size`")),
}


@pytest.mark.parametrize("message", list(RECORDED), ids=lambda message: RECORDED[message][0])
def test_recorded_messages_become_one_sentence(message: str) -> None:
    meaning = explain(message)
    assert meaning is not None
    sentence, hint = RECORDED[message]
    assert sentence in meaning.sentence
    assert hint in meaning.hint
    assert "\n" not in meaning.sentence + meaning.hint


def test_sizes_are_told_where_they_can_be_true() -> None:
    meaning = explain(OUT_OF_MEMORY[0])
    assert meaning is not None
    assert meaning.sentence == "the GPU's memory ran out: 8000 MiB more were asked for"
    overflow = explain(OUT_OF_MEMORY[0].replace("8388608000", "4585490524328388608"))
    assert overflow is not None
    assert overflow.sentence == "the GPU's memory ran out"


@pytest.mark.parametrize("message", ["", "CUDA failure 200: invalid kernel image", "Name:'fc' size 8388608000"])
def test_an_unknown_message_is_not_explained(message: str) -> None:
    assert explain(message) is None


def broken_build(folder: Path, body: str) -> None:
    """A package `onnxruntime` whose sessions do what `body` says."""
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime" / "__init__.py").write_text(
        "import os, sys\n"
        "def preload_dlls(directory):\n    print('Failed to load libcurand.so.10')\n"
        f"def InferenceSession(model, providers, enable_fallback):\n    assert providers == ['{CUDA}'] and model\n"
        f"    {body}\n"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.write(2, b'libcudnn.so.9: cannot open shared object file')", "libcudnn.so.9: cannot open"),
        ("raise RuntimeError('CUDA failure 35')", "CUDA failure 35"),
        ("os.kill(os.getpid(), 11)", "ended by signal 11"),
        ("pass", "libcurand.so.10"),
    ],
    ids=["log", "exception", "crash", "preload alone"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="processes do not end by signals here")
def test_a_process_of_its_own_is_asked_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], body: str, said: str
) -> None:
    broken_build(tmp_path, body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert said in loading_error(CUDA)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_cannot_be_asked() -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise OSError("no such file")

    assert loading_error(CUDA, run) == "it could not be asked why: no such file"


def test_the_probe_is_what_the_other_process_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run(arguments: Any, **_: Any) -> Any:
        given.extend(arguments)
        return types.SimpleNamespace(returncode=0, stderr="\x1b[1;31msaid\x1b[m\n", stdout="")

    assert loading_error(TENSORRT, run) == "said"
    assert given[0] == sys.executable
    assert "-P" in given  # a file onnxruntime.py in the current folder is not run
    assert TENSORRT in given
    assert ort_messages.PROBE_MODEL
