"""ONNX Runtime's sessions: what they are told, and what is said where they cannot be opened."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from spade_deploy.artifact import input_tensors, output_tensors
from spade_deploy.engines.ort.messages import PROBE_MODEL
from spade_deploy.engines.ort.session import (
    INSTALL,
    Optimization,
    SessionSetup,
    load_onnxruntime,
    open_session,
    types_of,
)
from spade_deploy.errors import ArtifactError, ExportError, MissingDependencyError
from tests.support.paths import ROOT
from tests.support.stand_in import EDGES, STYLED, stand_in_graph


def test_a_file_and_the_bytes_of_a_model_are_opened(tmp_path: Path) -> None:
    (tmp_path / "probe.onnx").write_bytes(PROBE_MODEL)
    for model in (PROBE_MODEL, tmp_path / "probe.onnx"):
        session = open_session(model)
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [3]


def test_what_a_session_is_told() -> None:
    told = SessionSetup(threads=2, weights_folder=Path("w")).options(onnxruntime)
    assert told.intra_op_num_threads == 2
    assert told.log_severity_level == 4
    assert told.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert told.get_session_config_entry("session.force_spinning_stop") == "1"
    assert told.get_session_config_entry("session.model_external_initializers_file_folder_path") == "w"
    for optimization, expected in (
        (Optimization.BASIC, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        (Optimization.NONE, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ):
        assert SessionSetup(optimization=optimization).options(onnxruntime).graph_optimization_level == expected


def test_a_peer_that_is_measured_runs_with_the_defaults() -> None:
    told, default = SessionSetup(stops_spinning=False).options(onnxruntime), onnxruntime.SessionOptions()
    assert told.intra_op_num_threads == default.intra_op_num_threads
    assert told.graph_optimization_level == default.graph_optimization_level
    with pytest.raises(RuntimeError, match="force_spinning_stop"):
        told.get_session_config_entry("session.force_spinning_stop")


def test_threads_that_never_spin() -> None:
    told = SessionSetup(never_spins=True).options(onnxruntime)
    assert told.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(RuntimeError, match="allow_spinning"):  # not where an engine runs
        SessionSetup().options(onnxruntime).get_session_config_entry("session.intra_op.allow_spinning")


def test_weights_beside_a_model_in_memory_are_found(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [300]) for name in "xy"]
    weight = numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="weights", size_threshold=0)
    content = (tmp_path / "m.onnx").read_bytes()
    session = open_session(content, SessionSetup(weights_folder=tmp_path))
    assert session.run(None, {"x": np.zeros(300, np.float32)})[0].tolist() == list(range(300))


def test_what_cannot_be_loaded_is_an_error_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\x00noise" * 100)
    with pytest.raises(ArtifactError, match=r"noise\.onnx: ONNX Runtime \d.* cannot load it: .") as caught:
        open_session(path)
    assert "\n" not in caught.value.message
    with pytest.raises(ArtifactError, match=r"^the model: ONNX Runtime"):
        open_session(b"noise")
    with pytest.raises(ExportError, match=r"^mine: ") as mapped:
        open_session(path, failed=lambda error: ExportError(f"mine: {error}"))
    assert mapped.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_without_onnxruntime_the_caller_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"^ONNX Runtime cannot be imported: No module"):
        open_session(PROBE_MODEL)
    with pytest.raises(MissingDependencyError, match=r"^it runs in ONNX Runtime, which cannot be imported: ") as caught:
        load_onnxruntime("it runs in ONNX Runtime, which", hint=INSTALL)
    assert caught.value.hint == "pip install 'spade-deploy[cpu]'"


@pytest.mark.parametrize("spec", [EDGES, STYLED], ids=["edges", "styled"])
def test_a_sessions_types_are_told_as_numpy_calls_them(spec: Any) -> None:
    session = open_session(stand_in_graph(spec))
    assert types_of(session.get_inputs()) == [(tensor.name, tensor.dtype) for tensor in input_tensors(spec)]
    assert types_of(session.get_outputs()) == [(tensor.name, tensor.dtype) for tensor in output_tensors(spec)]


def test_every_session_of_the_package_is_opened_here() -> None:
    callers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "spade_deploy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
    ]
    assert callers == ["spade_deploy/engines/ort/session.py"]
