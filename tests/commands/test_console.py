"""The progress of a training: what a terminal shows and what a file gets."""

import io
import os
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from spade_deploy.commands import console
from spade_deploy.commands.console import clock_time
from spade_deploy.commands.progress import spinner, step_bar, training_bar
from spade_deploy.errors import SpadeError
from spade_deploy.printable import one_line
from spade_deploy.progress import Figures, Progress

LOSSES = {"adversarial": 0.314, "feature_matching": 12.31, "l1": 0.212, "perceptual": 3.1, "kl": 0.012}
METRICS = {"frechet": 123.4, "kernel": 0.0312, "mean_iou": 0.312, "accuracy": 0.71, "l1": 0.2134, "psnr": 17.21}


def report(bar: Progress, step: int, **changes: Any) -> None:
    fields = {"losses": LOSSES, "seconds_each": 1.234, "per_second": 25.93, "memory_bytes": 12_345_678_901}
    bar.count("training", step, 100_000, Figures(**{**fields, **changes}))


class Clock:
    """Seconds that pass `pace` a call."""

    def __init__(self, pace: float) -> None:
        self.times: Iterator[float] = (number * pace for number in count())

    def __call__(self) -> float:
        return next(self.times)


def test_a_file_gets_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar(Clock(10.0)) as bar:
        for step in (1, 2, 3, 4, 5, 100_000):
            report(bar, step, metrics=METRICS if step > 4 else {})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 1/100000  left 1 d 10 h  1.23 s/step  25.9 samples/s  12.3 GB",
        "step 1/100000  G 0.31  FM 12.31  L1 0.21  VGG 3.10  KL 0.01",
        # 30 seconds for three steps: ten a step, for 99,996 steps to come.
        "step 4/100000  left 11 d 13 h  1.23 s/step  25.9 samples/s  12.3 GB",
        "step 4/100000  G 0.31  FM 12.31  L1 0.21  VGG 3.10  KL 0.01",
        "step 100000/100000  left 0:00  1.23 s/step  25.9 samples/s  12.3 GB",
        "step 100000/100000  G 0.31  FM 12.31  L1 0.21  VGG 3.10  KL 0.01",
        "step 100000/100000  frechet 123  kernel 0.0312  mean iou 0.312  accuracy 0.710",
        "step 100000/100000  l1 0.213  psnr 17.2",
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", "".join(lines)), "no control characters"


def test_no_line_of_a_log_is_longer_than_80_characters(capsys: pytest.CaptureFixture[str]) -> None:
    losses = LOSSES | {"discriminator_real": 10.123, "discriminator_fake": 123.456, "a_loss_of_a_later_version": 1.0}
    with training_bar(Clock(10.0)) as bar:
        fields: dict[str, Any] = {"seconds_each": 1234.567, "per_second": 0.00123, "memory_bytes": 123_456_789_012}
        bar.count("training", 999_999, 9_999_999, Figures(losses=losses, metrics=METRICS, **fields))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("step 999999/9999999  ") for line in lines)
    told = "  ".join(line.removeprefix("step 999999/9999999  ") for line in lines)
    assert told.startswith("left 128600 d 17 h  1234.57 s/step  0.00123 samples/s  123.5 GB  G 0.31  FM 12.31  L1 0.21")
    assert "D real 10.12  fake 123.46  a_loss_of_a_later_version 1.00  frechet 123" in told


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_of_any_width_breaks_no_figure(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=screen, force_terminal=True, width=width, highlight=False, color_system=None)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    with training_bar(Clock(1.0)) as bar:
        for step in (1, 99_000, 100_000):
            report(bar, step, metrics=METRICS)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = text.replace("\r", "").rstrip().splitlines()
    assert max(map(len, last)) <= width
    whole = "\n".join(last)
    assert "100000/100000" in whole
    for figure in ("0:00 left", "1.23 s/step", "25.9 samples/s", "12.3 GB", "FM 12.31", "mean iou 0.312", "psnr 17.2"):
        assert any(figure in line for line in last), figure


def test_no_memory_is_shown_where_nothing_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar() as bar:
        report(bar, 1, memory_bytes=0)
    assert "GB" not in capsys.readouterr().err


def test_notes_are_shown_when_they_come_up(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar(Clock(0.0)) as bar:
        report(bar, 1)
        bar.note("2 classes never occur [sea]")
        report(bar, 2)
        report(bar, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2:] == ["note: 2 classes never occur [sea]"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (45.4, "0:45"), (3599.6, "1:00:00"), (3725, "1:02:05"), (86399, "23:59:59"), (90_000, "1 d 1 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_console_of_a_test_is_no_terminal() -> None:
    """What the tests above of files rest on."""
    assert not sys.stderr.isatty()


class TestNames:
    """A file may be called anything; it is printed, in a terminal too, as it is called."""

    ODD = (
        "[/red].png",
        "[bold]x[/bold]",
        "runs [v2]",
        ":smile:",
        "\x1b[2J\x1b]0;owned\x1b",
        "\x9b31m",
        "a\u202egnp",
        "b\udcff.png",
        "two\nlines",
    )

    @pytest.mark.parametrize("name", ODD)
    @pytest.mark.parametrize("is_terminal", [False, True])
    def test_every_way_of_printing_shows_it(
        self, name: str, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        for known in ("stdout", "stderr"):
            monkeypatch.setattr(sys, known, stream)
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")
        shown = one_line(name)
        for show in (
            lambda: console.print_error(SpadeError(f"{name}: is no label map", hint=f"rename {name}")),
            lambda: console.print_places(("labels", Path(name))),
            lambda: console.print_next(f"spade inspect {name}"),
            lambda: console.stdout().print(f"wrote {name}"),
            lambda: console.stdout().print(console.line("in ", console.styled(name, "bold"))),
            lambda: console.stdout().print(table_of(name)),
            lambda: steps_of(name),
            lambda: busy_with(name),
        ):
            stream.seek(0)
            stream.truncate()
            show()
            stream.flush()
            text = stream.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]
            bare = re.sub(r"\x1b\[[0-9;?]*[mKAlhG]", "", text)  # what rich itself says
            assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", bare)
            if "\n" not in name:
                assert shown in bare

    def test_a_terminal_of_another_encoding_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        console.print_places(("labels", Path("漢字")))
        stream.flush()
        assert rb"\u6f22\u5b57" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def table_of(name: str) -> Table:
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    return table


def steps_of(name: str) -> None:
    with step_bar() as bar:
        bar.step(f"reading {name}")
        bar.count(name, 1, 2)


def busy_with(name: str) -> None:
    with spinner("measuring") as progress:
        progress.step(name)
        console.stdout().print(name)


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
@pytest.mark.parametrize("value", ["0", "", "-5", "wide", "²", "٣", "1e3", "999999999", "99999999999999999999"])
def test_a_size_of_no_terminal_is_forgotten(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    console.check_terminal_size()
    assert name not in os.environ


@pytest.mark.parametrize(("name", "value"), [("COLUMNS", "20"), ("COLUMNS", "300"), ("LINES", "1"), ("LINES", "50")])
def test_a_size_of_a_terminal_is_believed(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    console.check_terminal_size()
    assert os.environ[name] == value
