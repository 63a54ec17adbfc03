"""The tests themselves, on other machines: what a shell, a job scheduler or a container may hand a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

IGNORING = """
import os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
INTERRUPTED = """
import signal, time
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted")
"""
SUITE = """
import subprocess, sys
import pytest

@pytest.mark.usefixtures("usual_signals")
def test_it():
    done = subprocess.run([sys.executable, "-c", {code!r}], capture_output=True, text=True)
    assert done.stdout == "interrupted\\n"

def test_without():
    done = subprocess.run([sys.executable, "-c", {code!r}], capture_output=True, text=True)
    assert done.stdout == ""
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a child process")
def test_a_child_can_be_interrupted_where_the_tests_are_a_background_job(tmp_path: Path) -> None:
    """With SIGINT ignored from the start, as `make test &` of a script has it: the fixture restores it, alone."""
    (tmp_path / "test_inner.py").write_text(SUITE.format(code=INTERRUPTED), encoding="utf-8")
    (tmp_path / "conftest.py").write_text("from signals_fixture import usual_signals\n", encoding="utf-8")
    (tmp_path / "signals_fixture.py").write_bytes((Path(__file__).parent / "support" / "signals.py").read_bytes())
    run = f"import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-c", IGNORING, run], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_signals_are_put_back(usual_signals: None) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
