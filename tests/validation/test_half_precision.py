"""A generator with values past 65504, exported for real: right in half precision, or refused with the way out.

The figures of half precision are held against two independent opinions: ONNX's reference evaluator, which computes in
NumPy's half, and PyTorch's half on the CPU.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from spade_deploy.artifact import (
    IMAGE,
    LABEL,
    Arrays,
    Artifact,
    Graph,
    Source,
    graph_file,
    write_golden,
    write_manifest,
)
from spade_deploy.commands.tables import print_report
from spade_deploy.engines.base import Backend
from spade_deploy.errors import ExportError, RuntimeUnavailableError, ValidationFailedError
from spade_deploy.export.build import build_model, model_inputs
from spade_deploy.export.dense_model import dtype_of
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.export.stress_maps import stress_maps
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.differences import psnr_db
from spade_deploy.metrics.tolerances import STRESS_MIN_PSNR_DB
from spade_deploy.release import release as release_module
from spade_deploy.release.release import Release, export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import GraphKind, Precision
from spade_deploy.validation import half_precision, precision_search
from spade_deploy.validation.half_emulation import EmulatedGraph
from spade_deploy.validation.half_precision import HalfJudge, HalfPrecisionCheck, HalfVerdict
from spade_deploy.validation.precision_search import search_failures
from spade_deploy.validation.report import ValidationReport
from spade_deploy.validation.request import ValidationRequest
from spade_deploy.validation.validate import validate
from tests.support.past_half import with_a_large_output

CARELESS = ("up_3",)
"""What was kept when ranges were of results alone: up_3, which puts out 2e5, but not conv_img, which casts that."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """released: by `spade export --fp16`. careless: of the same generator, with a dense fp16 graph that is wrong."""

    released: Release
    careless: Artifact
    generator: Any
    runs: Path


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    runs = tmp_path_factory.mktemp("work") / "runs"
    save_checkpoint(checkpoint_folder(new_run(runs, "large"), 0), with_a_large_output(), step=0, origin="import")
    made = export_checkpoint(ReleaseRequest(fp16=True, fp32=False), runs_dir=runs)
    generator = load_generator(made.checkpoint).module
    folder = made.artifact.path.with_name("careless")
    folder.mkdir()
    golden, facts = made.artifact.golden(), made.artifact.manifest
    write_golden(folder, golden.inputs, golden.outputs)
    write_onnx(build_model(generator, fp16=True, keep_fp32=CARELESS), folder / graph_file(Precision.FP16))
    write_manifest(
        folder,
        generator=facts.generator,
        graphs=(Graph(graph_file(Precision.FP16), Precision.FP16, ("tanh", *CARELESS)),),
        source=facts.source,
        versions={},
        rounding=facts.rounding,
    )
    return Case(made, Artifact.open(folder), generator, runs)


def emulated(artifact: Artifact, kind: GraphKind, inputs: Arrays) -> tuple[NDArray[Any], tuple[str, ...]]:
    graph = artifact.graph(Precision.FP16, kind)
    found = EmulatedGraph(artifact.path_of(graph.file)).run(graph_inputs(artifact.manifest.generator, kind, inputs))
    return found.outputs[IMAGE], found.overflows


def by_reference_evaluator(artifact: Artifact, kind: GraphKind, inputs: Arrays) -> NDArray[Any]:
    path = artifact.path_of(artifact.graph(Precision.FP16, kind).file)
    fed = graph_inputs(artifact.manifest.generator, kind, inputs)
    with np.errstate(all="ignore"):
        answers: Any = ReferenceEvaluator(str(path)).run([IMAGE], fed)
    image: NDArray[Any] = answers[0]
    return image


def db(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    found = psnr_db(float(np.mean((candidate.astype(np.float64) - reference) ** 2)))
    assert found is not None
    return found


def first_of(artifact: Artifact) -> tuple[Arrays, NDArray[Any]]:
    golden = artifact.golden()
    return {name: array[:1] for name, array in golden.inputs.items()}, golden.outputs[IMAGE][:1]


def test_values_past_half_are_kept_and_the_release_is_right_in_half(case: Case) -> None:
    artifact, report = case.released.artifact, case.released.report
    kept = [graph.kept_fp32 for graph in artifact.manifest.graphs]
    assert kept == [("tanh and the conversion to pixels", "up_3", "conv_img")] * 2
    inputs, expected = first_of(artifact)
    for result in report.results:
        assert result.half is not None
        assert result.half.failures == ()
        assert result.half.diff is not None
        assert result.half.diff.images == 4
        assert result.half.diff.psnr_db is not None
        assert result.half.diff.psnr_db > 60  # measured 68
        names = [one.name for one in result.half.stress]
        assert names[:4] == ["noise", "checkerboard", "coarse checkerboard", "every class"]
        assert names[-1] == "the largest activations found"
        assert all(one.is_judged and not one.failures for one in result.half.stress)
        assert result.half.worst_stress_db is not None
        assert result.half.worst_stress_db > 60  # measured 67
        trusted = by_reference_evaluator(artifact, result.graph.kind, inputs)
        assert np.isfinite(trusted).all()
        assert db(trusted, expected) > 55  # measured 66


def test_the_emulation_agrees_with_two_other_opinions(case: Case) -> None:
    inputs, expected = first_of(case.careless)
    found, overflows = emulated(case.careless, GraphKind.DENSE, inputs)
    assert overflows
    model = build_model(case.generator, fp16=True, keep_fp32=CARELESS)
    with torch.inference_mode():
        by_torch = model(*model_inputs(model, inputs))[1].numpy()
    for other in (by_torch, by_reference_evaluator(case.careless, GraphKind.DENSE, inputs)):
        assert np.isnan(other).mean() > 0.1  # measured 0.27
        assert (np.isnan(other) == np.isnan(found)).mean() > 0.98
        both = np.isfinite(other) & np.isfinite(found)
        assert (np.abs(other - found)[both] > 0.02).mean() < 0.02
    # Why it is needed: ONNX Runtime's CPU kernels call the very graph good.
    path = case.careless.path_of(graph_file(Precision.FP16))
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run([IMAGE], inputs)[0]
    assert np.isfinite(plain).all()
    assert db(plain, expected) > 55
    for kind in GraphKind:
        right, overflows = emulated(case.released.artifact, kind, inputs)
        assert overflows == ()
        assert np.abs(right - by_reference_evaluator(case.released.artifact, kind, inputs)).max() < 0.02


def test_a_graph_that_overflows_fails_and_the_option_is_named(case: Case) -> None:
    report = validate(case.careless, ValidationRequest(runs_dir=case.runs, backend=Backend.CPU))
    (result,) = report.results
    assert not report.passed
    assert result.half is not None
    assert result.half.keep == ("conv_img",)
    assert result.diff.finite  # ONNX Runtime computes in float32
    assert not result.half.diff or not result.half.diff.finite
    sentence = r"in real half precision, conv_img overflows \(--keep-fp32 conv_img\) on input 1 and 11 other maps"
    with pytest.raises(ValidationFailedError, match=sentence) as caught:
        report.require_passed()
    assert "spade export --fp16 --keep-fp32 conv_img" in str(caught.value.hint)
    json.dumps(report.to_json(), allow_nan=False)
    half = report.to_json()["graphs"][0]["real_half_precision"]
    assert (half["passed"], half["keep_fp32"]) == (False, ["conv_img"])


def test_the_search_judges_with_real_half_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    report = validate(case.careless, ValidationRequest(runs_dir=case.runs, backend=Backend.CPU))
    traced: list[bool] = []

    def write(model: Any, path: Path) -> None:
        """What was exported before, by what conv_img is: a trace takes long."""
        traced.append(dtype_of(model.conv_img) is torch.float16)
        source = case.careless if traced[-1] else case.released.artifact
        shutil.copy(source.path_of(graph_file(Precision.FP16)), path)

    monkeypatch.setattr(precision_search, "write_onnx", write)
    found = search_failures(case.careless, report, ValidationRequest(runs_dir=case.runs, backend=Backend.CPU))
    search = found["fp16"]
    assert search.found == ("conv_img",)
    assert search.is_minimal
    assert "NaN or infinity" in search.trials[0].failures[0]
    assert [trial.passed for trial in search.trials] == [not half for half in traced]


def test_an_overflow_on_a_stress_map_alone_fails(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = case.released.artifact
    judge = HalfJudge(artifact, artifact.graph(Precision.FP16))
    inputs, _ = first_of(artifact)
    expected = {name: array[:1] for name, array in artifact.golden().outputs.items()}
    judge.add(inputs, expected)
    for one in stress_maps(artifact.manifest.generator, classes=1)[:2]:
        judge.add_stress(one.name, one.inputs, None)
    right = judge.verdict()
    assert right.failures == ()
    assert [one.is_judged for one in right.stress] == [False, False]
    whole = judge._emulated
    calls = iter(["", "up_2.conv_0"])

    class Breaks:
        def run(self, fed: Arrays) -> Any:
            name = next(calls)
            return replace(whole.run(fed), overflows=(name,) if name else ())

        def unit_of(self, tensor: str) -> str | None:
            return whole.unit_of(tensor)

    judge = HalfJudge(artifact, artifact.graph(Precision.FP16))
    monkeypatch.setattr(judge, "_emulated", Breaks())
    judge.add(inputs, expected)
    judge.add_stress("class 3 alone", inputs, expected)
    broken = judge.verdict()
    assert broken.failures == ("up_2 overflows (--keep-fp32 up_2) on class 3 alone",)
    assert broken.stress[0].failures == ("overflows",)
    assert broken.flags == "--keep-fp32 up_2"


def test_a_stress_map_is_held_to_a_quality(case: Case) -> None:
    artifact = case.released.artifact
    judge = HalfJudge(artifact, artifact.graph(Precision.FP16))
    inputs, _ = first_of(artifact)
    expected = {name: array[:1] for name, array in artifact.golden().outputs.items()}
    judge.add(inputs, expected)
    step = np.float32(2 * 10 ** (-STRESS_MIN_PSNR_DB / 20))  # a shift of the whole image by so much
    for factor in (0.8, 1.2):
        shifted = {**expected, IMAGE: expected[IMAGE] + factor * step}
        judge.add_stress(f"shifted {factor}", inputs, shifted)
    assert STRESS_MIN_PSNR_DB == 40
    assert [bool(one.failures) for one in judge._stress] == [False, True]
    (failure,) = judge.verdict().failures
    assert failure.startswith("shifted 1.2: PSNR 38.")
    assert failure.endswith("is under 40.0 dB")


@pytest.mark.parametrize(("own", "is_judged"), [(39.9, False), (40.0, True), (None, True)])
def test_a_map_of_which_float32_itself_is_wrong_is_not_judged(case: Case, own: float | None, is_judged: bool) -> None:
    artifact = case.released.artifact
    inputs, _ = first_of(artifact)
    expected = {name: array[:1] for name, array in artifact.golden().outputs.items()}
    judge = HalfJudge(artifact, artifact.graph(Precision.FP16))
    judge.add(inputs, expected)
    judge.add_stress("right", inputs, expected, lambda: pytest.fail("it is asked only where a map fails"))
    judge.add_stress("wrong", inputs, {**expected, IMAGE: expected[IMAGE] + np.float32(0.1)}, lambda: own)
    verdict = judge.verdict()
    assert [one.is_judged for one in verdict.stress] == [True, is_judged]
    assert bool(verdict.failures) is is_judged
    if not is_judged:
        assert str(verdict).endswith(
            "; on 1 of them overflow alone was looked for, since float32 itself is as far as 39.9 dB from float64 there"
        )
        assert verdict.to_json()["stress"][1] == {
            "map": "wrong", "psnr_db": None, "judged": False, "float32_psnr_db": 39.9, "failures": []
        }  # fmt: skip


def test_tensors_are_told_by_the_unit_that_may_be_kept(case: Case) -> None:
    for kind in GraphKind:
        artifact = case.released.artifact
        graph = EmulatedGraph(artifact.path_of(artifact.graph(Precision.FP16, kind).file))
        units = [graph.unit_of(name) for name in graph.watched]
        assert set(units) <= {*map(str, half_units(case))}
        # All that is half belongs to some unit, and units follow each other as they run, levels of hidden maps aside.
        order = [name for name in dict.fromkeys(units) if name and not name.startswith("level")]
        assert order == [name for name in half_units(case) if not name.startswith("level")]


def half_units(case: Case) -> list[str]:
    from spade_deploy.export.build import unit_names

    return [name for name in unit_names(case.generator.spec) if name not in ("up_3", "conv_img")]


def test_without_onnx_the_report_says_so(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = validate(case.released.artifact, ValidationRequest(runs_dir=case.runs, backend=Backend.CPU))
    assert report.passed
    for result in report.results:
        assert result.half is not None
        assert "not emulated" in str(result.half)
        assert "cannot be imported" in str(result.half.skipped)
    assert report.to_json()["graphs"][0]["real_half_precision"]["passed"] is None
    print_report(report)
    assert capsys.readouterr().out.count("real half precision was not emulated") == 2


def test_the_report_and_the_console_show_it(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(case.released.report)
    said = " ".join(capsys.readouterr().out.split())
    assert "in real half precision, emulated: 68." in said
    assert "no overflow on 4 inputs and 9 stress maps" in said
    page = (case.released.artifact.path / "report.html").read_text(encoding="utf-8")
    assert "Real half precision" in page
    stored = json.loads((case.released.artifact.path / "report.json").read_text(encoding="utf-8"))
    assert [graph["real_half_precision"]["passed"] for graph in stored["graphs"]] == [True, True]


def test_fp32_is_not_emulated_and_half_on_a_gpu_is_not_either(case: Case) -> None:
    from spade_deploy.engines.ort.runtime import OrtRuntime

    graph = case.released.artifact.graph(Precision.FP16)
    half = HalfPrecisionCheck(case.released.artifact, None, ())  # type: ignore[arg-type]
    with OrtRuntime(case.released.artifact, Precision.FP16) as runtime:
        assert half.is_needed(graph, runtime)
        assert not half.is_needed(replace(graph, precision=Precision.FP32), runtime)
        runtime.provider = "CUDAExecutionProvider"
        assert not half.is_needed(graph, runtime)


@pytest.fixture
def quick_export(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """`release` gets the careless artifact's files instead of a trace of its own, which takes long."""
    from spade_deploy.export.pipeline import Exported

    def export(_: Any, folder: Path, *__: Any) -> Exported:
        for path in case.careless.path.rglob("*"):
            if path.is_file():
                (folder / path.relative_to(case.careless.path)).parent.mkdir(exist_ok=True)
                shutil.copy(path, folder / path.relative_to(case.careless.path))
        golden = case.careless.golden()
        return Exported(case.careless.manifest, case.careless.manifest.rounding, golden.outputs)

    monkeypatch.setattr(release_module, "export_artifact", export)


@pytest.mark.usefixtures("quick_export")
def test_a_release_that_overflows_is_refused_with_the_way_out(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    with pytest.raises(ValidationFailedError, match="conv_img overflows") as caught:
        export_checkpoint(ReleaseRequest(out=out, fp16=True, fp32=False), runs_dir=case.runs)
    assert "--keep-fp32 conv_img" in str(caught.value.hint)
    assert not out.exists()
    assert (tmp_path / "artifact.failed" / "report.json").is_file()


@pytest.mark.usefixtures("quick_export")
def test_a_release_that_could_not_be_emulated_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeUnavailableError("ONNX Runtime does not round")

    monkeypatch.setattr(half_precision, "EmulatedGraph", refuses)
    with pytest.raises(ExportError, match="ONNX Runtime does not round"):
        export_checkpoint(ReleaseRequest(out=tmp_path / "artifact", fp16=True, fp32=False), runs_dir=case.runs)
    assert not (tmp_path / "artifact").exists()


def test_of_a_folder_the_first_maps_are_emulated(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "MOST_INPUTS", 2)
    report: ValidationReport = validate(
        case.released.artifact, ValidationRequest(runs_dir=case.runs, backend=Backend.CPU)
    )
    assert [result.half.diff.images for result in report.results if result.half and result.half.diff] == [2, 2]
    assert [result.diff.images for result in report.results] == [4, 4]


def test_what_a_verdict_says() -> None:
    assert str(HalfVerdict(skipped="no onnx")) == "real half precision was not emulated: no onnx"
    assert HalfVerdict(keep=("fc", "up_1")).flags == "--keep-fp32 fc --keep-fp32 up_1"
    assert HalfVerdict().worst_stress_db is None


def test_an_unjudged_map_is_no_proof_of_quality(case: Case) -> None:
    """Without PyTorch the golden outputs alone are known: overflow is looked for on stress maps, and nothing else."""
    moved = case.released.artifact.path.with_name("moved")
    shutil.copytree(case.released.artifact.path, moved)
    report = validate(Artifact.open(moved), ValidationRequest(runs_dir=moved / "nowhere", backend=Backend.CPU))
    for result in report.results:
        assert result.half is not None
        assert all(not one.is_judged for one in result.half.stress) is report.reference.startswith("golden")
    assert LABEL in report.stress[0].inputs
    assert isinstance(case.released.artifact.manifest.source, Source)
