"""How OpenVINO is imported, what is said where it cannot be, and what it is asked about the CPU."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino import library
from spade_deploy.engines.openvino.library import bf16_instructions, capabilities, load_openvino
from spade_deploy.errors import ConfigError, MissingDependencyError, RuntimeUnavailableError
from spade_deploy.spec import Precision
from tests.support.stand_in import stand_in_artifact

QUIET = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from spade_deploy.engines.openvino.library import capabilities, load_openvino
load_openvino()
capabilities()
print(sorted(name for name in sys.modules if "telemetry" in name or name.startswith("openvino.tools.ovc")))
"""


def test_the_import_loads_nothing_that_reports_to_anybody() -> None:
    """A plain `import openvino` loads its model converter, which sends 'general_import' to usage statistics."""
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_the_converter_can_be_imported_afterwards() -> None:
    load_openvino()
    assert "openvino.tools.ovc" not in sys.modules or sys.modules["openvino.tools.ovc"] is not None


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"^OpenVINO is not installed$") as caught:
        open_runtime(artifact, backend="openvino")
    assert caught.value.hint == "pip install 'spade-deploy[openvino]'"


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def broken(name: str, *more: Any) -> Any:
        if name == "openvino":
            raise ImportError("libopenvino.so.2026: cannot open shared object file")
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(RuntimeUnavailableError, match=r"installed but does not load: libopenvino\.so\.2026") as caught:
        load_openvino()
    assert "force-reinstall openvino" in (caught.value.hint or "")


def test_a_cpu_without_bf16_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    monkeypatch.setattr(library, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    for backend in ("openvino", "auto"):
        with pytest.raises(RuntimeUnavailableError) as caught:
            open_runtime(artifact, Precision.BF16, backend)
        if backend == "openvino":
            assert "`precision` bf16: " in str(caught.value)
            assert "has no instructions for it; OpenVINO lists FP32, INT8" in str(caught.value)
    with open_runtime(artifact, Precision.FP32, "openvino") as runtime:
        assert runtime.name.endswith(" CPU, fp32")


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tensorrt", "ort-tensorrt"])
def test_no_other_engine_takes_bf16(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"`precision`: `backend` {backend} has no bf16 arithmetic") as caught:
        open_runtime(stand_in_artifact(tmp_path / "a"), Precision.BF16, backend)
    assert caught.value.hint == "`backend` openvino has it"


def test_which_instructions_compute_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FP32" in capabilities()
    monkeypatch.setattr(library, "all_instruction_sets", lambda: ("asimd", "avx512_bf16", "bf16_of_another"))
    assert bf16_instructions() == ("avx512_bf16",)
