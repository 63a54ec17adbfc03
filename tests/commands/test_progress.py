"""What the bars and spinners show of a job, on a terminal and in a file."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from spade_deploy.commands import console
from spade_deploy.commands.flags import use_flags
from spade_deploy.commands.progress import count_bar, image_bar, spinner, step_bar, training_bar
from spade_deploy.progress import Figures


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 100 columns that stands for stdout and stderr."""
    written = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        terminal = Console(file=written, force_terminal=True, width=100, highlight=False, color_system=None)
        monkeypatch.setattr(console, name, lambda terminal=terminal: terminal)
    return written


def shown(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_the_step_bar_prints_each_step_and_counts_below_it(screen: io.StringIO) -> None:
    with step_bar() as progress:
        progress.step("reading the photos")
        progress.count("real photos", 3, 7)
        assert "real photos" not in screen.getvalue().splitlines()[0]
    assert "  reading the photos\n" in shown(screen)
    assert "real photos" in shown(screen)
    assert "3/7" in shown(screen)


def test_steps_are_lines_of_a_file_too(capsys: pytest.CaptureFixture[str]) -> None:
    with step_bar() as progress:
        progress.step("reading")
        progress.count("photos", 1, 2)
    assert capsys.readouterr().out.splitlines() == ["  reading"]


def test_a_job_names_fields_and_the_terminal_shows_flags(capsys: pytest.CaptureFixture[str]) -> None:
    use_flags({"labels": "--labels"})
    try:
        with step_bar() as progress:
            progress.step("synthetic label maps (`labels` DIR takes real ones)")
        with training_bar() as progress:
            progress.note("`labels` has two empty files; see `spade check-labels`")
    finally:
        use_flags({})
    said = capsys.readouterr()
    assert said.out == "  synthetic label maps (--labels DIR takes real ones)\n"
    assert said.err == "note: --labels has two empty files; see `spade check-labels`\n"


def test_the_spinner_puts_a_count_into_words(screen: io.StringIO) -> None:
    with spinner("measuring", "{what} {done} of {total}") as progress:
        progress.count("round", 3, 20)
    assert "round 3 of 20" in shown(screen)


def test_images_are_counted_with_their_rate_below_what_runs(screen: io.StringIO) -> None:
    with image_bar() as progress:
        progress.step("running runs/a with model/artifact with ONNX Runtime 1.0 CPU, fp32")
        progress.count("images", 2, 5, Figures(per_second=12.34))
    assert shown(screen).startswith("running runs/a with model/artifact with ONNX Runtime 1.0 CPU, fp32\n")
    assert "2/5 images" in shown(screen)
    assert "12.3 images/s" in shown(screen)


def test_files_are_counted_under_the_name_of_the_work(screen: io.StringIO) -> None:
    with count_bar() as progress:
        progress.count("checking", 4, 9)
    assert "checking" in shown(screen)
    assert "4/9" in shown(screen)


def test_only_training_steps_move_the_bar_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo exports and validates before it trains; that has lines of its own."""
    with training_bar() as progress:
        progress.step("validating every graph")
        progress.count("fp32", 1, 4)
        progress.count("training", 1, 9, Figures(per_second=1.0, seconds_each=1.0, losses={"l1": 0.5}))
    said = capsys.readouterr()
    assert said.out == "  validating every graph\n"
    assert [line.split()[1:3] for line in said.err.splitlines()] == [["1/9", "left"], ["1/9", "L1"]]


def test_notes_of_infer_are_no_part_of_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that reads stdout sees no line about the engine that was chosen."""
    with image_bar() as progress:
        progress.note("auto: it is [red]fast[/red], says `no_such_field`\nand more")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "auto: it is [red]fast[/red], says `no_such_field`" in printed.err
