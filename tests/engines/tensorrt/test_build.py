"""Engines for real: TensorRT for RTX builds ahead of time, on a CPU, what `spade build` would build on a card."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from spade_deploy.artifact import INSTANCE, LABEL, Artifact, Source, list_engines, read_engine, write_engine, writing
from spade_deploy.artifact.manifest import manifest_digest
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.input_shapes import tensor_ranges
from spade_deploy.engines.tensorrt.build import _find_same, build
from spade_deploy.engines.tensorrt.builder import (
    _build_error,
    _network_flags,
    _open_timing_cache,
    _set_options,
    build_engine,
)
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey, Machine
from spade_deploy.engines.tensorrt.library import load_library
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.engines.tensorrt.store import find_engine, this_system
from spade_deploy.errors import (
    ArtifactError,
    BuildError,
    BuildInterruptedError,
    ConfigError,
    FolderBusyError,
    NotFoundError,
    RuntimeUnavailableError,
)
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.export.spade import DeployModel
from spade_deploy.inspection.describe import inspect_path
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.progress import Silent
from spade_deploy.spec import EXPORTED, Flavour, GraphKind, LabelSpec, Precision, ShapeProfile
from tests.support.commands import spade
from tests.support.generators import build_generator
from tests.support.listener import Listener
from tests.support.stand_in import stand_in_artifact

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")

ADA = "8.9"
PROFILE = ShapeProfile.parse("1x64x64:1x64x64:2x128x96")
RTX = BuildRequest(flavour=Flavour.RTX, compute_capability=ADA, profile=PROFILE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generator's artifact in all precisions and both kinds."""
    generator = build_generator()
    ids, objects = synthetic_label_maps(generator.spec.labels, 64, 64, 2, seed=0)
    maps = {LABEL: ids.astype(np.uint8), INSTANCE: objects.astype(np.int32)}
    folder = tmp_path_factory.mktemp("build") / "artifact"
    folder.mkdir()
    export_artifact(
        generator,
        folder,
        ExportRequest(
            precisions=(Precision.FP32, Precision.FP16),
            golden_inputs=maps,
            source=Source("tiny-001", 1, "train", "0" * 64),
            int8=Int8Request(maps, "two synthetic maps", 15.0),
        ),
    )
    return folder


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Artifact:
    """A copy, without engines."""
    shutil.copytree(exported, tmp_path / "artifact")
    return Artifact.open(tmp_path / "artifact")


@pytest.mark.parametrize("precision", EXPORTED)
def test_every_precision_and_kind_builds_and_is_proved(artifact: Artifact, precision: Precision) -> None:
    seen = Listener()
    built = build(artifact, replace(RTX, precision=precision), progress=seen)
    assert [engine.key.kind for engine in built] == [GraphKind.DENSE, GraphKind.LOOKUP]
    for engine in built:
        assert engine.key.precision is precision
        # Every convolution of the typed graph is accounted for; without a card the engine itself cannot be read.
        assert engine.proof["reached"] == engine.proof["asked"] > 0
        assert not engine.proof["of_engine"]
        if precision is not Precision.INT8:  # some of an int8 graph's layers are kept fp32
            assert engine.proof["asked"] == engine.proof["total"]
        assert engine.bytes == engine.path.stat().st_size > 100_000
    phases = [(*what.split(": ", 1), done, total) for what, done, total in seen.counts]
    assert {name for name, *_ in phases} == {f"{precision}", f"{precision} lookup"}
    assert all(0 <= done <= total for _, _, done, total in phases)
    entries = list_engines(artifact)
    assert len(entries) == 2
    for entry in entries:
        assert len(read_engine(artifact, entry)) == entry.bytes


def test_half_precision_weights_are_half_as_large_in_the_engine_too(artifact: Artifact) -> None:
    dense = replace(RTX, graph=GraphChoice.DENSE)
    (single,) = build(artifact, replace(dense, precision=Precision.FP32))
    (half,) = build(artifact, replace(dense, precision=Precision.FP16))
    sizes = [artifact.path_of(artifact.graph(one).file).stat().st_size for one in (Precision.FP32, Precision.FP16)]
    # An engine is weights and a constant 6 MB of code.
    assert single.bytes - half.bytes == pytest.approx(sizes[0] - sizes[1], rel=0.3)


def test_an_engine_of_the_same_key_is_not_built_again(artifact: Artifact) -> None:
    request = replace(RTX, precision=Precision.FP16, graph=GraphChoice.DENSE)
    (first,) = build(artifact, request)
    before = first.path.stat().st_mtime_ns
    (second,) = build(artifact, request)
    assert second.was_there
    assert not first.was_there
    assert second.path == first.path
    assert first.path.stat().st_mtime_ns == before
    (other,) = build(artifact, replace(request, profile=ShapeProfile.parse("1x64x64")))
    assert not other.was_there
    assert other.path != first.path


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "f" * 64},
        {"flavour": Flavour.TENSORRT},
        {"version": "1.0.0"},
        {"gpu": "NVIDIA L4"},
        {"compute_capability": "8.6"},
        {"system": "windows-amd64"},
        {"precision": Precision.FP32},
        {"kind": GraphKind.LOOKUP},
        {"profile": ShapeProfile.parse("1x64x64:1x64x64:2x64x64")},
        {"options": BuildOptions(optimization_level=2)},
        {"options": BuildOptions(workspace_bytes=1 << 30)},
        {"options": BuildOptions(version_compatible=True)},
        {"options": BuildOptions(hardware_compatible=True)},
    ],
    ids=str,
)
def test_an_engine_of_another_key_is_not_taken_for_the_one_that_is_asked_for(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Whatever differs: another TensorRT, card, graph, profile or option makes another engine."""
    artifact = stand_in_artifact(tmp_path / "artifact")
    key = EngineKey(
        "a" * 64,
        Flavour.RTX,
        "1.7.0",
        "any",
        ADA,
        this_system(),
        Precision.FP16,
        GraphKind.DENSE,
        PROFILE,
        BuildOptions(),
    )
    write_engine(artifact, "fp16", b"machine code", key=key.to_json(), proof={}, seconds=1.0)
    found = _find_same(artifact, key)
    assert found is not None
    assert found.was_there
    assert _find_same(artifact, replace(key, **change)) is None


def test_an_engine_is_found_by_its_key_alone(artifact: Artifact) -> None:
    request = replace(RTX, precision=Precision.FP16, graph=GraphChoice.DENSE)
    small, large = (
        build(artifact, replace(request, profile=ShapeProfile.parse(text)))[0] for text in ("1x64x64", "2x64x64")
    )
    version = small.key.version
    here = Machine(Flavour.RTX, version, "NVIDIA GeForce RTX 4090", ADA, this_system())
    assert find_engine(artifact, None, GraphKind.DENSE, here).key == large.key  # of two that fit, the wider
    with pytest.raises(NotFoundError, match="no int8 engine of the dense graph"):
        find_engine(artifact, Precision.INT8, GraphKind.DENSE, here)
    with pytest.raises(NotFoundError, match="no TensorRT engine of the lookup graph"):
        find_engine(artifact, None, GraphKind.LOOKUP, here)
    with pytest.raises(ArtifactError, match=r"built by version .*, here is 1\.0\.0") as caught:
        find_engine(artifact, None, GraphKind.DENSE, replace(here, version="1.0.0"))
    assert re.search("spade build ARTIFACT --precision fp16 --graph dense --profile", str(caught.value.hint))
    with pytest.raises(ArtifactError, match=r"compute capability 8\.9, here is .*8\.6"):
        find_engine(artifact, None, GraphKind.DENSE, replace(here, compute_capability="8.6"))


def test_an_engine_of_another_export_is_not_run(artifact: Artifact, tmp_path: Path) -> None:
    (engine,) = build(artifact, replace(RTX, precision=Precision.FP16, graph=GraphChoice.DENSE))
    manifest = json.loads((artifact.path / "engines" / f"{engine.path.stem}.json").read_text())
    manifest["key"]["onnx_sha256"] = "f" * 64
    manifest["manifest_sha256"] = manifest_digest(manifest)
    (artifact.path / "engines" / f"{engine.path.stem}.json").write_text(json.dumps(manifest))
    here = Machine(Flavour.RTX, engine.key.version, "x", ADA, this_system())
    with pytest.raises(ArtifactError, match="built of another graph"):
        find_engine(artifact, None, GraphKind.DENSE, here)


def test_an_engine_that_was_changed_is_machine_code_of_unknown_origin(artifact: Artifact) -> None:
    (engine,) = build(artifact, replace(RTX, precision=Precision.FP16, graph=GraphChoice.DENSE))
    (entry,) = list_engines(artifact)
    content = bytearray(engine.path.read_bytes())
    content[len(content) // 2] ^= 1
    engine.path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="sha256 is not the one in its manifest"):
        read_engine(artifact, entry)
    with pytest.raises(ArtifactError, match="sha256 is not the one"):
        inspect_path(engine.path)
    engine.path.write_bytes(b"short")
    with pytest.raises(ArtifactError, match="5 bytes, its manifest says"):
        read_engine(artifact, entry)
    (artifact.path / "engines" / f"{entry.name}.json").unlink()
    assert list_engines(artifact) == ()
    with pytest.raises(NotFoundError, match="has no manifest in its folder"):
        inspect_path(engine.path)


@pytest.mark.parametrize("part", ["engine", "key", "proof", "sha256"])
def test_an_engine_that_was_changed_is_built_again(artifact: Artifact, part: str) -> None:
    """`inspect` advises it; by its size alone the damaged one would be as good."""
    request = replace(RTX, precision=Precision.FP16, graph=GraphChoice.DENSE)
    (engine,) = build(artifact, request)
    manifest = engine.path.with_suffix(".json")
    if part == "engine":
        content = bytearray(engine.path.read_bytes())
        content[len(content) // 2] ^= 1
        engine.path.write_bytes(bytes(content))
    else:
        value = json.loads(manifest.read_text())
        changed = {"key": {**value["key"], "gpu": "another"}, "proof": {**value["proof"], "reached": 99}}
        value[part] = changed.get(part, "0" * 64)
        manifest.write_text(json.dumps(value))
        with pytest.raises(ArtifactError, match="the digest differs") as caught:
            list_engines(artifact)
        assert "`spade build` makes the engine again" in str(caught.value.hint)
    with pytest.raises(ArtifactError):
        inspect_path(engine.path)
    (again,) = build(artifact, request)
    assert not again.was_there
    assert again.path == engine.path
    assert dict(inspect_path(engine.path).rows)["integrity"] == "its sha256 is the one in its manifest"
    assert build(artifact, request)[0].was_there


def test_two_builds_of_one_artifact_do_not_run_at_once(artifact: Artifact) -> None:
    with writing(artifact.path, "exporting into it"), pytest.raises(FolderBusyError, match="exporting into it"):
        build(artifact, RTX)
    assert not (artifact.path / "engines").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 9}', '{"format_version": 1, "name": "../x"}'])
def test_what_is_no_engine_manifest_is_an_error(artifact: Artifact, text: str) -> None:
    (artifact.path / "engines").mkdir()
    (artifact.path / "engines" / "x.json").write_text(text)
    with pytest.raises(ArtifactError):
        list_engines(artifact)


def test_inspect_tells_what_an_engine_is(artifact: Artifact) -> None:
    (engine,) = build(artifact, replace(RTX, precision=Precision.FP16, graph=GraphChoice.LOOKUP))
    rows = dict(inspect_path(engine.path).rows)
    assert rows["profile"] == str(PROFILE)
    assert rows["built by"].startswith(f"rtx {engine.key.version}")
    assert "convolutions and products in fp16" in rows["proof"]
    tables = {table.title: table for table in inspect_path(artifact.path).tables}
    assert tables["Engines"].rows[0][0] == engine.path.name


def test_a_float32_engine_multiplies_in_float32() -> None:
    """TensorRT has TF32 on by default, with 10 bits of mantissa; what was validated has 23."""
    library = load_library(Flavour.RTX)
    trt = library.module
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    config.set_flag(trt.BuilderFlag.TF32)
    _set_options(library, config, BuildOptions(), ADA)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize(("members", "flags"), [({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 2), ({}, 0)])
def test_a_network_keeps_the_types_of_its_graph(members: dict[str, int], flags: int) -> None:
    """TensorRT 10 needs to be told; flags are bits."""
    assert _network_flags(SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(**members))) == flags


class Config:
    """A builder's config that takes no timing cache but its own."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch  # a cache of another card would make a slow engine
        if cache not in (b"", b"mine"):
            return False
        self.taken.append(cache)
        return True


@pytest.mark.parametrize(("content", "taken"), [(None, b""), (b"mine", b"mine"), (b"of another card", b"")])
def test_a_timing_cache_of_another_card_is_replaced_by_an_empty_one(content: bytes | None, taken: bytes) -> None:
    config = Config()
    assert _open_timing_cache(config, content) == taken
    assert config.taken == [taken]


def test_a_build_can_be_ended_early_and_leaves_nothing_half_written(artifact: Artifact) -> None:
    stop = threading.Event()

    class Stopping(Silent):
        def count(self, *_: object) -> None:
            stop.set()

    with pytest.raises(BuildInterruptedError, match="interrupted"):
        build(artifact, RTX, progress=Stopping(), stop=stop)
    assert not list((artifact.path / "engines").glob("*.engine"))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"compute_capability": "9.0"}, ConfigError, r"`compute_capability`: 9\.0 is not supported"),
        ({"compute_capability": "nine"}, ConfigError, "nine is not supported"),
        ({"options": BuildOptions(version_compatible=True)}, ConfigError, "`version_compatible`: TensorRT for RTX has"),
        ({"options": BuildOptions(hardware_compatible=True)}, ConfigError, "`hardware_compatible`"),
        ({"profile": ShapeProfile.parse("1x60x64")}, ConfigError, "height 60 .* not a multiple of 32"),
        ({"compute_capability": None}, ConfigError, "there is no GPU here to build for"),
    ],
)
def test_what_cannot_be_built_is_refused(
    artifact: Artifact, change: dict[str, Any], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spade_deploy.engines.tensorrt.build.find_gpus", list)
    with pytest.raises(error, match=said):
        build(artifact, replace(RTX, **change))
    assert list_engines(artifact) == ()


def test_tensorrt_itself_needs_the_card(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load_library(Flavour.RTX)
    monkeypatch.setattr("spade_deploy.engines.tensorrt.build.find_gpus", list)
    monkeypatch.setattr(
        "spade_deploy.engines.tensorrt.build.load_library", lambda _: replace(real, flavour=Flavour.TENSORRT)
    )
    with pytest.raises(RuntimeUnavailableError, match="needs the GPU that it builds for"):
        build(artifact, BuildRequest())


def test_a_precision_that_the_artifact_lacks_names_the_export(artifact: Artifact) -> None:
    graphs = tuple(graph for graph in artifact.manifest.graphs if graph.precision is not Precision.INT8)
    without = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
    with pytest.raises(ArtifactError, match="there is no int8 dense graph") as caught:
        build(without, replace(RTX, precision=Precision.INT8))
    assert "spade export --int8" in str(caught.value.hint)


def test_a_graph_that_tensorrt_does_not_know_is_named_by_its_node(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="the_odd_one")
    graph = helper.make_graph([node], "odd", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])])
    path = tmp_path / "odd.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    with pytest.raises(ArtifactError, match=r"cannot parse it: .*the_odd_one|cannot parse it: .*NoSuchOperator"):
        build_engine(load_library(Flavour.RTX), path, {}, BuildOptions(), compute_capability=ADA)


def test_a_float_graph_is_no_half_precision_engine(artifact: Artifact) -> None:
    """The counter-test of the proof: a graph that only says fp16 in its manifest."""
    graphs = tuple(
        replace(graph, precision=Precision.FP16) if graph.precision is Precision.FP32 else graph
        for graph in artifact.manifest.graphs
        if graph.precision is not Precision.FP16
    )
    liar = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
    with pytest.raises(BuildError, match=r"no convolution or product in fp16: \d+ in fp32"):
        build(liar, replace(RTX, precision=Precision.FP16))
    assert list_engines(artifact) == ()


def test_fixed_sizes_build_too(tmp_path: Path) -> None:
    """A model with a style vector has one size."""
    generator = build_generator(z_dim=8)
    write_onnx(LookupModel(generator, fp16=True), tmp_path / "lookup.onnx")
    ranges = tensor_ranges(generator.spec, GraphKind.LOOKUP, ShapeProfile.parse("1x64x64:1x64x64:3x64x64"))
    built = build_engine(
        load_library(Flavour.RTX), tmp_path / "lookup.onnx", ranges, BuildOptions(), compute_capability=ADA
    )
    assert {layer.type for layer in built.layers} == {"fp16"}


@pytest.mark.parametrize(("model", "kind"), [(DeployModel, GraphKind.DENSE), (LookupModel, GraphKind.LOOKUP)])
def test_a_full_size_generator_builds(model: Any, kind: GraphKind, tmp_path: Path) -> None:
    generator = build_generator(
        labels=LabelSpec(150, has_dontcare=True),
        base_channels=64,
        hidden_channels=128,
        height=256,
        width=256,
        training_steps=0,
    )
    write_onnx(model(generator, fp16=True), tmp_path / "full.onnx")
    ranges = tensor_ranges(generator.spec, kind, ShapeProfile.parse("1x256x256:4x256x256:8x512x512"))
    built = build_engine(
        load_library(Flavour.RTX), tmp_path / "full.onnx", ranges, BuildOptions(), compute_capability=ADA
    )
    assert len(built.engine) > 150e6  # 96 million numbers of two bytes
    assert {layer.type for layer in built.layers} == {"fp16"}


def test_the_command_builds_and_says_what_it_proved(artifact: Artifact, tmp_path: Path) -> None:
    arguments = ("build", artifact.path, "--target", "rtx", "--compute-capability", ADA, "--graph", "dense")
    done = spade(*arguments, "--profile", "1x64x64", "--workspace", "1GiB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"fp16 dense engine, rtx .* for any of compute capability 8\.9.*built in", done.stdout)
    assert "convolutions and products in fp16" in done.stdout
    again = spade(*arguments, "--profile", "1x64x64", "--workspace", "1GiB", cwd=tmp_path)
    assert "was there already" in again.stdout
    wrong = spade(*arguments, "--profile", "1x64", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--profile: '1x64' is not MIN:OPT:MAX" in wrong.stderr


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT of a child process")
def test_ctrl_c_ends_a_build_with_one_message(artifact: Artifact, tmp_path: Path) -> None:
    script = f"""
import os, signal, threading
from pathlib import Path
from spade_deploy.engines.tensorrt import build as building
from spade_deploy.cli import main
from spade_deploy.progress import Silent
real = building.build
def slow(*args, progress, stop, **kw):
    class Interrupting(Silent):
        def count(self, *counted):
            os.kill(os.getpid(), signal.SIGINT)
            stop.wait(20)
            progress.count(*counted)
    return real(*args, progress=Interrupting(), stop=stop, **kw)
building.build = slow
import sys
sys.argv = ["spade", "build", {str(artifact.path)!r}, "--target", "rtx", "--compute-capability", "8.9"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "the build was interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert signal.SIGINT  # the module is what the script uses


def test_layers_of_a_quantized_network_are_read_as_int8(tmp_path: Path) -> None:
    """A convolution of dequantized values is int8; one whose weight alone is dequantized is not."""
    library = load_library(Flavour.RTX)
    for quantizes_input, expected in ((True, "int8"), (False, "fp32")):
        path = tmp_path / f"{expected}.onnx"
        path.write_bytes(_quantized_convolution(quantizes_input))
        built = build_engine(library, path, {"x": ((1, 4, 8, 8),) * 3}, BuildOptions(), compute_capability=ADA)
        assert [layer.type for layer in built.layers] == [expected]


def _quantized_convolution(quantizes_input: bool) -> bytes:
    constants = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "weight": np.ones((4, 4, 3, 3), np.int8),
        "scales": np.full(4, 0.1, np.float32),
        "zeros": np.zeros(4, np.int8),
    }
    nodes = [helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=0)]
    x = "x"
    if quantizes_input:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        ]
        x = "d"
    nodes.append(helper.make_node("Conv", [x, "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "quantized", values[:1], values[1:], weights)
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return content


def test_a_builder_without_its_lean_runtime_says_what_brings_it() -> None:
    # The words are TensorRT for RTX's, on a machine without that library.
    said = (
        "Error Code 6: API Usage Error (Unable to load library: libnvinfer_lean.so.11: cannot open shared object file)"
    )
    library = replace(load_library(Flavour.RTX), flavour=Flavour.TENSORRT, version="11.4.0.106")
    error = _build_error(library, said)
    assert "TensorRT 11.4.0.106 does not find its lean runtime" in error.message
    assert said in error.message
    assert error.hint == "pip install tensorrt-lean==11.4.0.106"
    assert "lean" not in _build_error(library, "out of memory").message


def test_the_lean_runtime_of_a_wheel_is_loaded_for_version_compatible_engines_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def import_module(name: str) -> None:
        asked.append(name)
        raise ImportError(name)

    real = load_library(Flavour.RTX)
    monkeypatch.setattr(importlib, "import_module", import_module)
    library = replace(real, flavour=Flavour.TENSORRT)
    messages = real.module.Logger(real.module.Logger.ERROR)
    builder = real.module.Builder(messages)
    for is_compatible in (False, True):
        config = builder.create_builder_config()
        _set_options(library, config, BuildOptions(version_compatible=is_compatible), None)
        assert config.get_flag(real.module.BuilderFlag.VERSION_COMPATIBLE) is is_compatible
    assert asked == ["tensorrt_lean_libs"]


def test_bf16_is_no_engines_precision() -> None:
    with pytest.raises(
        ConfigError, match=r"`precision`: no graph is exported in bf16, .*; allowed are fp32, fp16, int8"
    ):
        BuildRequest(precision=Precision.BF16)
