"""The tests that need a GPU, in a pytest of their own: what passed, what was skipped and why, what failed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from gpu.records import Book, Row
from gpu.setting import Setting

ROOT = Path(__file__).resolve().parents[2]
MARK = "pytest.mark.gpu"
OWN = "test_gpu_check.py"
"""The test that runs all of gpu-check in small is left out: this is a step of it."""


def run_gpu_tests(setting: Setting, book: Book) -> None:
    """A row a test that failed, one for all that passed, and one for each reason to skip."""
    del setting
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *marked_files()], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if not report.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RuntimeError(f"pytest ended with code {done.returncode} and no report: {' '.join(last)}")
        for row in rows_of(report.read_text(encoding="utf-8")):
            book.add(row)


def marked_files() -> list[str]:
    """The files of tests/ with a test that needs a GPU: collecting all others takes a minute."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if path.name != OWN)
    return [str(path.relative_to(ROOT)) for path in files if MARK in path.read_text(encoding="utf-8")]


def rows_of(report: str) -> list[Row]:
    """The rows of a JUnit report. Raises ValueError for one without any test."""
    passed, skipped, failed = 0, Counter[str](), []
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        broken = case.find("failure") if case.find("failure") is not None else case.find("error")
        if broken is not None:
            failed.append(Row(name, failures=(_first_line(broken.get("message")),)))
        elif (skip := case.find("skipped")) is not None:
            skipped[_first_line(skip.get("message"))] += 1
        else:
            passed += 1
    if not passed and not skipped and not failed:
        raise ValueError("not one test that needs a GPU was found")
    rows = [Row("passed", figures={"tests": float(passed)}, note=f"{passed} tests")]
    rows += [
        Row(f"skipped: {reason}", figures={"tests": float(count)}, note=f"{count} tests")
        for reason, count in skipped.items()
    ]
    return [*rows, *failed]


def _first_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", (text or "it said nothing").strip().splitlines()[0])[:300]
