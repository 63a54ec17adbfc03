"""--json, --quiet, --log-file, widths and `next:` lines: the same for every command."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.core import TyperGroup
from typer.testing import CliRunner

from spade_deploy.cli import COMMANDS, app
from spade_deploy.commands import console, output, tables
from spade_deploy.commands.options import RequestCommand
from spade_deploy.commands.output import OutputOptions
from spade_deploy.commands.train import _print_result
from tests.support.commands import Mission
from tests.support.stand_in import PLAIN, stand_in_artifact

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def commands() -> list[RequestCommand]:
    groups = [group for group in COMMANDS if isinstance(group, TyperGroup)]
    every = [*COMMANDS, *(command for group in groups for command in group.commands.values())]
    return [command for command in every if isinstance(command, RequestCommand)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in_artifact(tmp_path / "artifact", PLAIN)
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.ones((64, 32), np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "labels" / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


class TestJson:
    def test_stdout_is_one_document_and_all_else_goes_to_stderr(self, place: Path) -> None:
        done = run("infer", "labels", "out", "--artifact", "artifact", "--json")
        found = json.loads(done.stdout)
        assert list(found) == ["command", "exit_code", "result", "files", "notes", "next", "error"]
        assert (found["command"], found["exit_code"], done.exit_code) == ("infer", 1, 1)
        assert (found["result"]["written"], found["result"]["total"]) == (1, 2)
        assert "broken.png" in found["result"]["failures"][0]["path"]
        assert "wrote 1 of 2 images" in done.stderr
        assert found["error"] is None, "a part failed, which the result tells"

    def test_an_error_is_in_the_document(self, place: Path) -> None:
        found = json.loads(run("infer", "labels", "out", "--json").stdout)
        assert found["error"]["type"] == "NotFoundError"
        assert "no artifact in any run" in found["error"]["message"]
        assert "spade export" in found["error"]["next"]
        assert (found["exit_code"], found["result"]) == (1, None)

    def test_a_document_of_one_command_holds_nothing_of_the_one_before(self, place: Path) -> None:
        run("infer", "labels", "out", "--artifact", "artifact", "--json")
        found = json.loads(run("inspect", "nowhere", "--json").stdout)
        assert (found["command"], found["result"], found["files"], found["notes"]) == ("inspect", None, {}, [])
        assert "{" not in run("inspect", "nowhere").stdout, "the next one is for people again"

    def test_numbers_that_json_does_not_know_are_null(self) -> None:
        value = output.plain({"a": float("inf"), "b": [float("nan"), 1.5, np.float32(2)], "c": Path("x")})
        assert json.loads(json.dumps(value, allow_nan=False)) == {"a": None, "b": [None, 1.5, 2.0], "c": "x"}

    @pytest.mark.parametrize("command", commands(), ids=lambda command: str(command.name))
    def test_every_command_reports_and_has_the_options(self, command: RequestCommand) -> None:
        if command.name != "serve":  # it runs until it is stopped, and reports nothing
            source = inspect.getsource(inspect.getmodule(command._handler))  # type: ignore[arg-type]
            assert "output.report(" in source or "run_session(" in source  # which reports, in commands/train.py
        flags = {flag for param in command.params for flag in param.opts}
        assert {"--json", "--quiet", "--log-file"} <= flags

    def test_a_process_beside_the_main_one_prints_no_document(self, capsys: pytest.CaptureFixture[str]) -> None:
        output.begin("train", ["--json"])
        assert output.is_json()
        output.leave_to_main()
        output.finish(0)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(("stdout", "reason"), [("full", "No space left on device"), ("unread", "Broken pipe")])
    def test_a_document_that_cannot_be_written_is_said_and_is_no_success(
        self, place: Path, stdout: str, reason: str
    ) -> None:
        if stdout == "full":
            target = os.open("/dev/full", os.O_WRONLY)
        else:
            reads, target = os.pipe()
            os.close(reads)
        words = ["inspect", "artifact", "--json", "--log-file", "log.txt"]
        command = [sys.executable, "-m", "spade_deploy", *words]
        done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, text=True, check=False)
        os.close(target)
        assert done.returncode == 1
        assert done.stderr.endswith(
            f"error: the JSON document cannot be written: {reason}\n"
            "next: what the command made is there; only the document is missing\n"
        ), done.stderr
        assert "exit code 1" in (place / "log.txt").read_text(encoding="utf-8")

    def test_settings_are_the_result(self, place: Path) -> None:
        found = json.loads(run("train", "--print-config", "--json", "--steps", "7").stdout)
        assert found["result"]["settings"]["steps"] == 7


class TestQuiet:
    def test_nothing_is_printed_but_what_failed(self, place: Path) -> None:
        done = run("infer", "labels", "out", "--artifact", "artifact", "--quiet")
        assert done.exit_code == 1
        assert done.stdout == ""
        assert "broken.png" in done.stderr
        assert "wrote" not in done.stderr
        (place / "labels" / "broken.png").unlink()
        done = run("infer", "labels", "out", "--artifact", "artifact", "--quiet")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")

    def test_with_json_the_document_is_all(self, place: Path) -> None:
        done = run("doctor", "--quiet", "--json")
        assert json.loads(done.stdout)["result"]["checks"]
        assert done.stderr == ""

    def test_what_was_asked_for_is_printed(self, place: Path) -> None:
        assert "steps:" in run("train", "--print-config", "--quiet").stdout


def test_the_log_has_what_is_printed_with_the_time_and_grows(place: Path) -> None:
    for _ in range(2):
        done = run("infer", "labels", "out", "--artifact", "artifact", "--quiet", "--log-file", "logs/spade.log")
        assert done.exit_code == 1
    lines = (place / "logs" / "spade.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \S", line) or "  " in line for line in lines)
    text = "\n".join(lines)
    assert text.count("spade infer labels out --artifact artifact --quiet --log-file logs/spade.log") == 2
    for said in ("wrote 1 of 2 images", "broken.png", "1 were there already", "exit code 1"):
        assert said in text
    assert "\x1b" not in text


def test_help_has_two_names_and_in_a_file_each_option_is_a_line() -> None:
    assert run("-h").stdout == run("--help").stdout
    assert "Exit codes: 0 done" in run("-h").stdout
    groups = {
        inner: str(one.name) for one in COMMANDS if isinstance(one, TyperGroup) for inner in one.commands.values()
    }
    for command in commands():
        words = [*([groups[command]] if command in groups else []), str(command.name)]
        said = run(*words, "-h").stdout
        for option in (*command.options, *command.output_options):
            assert re.search(rf"^  {option.flag}\b.*\S$", said, re.MULTILINE), option.flag
        assert "│" not in said


def on_a_terminal(columns: int, *words: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints on a terminal of that width."""
    script = str(Path(sys.executable).with_name("spade"))
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [script, *words], stdin=child, stdout=child, stderr=child, env={**kept, "TERM": "xterm", **(environment or {})}
    )
    os.close(child)
    said = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(parent)
    process.wait()
    return said.decode().replace("\r\n", "\n")


def test_the_help_of_train_fits_80_columns_with_whole_names() -> None:
    said = on_a_terminal(80, "train", "--help")
    assert "\x1b[36m" in said, "colours on a terminal"
    lines = ESCAPES.sub("", said).splitlines()
    assert max(map(len, lines)) <= 80
    (train,) = (command for command in commands() if command.name == "train")
    for option in train.options:
        assert any(re.match(rf"  {option.flag}(?![\w-])", line) for line in lines), option.flag
    bare = on_a_terminal(80, "train", "--help", environment={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3\dm", bare)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a terminal of so many columns of stdout, and returns what it shows."""
    import io

    from rich.console import Console

    def shown(columns: int, show: Any) -> str:
        written = io.StringIO()
        terminal = Console(file=written, force_terminal=True, width=columns, color_system=None, highlight=False)
        for module in (console, tables):
            monkeypatch.setattr(module, "stdout", lambda: terminal)
        show()
        return ESCAPES.sub("", written.getvalue())

    return shown


def test_a_table_that_is_too_wide_becomes_lines_and_loses_nothing(screen: Any) -> None:
    headings = ("graph", "verdict", "max error", "left out of the verdict")
    why = "one value in ten, since rounding alone decides it " * 2
    rows = [("fp32 lookup", "pass", "1.2e-06", why), ("b", "", "3", "")]
    wide = screen(200, lambda: tables.print_table(headings, rows, left=(0, 1, 3)))
    assert [line.split()[0] for line in wide.splitlines()] == ["graph", "fp32", "b"]
    narrow = screen(60, lambda: tables.print_table(headings, rows, left=(0, 1, 3)))
    assert max(map(len, narrow.splitlines())) <= 60
    words = narrow.split()
    for word in ("lookup", "pass", "1.2e-06", "verdict", "decides"):
        assert word in words
    assert "max error 3" in narrow


def test_in_a_pipe_no_name_is_wrapped_and_no_colour_is_printed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a_very_long_name_" * 10
    Image.fromarray(np.full((64, 32), 77, np.uint8)).save(place / "labels" / f"{name}.png")
    monkeypatch.setenv("COLUMNS", "40")
    said = run("check-labels", "labels", "--num-labels", "5").stdout
    assert f"{name}.png" in said
    assert "\x1b" not in said


def parsed(line: str) -> None:
    """Parse a command line with the real commands, as far as typer looks at it. Raises for one that is wrong."""
    words = shlex.split(line)
    assert words[0] == "spade"
    context, command = None, app_command()
    for number, word in enumerate(words[1:], 1):
        command = command.commands[word]
        if isinstance(command, RequestCommand):
            context = command.make_context(word, words[number + 1 :])
            break
    assert context is not None
    OutputOptions(context.params["json"])


def app_command() -> Any:
    import typer

    return typer.main.get_command(app)


def test_next_lines_of_the_readmes_commands_are_command_lines_with_paths_that_exist(mission: Mission) -> None:
    found = re.findall(r"^next: (.*)$", "\n".join(mission.said), re.MULTILINE)
    assert len(found) >= 2
    for line in found:
        parsed(line)
        words = shlex.split(line)
        if words[1] == "export":
            assert (mission.folder / words[2] / "checkpoints").is_dir()
        if words[1] == "infer":
            assert (mission.folder / words[2]).is_dir()
            assert (mission.folder / words[words.index("--artifact") + 1] / "manifest.json").is_file()
    assert {shlex.split(line)[1] for line in found} >= {"export", "infer"}


def test_paths_with_blanks_are_quoted_in_next_lines(place: Path) -> None:
    done = run("data", "earth", "my earth", "--json")
    (line,) = json.loads(done.stdout)["next"]
    assert line == "spade check-labels 'my earth' --preset earth"
    checked = run(*shlex.split(line)[1:])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("option", ["", " --best"])
def test_the_next_step_after_a_training_exports_what_it_chose(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/job")
    run.mkdir(parents=True)
    if option:
        (run / "best.json").touch()
    _print_result({"run": run, "step": 4, "seconds": 1.0, "checkpoint": run / "checkpoints" / "4", "skipped": []})
    assert capsys.readouterr().out.splitlines()[-1] == f"next: spade export runs/job{option} --fp16"
