"""The progress of a training: what a terminal shows and what a file gets."""

import io
import re
import sys
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
from rich.console import Console

from spade_deploy import console
from spade_deploy.console import clock_time, training_bar

pytest.importorskip("torch", reason="Progress is the training's")

LOSSES = {"adversarial": 0.314, "feature_matching": 12.31, "l1": 0.212, "perceptual": 3.1, "kl": 0.012}
METRICS = {"frechet": 123.4, "kernel": 0.0312, "mean_iou": 0.312, "accuracy": 0.71, "l1": 0.2134, "psnr": 17.21}


def progress(step: int, **changes: object) -> object:
    from spade_deploy.training.loop import Progress

    fields = {"losses": LOSSES, "seconds_per_step": 1.234, "samples_per_second": 25.93, "memory_bytes": 12_345_678_901}
    return Progress(step=step, steps=100_000, **{**fields, **changes})  # type: ignore[arg-type]


class Clock:
    """Seconds that pass `pace` a call."""

    def __init__(self, pace: float) -> None:
        self.times: Iterator[float] = (number * pace for number in count())

    def __call__(self) -> float:
        return next(self.times)


def test_a_file_gets_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar(Clock(10.0)) as report:
        for step in (1, 2, 3, 4, 5, 100_000):
            report(progress(step, metrics=METRICS if step > 4 else {}))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == ["step 1", "step 4", "step 100000"]
    assert lines[0] == (
        "step 1/100000  left 1 d 10 h  1.23 s/step  25.9 samples/s  12.3 GB"
        "  G 0.31  FM 12.31  L1 0.21  VGG 3.10  KL 0.01"
    )
    # 30 seconds for three steps: ten a step, for 99,996 steps to come.
    assert "left 11 d 13 h" in lines[1]
    assert lines[2].endswith("frechet 123  kernel 0.0312  mean iou 0.312  accuracy 0.710  l1 0.213  psnr 17.2")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", "".join(lines)), "no control characters"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_of_any_width_breaks_no_figure(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=screen, force_terminal=True, width=width, highlight=False, color_system=None)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    with training_bar(Clock(1.0)) as report:
        for step in (1, 99_000, 100_000):
            report(progress(step, metrics=METRICS))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = text.replace("\r", "").rstrip().splitlines()
    assert max(map(len, last)) <= width
    whole = "\n".join(last)
    assert "100000/100000" in whole
    for figure in ("0:00 left", "1.23 s/step", "25.9 samples/s", "12.3 GB", "FM 12.31", "mean iou 0.312", "psnr 17.2"):
        assert any(figure in line for line in last), figure


def test_no_memory_is_shown_where_nothing_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar() as report:
        report(progress(1, memory_bytes=0))
    assert "GB" not in capsys.readouterr().err


def test_notes_are_shown_when_they_come_up(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar(Clock(0.0)) as report:
        report(progress(1))
        report(SimpleNamespace(**{**vars(progress(2)), "notes": ("2 classes never occur [sea]",)}))
        report(progress(3))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["note: 2 classes never occur [sea]"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (45.4, "0:45"), (3599.6, "1:00:00"), (3725, "1:02:05"), (86399, "23:59:59"), (90_000, "1 d 1 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_console_of_a_test_is_no_terminal() -> None:
    """What the tests above of files rest on."""
    assert not sys.stderr.isatty()
