"""What others' tools make of the trained module: each baseline's images are PyTorch's, in its own precision."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.bench import BASELINES, BenchPlan, Candidate, Kind, Status, choose_candidates, golden_cases, run_plan
from spade_deploy.bench.entries import Entry
from spade_deploy.bench.judging import LEAST_PSNR_DB
from spade_deploy.spec import Precision
from tests.support.bench_model import small_artifact, work_folder

NEEDED = {
    Kind.OPENVINO: ("openvino",),
    Kind.OPENVINO_F32: ("openvino",),
    Kind.OPENVINO_INT8: ("openvino", "nncf"),
    Kind.NCNN: ("ncnn", "pnnx"),
}
COMPILED = (Kind.COMPILE, Kind.COMPILE_BF16)
LEAST_DB = {Precision.FP32: 110.0, Precision.BF16: 40.0, Precision.FP16: 45.0, Precision.INT8: LEAST_PSNR_DB}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_artifact(tmp_path_factory)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain export and the reference's images, which the tests share."""
    return work_folder(tmp_path_factory) / "kept"


def measured(exported: Artifact, kept: Path, candidate: Candidate, **fields: Any) -> Entry:
    plan = BenchPlan([candidate], golden_cases(exported), rounds=2, threads=1, kept=kept, **fields)
    (entry,) = run_plan(exported, plan).entries
    return entry


@pytest.mark.parametrize("kind", [kind for kind in BASELINES if kind not in COMPILED])
def test_a_baselines_images_are_those_of_pytorch(exported: Artifact, kept: Path, kind: Kind) -> None:
    missing = [name for name in NEEDED.get(kind, ()) if find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'spade-deploy[peers]'")
    (candidate,) = choose_candidates(exported, graphs=["dense"], baselines=[kind])[:1]
    entry = measured(exported, kept, candidate)
    assert entry.status is Status.MEASURED, entry.reason
    assert entry.candidate.kind is kind
    if kind is not Kind.OPENVINO:  # its default is its own choice
        assert entry.precision is candidate.precision
    assert sorted(entry.psnr_db) == [0, 1]
    assert all(value >= LEAST_DB[entry.precision] for value in entry.psnr_db.values()), entry.psnr_db
    assert entry.verdict is not None
    assert not entry.verdict.failures
    if entry.precision is not Precision.FP32:
        # What claims a lower precision also rounds like one.
        assert all(value < 100 for value in entry.psnr_db.values())
    assert all(run.cpu_s is not None and run.cpu_s > 0 for run in entry.runs)
    print(kind, entry.runtime, dict(entry.psnr_db), entry.verdict)
