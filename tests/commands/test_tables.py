"""What the table of a validation says: also what its verdict leaves out, and why, in the same row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spade_deploy import pages
from spade_deploy.artifact import IMAGE, LOGITS, PIXELS, Graph
from spade_deploy.commands.tables import print_report
from spade_deploy.metrics.judge import Judge
from spade_deploy.spec import LabelSpec, Precision, RoundingError
from spade_deploy.validation.report import GraphResult, ValidationReport

ROUNDING = RoundingError(max_abs=1e-6, mean_abs=1e-7, logit_max=1.0, logit_mean=1e-4)
SIDE = 40


def result(precision: Precision, *, undecided: bool = False, wrong_by: float = 0.0) -> GraphResult:
    """One image of a judge: a value whose logit rounding decides is wrong by 2; another one by `wrong_by`."""
    logits = np.full((1, 3, SIDE, SIDE), 1000.0, np.float32)
    expected = np.ones_like(logits)
    found = expected.copy()
    if undecided:
        logits[0, 0, 3, 4] = 1e-6
        found[0, 0, 3, 4] = -1.0
    found[0, 1, 20, 20] -= wrong_by
    labels = np.zeros((1, SIDE, SIDE), np.uint8)
    labels[0, :8] = np.arange(8)[:, None]

    def outputs(image: np.ndarray) -> dict[str, np.ndarray]:
        pixels = ((image + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
        return {IMAGE: image, PIXELS: pixels, LOGITS: logits}

    judge = Judge(LabelSpec(8), precision, ROUNDING)
    judge.add(labels, outputs(expected), outputs(found))
    verdict = judge.verdict()
    return GraphResult(
        Graph(f"{precision}.onnx", precision),
        "a runtime",
        verdict.diff,
        verdict.tolerance,
        verdict.failures,
        decided=verdict.decided,
        undecided_share=verdict.undecided_share,
    )


def report(*results: GraphResult) -> ValidationReport:
    return ValidationReport(Path("artifact"), "PyTorch", "one map", ROUNDING, results, ())


def row_of(text: str, name: str) -> str:
    (row,) = (line for line in text.splitlines() if line.split()[:1] == [name] and "pass" in line)
    return row


def test_what_rounding_decides_stands_in_the_row_of_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(Precision.FP32, undecided=True)
    assert found.passed
    assert found.diff.max_abs == 2.0
    print_report(report(found, result(Precision.FP16)))
    said = capsys.readouterr().out
    row = row_of(said, "fp32")
    assert "0.000208 of all values, with errors up to 2: rounding alone decides them" in row
    assert " pass  " in row
    assert "2.0e+00" not in row, "the figures are those that the verdict is over"
    assert row_of(said, "fp16").rstrip().endswith("nothing")
    value = found.to_json()
    assert value["left_out_of_the_verdict"] == list(found.left_out)
    assert (value["figures"]["max_abs"], value["judged_figures"]["max_abs"]) == (2.0, 0.0)


def test_a_maximum_without_a_limit_stands_in_the_row_of_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(Precision.FP16, wrong_by=0.06)
    assert found.passed, found.failures
    print_report(report(found))
    row = row_of(capsys.readouterr().out, "fp16")
    assert "6.0e-02" in row
    assert "single values have no limit in fp16, which is held to mean error, PSNR, SSIM" in row


def test_without_anything_left_out_there_is_no_such_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert result(Precision.FP32).left_out == ()
    assert not result(Precision.FP32, wrong_by=0.06).passed, "float32 has a limit of single values"
    print_report(report(result(Precision.FP32)))
    assert "left out" not in capsys.readouterr().out


def test_the_page_has_it_in_the_row_too() -> None:
    template = (Path(pages.__file__).parent / "templates" / "report.html.j2").read_text(encoding="utf-8")
    (row,) = (line for line in template.splitlines() if "result.left_out" in line)
    assert "result.runtime" in row, "it is a cell of the row of the graph"


def test_five_classes_are_shown_and_all_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(result(Precision.FP16, wrong_by=0.06), result(Precision.FP32))
    print_report(found, by_class=False)
    said = capsys.readouterr().out
    assert "the worst 5 of 8 classes (--by-class shows all)" in said
    rows = [line for line in said.splitlines() if line.startswith(" label ")]
    assert len(rows) == 5
    assert rows[0].split()[1] == "0", "the wrong value is of class 0"
    assert "fp16" in rows[0]
    print_report(found, by_class=True)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(" label ")]) == 16
    print_report(found)
    assert "class" not in capsys.readouterr().out
