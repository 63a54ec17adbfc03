"""Every attribute that our sources use exists in the TensorRT 11 and the TensorRT for RTX that are released.

TensorRT's bindings are a small package that imports without its libraries: an empty library with the ten functions
that they link is enough to read their classes. They are found where they are installed, or in the folder that
TENSORRT_BINDINGS names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.tensorrt_api import (
    CLASS_OF_NAME,
    CLASS_OF_RESULT,
    LISTING,
    Use,
    Uses,
    missing,
    read_sources,
    uses_of,
)

BINDINGS = "tensorrt_bindings"
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "getNvOnnxParserVersion",
    "getInferLibVersion",
)
LIBRARIES = {
    BINDINGS: ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    "tensorrt_lean_bindings": ("libnvinfer_lean.so.11",),
    "tensorrt_dispatch_bindings": ("libnvinfer_dispatch.so.11",),
}
"""What the bindings of TensorRT, and of its runtimes that build nothing, link."""
BUILDING = ("build.py", "builder.py", "proof.py")
"""Sources that speak to the builder alone; all others run with a runtime that has none."""

RTX_ALONE = {
    Use("IBuilderConfig", "num_compute_capabilities"),
    Use("IBuilderConfig", "set_compute_capability"),
    Use("IRuntimeConfig", "cuda_graph_strategy"),
    Use("module", "ComputeCapability"),
    Use("module", "CudaGraphStrategy"),
}
"""Used behind a question for the flavour."""


@pytest.fixture(scope="module")
def uses() -> Uses:
    return uses_of(read_sources(ROOT / "spade_deploy" / "engines"))


def ask(module: str, folder: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", LISTING, module, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    listed: dict[str, Any] = json.loads(done.stdout)
    return listed


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The names of TensorRT 11, by class."""
    return names_of(BINDINGS, tmp_path_factory)


@pytest.fixture(scope="module", params=["tensorrt_lean_bindings", "tensorrt_dispatch_bindings"])
def runtime_alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The names of a runtime of TensorRT 11 that builds nothing, by class."""
    return names_of(request.param, tmp_path_factory)


def names_of(bindings: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = os.environ.get("TENSORRT_BINDINGS", "")
    if not sys.platform.startswith("linux"):
        pytest.skip("an empty library in place of TensorRT's is made on Linux alone")
    if not (Path(folder) / bindings).is_dir():
        folder = ""
    if not folder and find_spec(bindings) is None:
        wheel = bindings.replace("_bindings", "-cu13-bindings").replace("_", "-")
        pytest.skip(f"the bindings of TensorRT 11 are not here: pip install --no-deps {wheel}")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make an empty library with")
    empty = tmp_path_factory.mktemp("empty")
    (empty / "empty.c").write_text("".join(f"void {name}(void) {{}}\n" for name in SYMBOLS))
    for library in LIBRARIES[bindings]:
        command = [compiler, "-shared", "-fPIC", "empty.c", "-o", library, f"-Wl,-soname,{library}"]
        subprocess.run(command, cwd=empty, check=True)
    listed = ask(bindings, folder, {"LD_LIBRARY_PATH": str(empty)})
    assert listed["version"].startswith("11."), f"these bindings are of TensorRT {listed['version']}"
    known: dict[str, list[str]] = listed["known"]
    return known


@pytest.fixture(scope="module")
def uses_to_run() -> Uses:
    """What running needs: all but what is asked of a builder."""
    sources = read_sources(ROOT / "spade_deploy" / "engines")
    return uses_of({name: text for name, text in sources.items() if name not in BUILDING})


@pytest.fixture(scope="module")
def rtx() -> dict[str, list[str]]:
    """The names of TensorRT for RTX, by class."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed: pip install 'spade-deploy[rtx]'")
    known: dict[str, list[str]] = ask("tensorrt_rtx", "", {})["known"]
    return known


def test_all_that_is_used_is_in_tensorrt_11(uses: Uses, tensorrt: dict[str, list[str]]) -> None:
    assert missing(uses.needed - uses.optional - RTX_ALONE, tensorrt) == []


def test_all_that_running_uses_is_in_the_runtimes_that_build_nothing(
    uses_to_run: Uses, runtime_alone: dict[str, list[str]]
) -> None:
    assert missing(uses_to_run.needed - uses_to_run.optional - RTX_ALONE, runtime_alone) == []
    # It is no trick of the reader: what loads an engine is among the uses, and the runtimes do lack a builder.
    loads = {Use("module", "Runtime"), Use("Runtime", "engine_host_code_allowed"), Use("ICudaEngine", "num_io_tensors")}
    assert loads <= uses_to_run.needed
    assert missing({Use("module", "Builder")}, runtime_alone) == [Use("module", "Builder")]


def test_all_that_is_used_is_in_tensorrt_for_rtx(uses: Uses, rtx: dict[str, list[str]]) -> None:
    assert missing(uses.needed - uses.optional, rtx) == []


def test_what_is_of_rtx_alone_is_used_and_not_in_tensorrt(
    uses: Uses, tensorrt: dict[str, list[str]], rtx: dict[str, list[str]]
) -> None:
    assert (uses.needed | uses.optional) >= RTX_ALONE
    assert missing(RTX_ALONE, rtx) == []
    for use in RTX_ALONE:
        assert use.name not in tensorrt.get(use.owner, []), f"{use.owner}.{use.name} is in TensorRT 11 by now"


def test_what_may_be_missing_is_in_one_of_the_two(
    uses: Uses, tensorrt: dict[str, list[str]], rtx: dict[str, list[str]]
) -> None:
    both = {owner: [*tensorrt.get(owner, []), *rtx.get(owner, [])] for owner in tensorrt.keys() | rtx.keys()}
    assert missing(uses.optional, both) == []


def test_the_tables_name_classes_and_methods_that_there_are(
    tensorrt: dict[str, list[str]], rtx: dict[str, list[str]]
) -> None:
    for known in (tensorrt, rtx):
        assert {*CLASS_OF_NAME.values(), *CLASS_OF_RESULT.values()} <= known.keys()
        assert missing({Use(owner, name) for owner, name in CLASS_OF_RESULT}, known) == []


def found_in(source: str) -> set[tuple[str, str]]:
    return {(use.owner, use.name) for use in uses_of({"x.py": source}).needed}


BEFORE_11 = """
def build(library: Library, network: Any) -> bytes:
    trt = library.module
    builder = trt.Builder(None)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.int8_calibrator = trt.IInt8EntropyCalibrator2()
    network.get_layer(0).precision = trt.float16
    network.get_input(0).dynamic_range = (0, 1)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    return builder.build_engine(network, config).device_memory_size if builder.platform_has_fast_fp16 else b""
"""


def test_what_version_11_took_away_is_reported(tensorrt: dict[str, list[str]]) -> None:
    uses = uses_of({"old.py": BEFORE_11})
    assert {str(use) for use in missing(uses.needed, tensorrt)} == {
        "old.py:6: BuilderFlag.FP16",
        "old.py:7: IBuilderConfig.int8_calibrator",
        "old.py:7: module.IInt8EntropyCalibrator2",
        "old.py:8: ILayer.precision",
        "old.py:9: ITensor.dynamic_range",
        "old.py:10: NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        "old.py:11: Builder.build_engine",
        "old.py:11: Builder.platform_has_fast_fp16",
    }


WAYS_TO_USE = """
class A:
    def run(self):
        return self._engine.num_io_tensors

    def __init__(self, library: Library):
        self._trt: Any = library.module
        self._engine: Any = self.load()
        self._trt.Runtime(None).engine_host_code_allowed

def shapes(context: Any):
    return [context.get_tensor_shape(name) for name in context.names]

def make_context() -> Any:
    context = make_context()
    return context.device_memory

def names(engine: Any, trt: Any):
    same, modes = engine, trt.TensorIOMode
    return same.name, modes.INPUT

def logger(library):
    trt = library.module
    class Messages(trt.ILogger):
        def log(self, severity):
            return severity <= trt.ILogger.ERROR

def type_of(network: Any):
    layer = network.get_layer(0)
    return {layer.get_input(0).dtype.itemsize: tensor for tensor in layer}
"""


def test_uses_are_found() -> None:
    assert found_in(WAYS_TO_USE) == {
        ("ICudaEngine", "num_io_tensors"),
        ("module", "Runtime"),
        ("Runtime", "engine_host_code_allowed"),
        ("IExecutionContext", "get_tensor_shape"),
        ("IExecutionContext", "names"),
        ("IExecutionContext", "device_memory"),
        ("module", "TensorIOMode"),
        ("ICudaEngine", "name"),
        ("TensorIOMode", "INPUT"),
        ("module", "ILogger"),
        ("ILogger", "ERROR"),
        ("INetworkDefinition", "get_layer"),
        ("ILayer", "get_input"),
        ("ITensor", "dtype"),
        ("DataType", "itemsize"),
    }


@pytest.mark.parametrize(
    "source",
    [
        "def f(profile: ShapeProfile):\n return profile.least",
        "def f(layers: list[TypedLayer]):\n return [layer.kind for layer in layers]",
        "def f(trt: Any):\n return getattr(trt.X, 'Y', None)",
        "class A:\n def __init__(self, engine: Engine):\n  self._engine = engine\n  self._engine.captures_itself",
    ],
)
def test_what_is_not_tensorrts_is_left_alone(source: str) -> None:
    assert found_in(source) <= {("module", "X")}


def test_what_is_asked_for_first_is_optional() -> None:
    uses = uses_of({"x.py": "def f(config: Any, trt: Any):\n hasattr(trt, 'A')\n getattr(config, 'b', None)"})
    assert uses.optional == {Use("module", "A"), Use("IBuilderConfig", "b")}
    assert not uses.needed


def test_the_sources_are_read_at_all(uses: Uses) -> None:
    # A reader that follows nothing would find nothing missing.
    assert {
        Use("module", "Builder"),
        Use("Builder", "build_serialized_network"),
        Use("INetworkDefinition", "get_layer"),
        Use("ILayer", "get_input"),
        Use("OnnxParser", "parse_from_file"),
        Use("IBuilderConfig", "add_optimization_profile"),
        Use("IOptimizationProfile", "set_shape"),
        Use("BuilderFlag", "VERSION_COMPATIBLE"),
        Use("Runtime", "deserialize_cuda_engine"),
        Use("ICudaEngine", "create_execution_context"),
        Use("IExecutionContext", "execute_async_v3"),
    } <= uses.needed


def test_a_source_that_is_new_is_read(tmp_path: Path, tensorrt: dict[str, list[str]]) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "ort").mkdir()
    (tmp_path / "tensorrt" / "new.py").write_text("def f(config: Any):\n    config.quantization_flags = 1\n")
    (tmp_path / "ort" / "runtime.py").write_text("def f(config: Any):\n    config.set_calibration_profile(1)\n")
    [found] = missing(uses_of(read_sources(tmp_path)).needed - RTX_ALONE, tensorrt)
    assert str(found) == "new.py:2: IBuilderConfig.quantization_flags"
