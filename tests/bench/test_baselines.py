"""What others' tools make of the trained module: each baseline's images are PyTorch's, in its own precision."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, Artifact
from spade_deploy.bench import BASELINES, BenchPlan, Candidate, Kind, Status, choose_candidates, golden_cases, run_plan
from spade_deploy.bench import files as files_module
from spade_deploy.bench.comparison import ImageComparison, image_psnr_db
from spade_deploy.bench.entries import Entry
from spade_deploy.bench.job import Job, write_arrays
from spade_deploy.bench.judging import LEAST_PSNR_DB
from spade_deploy.machine.processor import instruction_sets
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


def test_pytorch_in_bf16_runs_kernels_of_bf16(exported: Artifact, kept: Path, tmp_path: Path) -> None:
    if not {"amx_bf16", "avx512_bf16"} & set(instruction_sets()):
        pytest.skip("this CPU has no bf16 instructions, so oneDNN may take another way")
    (candidate,) = choose_candidates(exported, graphs=["dense"], baselines=[Kind.EAGER_BF16])[:1]
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from spade_deploy.bench import runners\n"
        "from spade_deploy.bench.job import Job, read_arrays\n"
        "job = Job.read(Path(sys.argv[1]))\n"
        "runner = runners.load(job)\n"
        "runner.run(runner.prepare(read_arrays(job.cases[0])))\n"
    )
    case = write_arrays(tmp_path / "case.npz", golden_cases(exported)[0])
    (checkpoint,) = (exported.path.parent / "checkpoints").iterdir()
    Job(
        candidate=candidate,
        artifact=exported.path,
        manifest_sha256="",
        spec=exported.manifest.generator,
        backend="cpu",
        threads=1,
        checkpoint=checkpoint,
        model=None,
        cases=(case,),
        golden=(case,),
        golden_outputs=tmp_path / "answers.npz",
    ).write(tmp_path / "job.json")
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    arguments = [sys.executable, "-c", code, str(tmp_path / "job.json")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    convolutions = [line for line in done.stdout.splitlines() if ",exec,cpu,convolution," in line]
    assert convolutions, done.stdout[-500:]
    assert all("src:bf16" in line and "wei:bf16" in line for line in convolutions), convolutions[:3]


def test_a_missing_package_is_named_with_what_installs_it(
    exported: Artifact, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module.importlib.util, "find_spec", lambda name: None if name == "ncnn" else True)
    ncnn, plain = choose_candidates(exported, graphs=["dense"], baselines=[Kind.NCNN, Kind.PLAIN])[:2]
    plan = BenchPlan([ncnn, plain], golden_cases(exported), rounds=1, threads=1, kept=kept)
    result = run_plan(exported, plan)
    assert [entry.status for entry in result.entries] == [Status.FAILED, Status.MEASURED]
    assert (result.entries[0].reason, result.entries[0].hint) == (
        "ncnn is not installed",
        "pip install 'spade-deploy[peers]'",
    )
    result.require_right()  # a baseline that is not there is no fault


# --- the images that are timed


def test_the_psnr_by_hand(tmp_path: Path) -> None:
    reference = np.zeros((1, 3, 4, 4), np.float32)
    # An error of 0.02 everywhere: 10 log10(2^2 / 0.02^2) = 40 dB.
    assert image_psnr_db(reference + np.float32(0.02), reference) == pytest.approx(40, abs=1e-4)
    assert image_psnr_db(reference, reference) == math.inf
    assert image_psnr_db(reference[:, :2], reference) == -math.inf
    assert image_psnr_db(np.full_like(reference, np.nan), reference) == -math.inf


def test_an_image_that_is_not_the_reference_s_takes_the_candidate_its_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32) for _ in range(3)]
    references = tuple(write_arrays(tmp_path / f"{number}.npz", {IMAGE: one}) for number, one in enumerate(images[:2]))
    comparison = ImageComparison(references, tmp_path)
    candidate = Candidate(Kind.PLAIN, "plain")
    made = comparison.image_to(candidate, 0)
    assert made is not None
    assert comparison.image_to(Candidate(Kind.GEMM, "product"), 0) is None
    write_arrays(made, {IMAGE: images[0] + np.float32(0.02)})
    assert comparison.add(candidate, 0, made) is None
    assert comparison.image_to(candidate, 0) is None
    assert comparison.image_to(candidate, 2) is None  # the reference made no image of it
    write_arrays(made, {IMAGE: images[2]})  # another image: about 8 dB
    wrong = comparison.add(candidate, 1, made)
    assert wrong is not None
    assert "case 1 is not the reference's" in wrong
    assert comparison.found[candidate][0] == pytest.approx(40, abs=1e-3)
