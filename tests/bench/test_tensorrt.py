"""`spade bench` of TensorRT engines in an environment without ONNX Runtime: the extra `trt` does not bring it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spade_deploy.bench.request import BenchRequest
from spade_deploy.bench.result import Entry, Status
from spade_deploy.bench.run import bench_artifact
from spade_deploy.spec import GraphChoice, Precision
from tests.support.built_engine import add_engine
from tests.support.paths import ROOT
from tests.support.stand_in import stand_in_artifact

WITHOUT_ONNXRUNTIME = """
import sys

sys.modules["onnxruntime"] = None
"""

ON_A_CARD = """
from spade_deploy.engines.tensorrt import open as trt_open
from spade_deploy.spec import Flavour, GraphKind
from tests.support.built_engine import HERE, PROFILE
from tests.support.fake_tensorrt import FakeTensorRT
from tests.support.recording_device import RecordingDevice
from tests.support.stand_in import PLAIN

device = RecordingDevice()
fake = FakeTensorRT(device, PLAIN, GraphKind.DENSE, PROFILE)
trt_open.require_gpu = lambda: HERE
trt_open.is_installed = lambda flavour: flavour is Flavour.TENSORRT
trt_open.load_library = lambda flavour: fake.library(flavour)
trt_open.open_device = lambda index: device
"""


def bench(folder: Path, monkeypatch: pytest.MonkeyPatch, start: str, backend: str) -> Entry:
    """The one candidate, measured in a process that begins with `start`."""
    artifact = stand_in_artifact(folder / "artifact", precisions=(Precision.FP32, Precision.FP16))
    add_engine(artifact)
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(start)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "start"), str(ROOT)]))
    request = BenchRequest(backend=backend, precisions=(Precision.FP16,), graphs=(GraphChoice.DENSE,), rounds=2)
    (entry,) = bench_artifact(artifact, request).entries
    return entry


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_an_engine_is_measured_without_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    entry = bench(tmp_path, monkeypatch, WITHOUT_ONNXRUNTIME + ON_A_CARD, backend)
    assert (entry.status, entry.reason) == (Status.MEASURED, "")
    assert entry.runtime == "TensorRT 9.9.9, fp16"
    assert len(entry.runs) == 2


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_a_graph_that_needs_onnxruntime_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    entry = bench(tmp_path, monkeypatch, WITHOUT_ONNXRUNTIME, backend)
    assert entry.status is Status.FAILED
    assert "onnxruntime" in (entry.reason + str(entry.hint)).lower()
    assert "spade-deploy[cpu]" in str(entry.hint)
