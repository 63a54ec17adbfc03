"""What must hold for a case: success or a SpadeError for people, in time, in bounded memory, writing in its folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import typer

import spade_deploy
from spade_deploy import cli
from spade_deploy.errors import SpadeError

MAX_MESSAGE = 1000
"""Letters of an error's message; its hint has the same limit."""
MAX_GROWTH_BYTES = 1536 << 20
"""Resident memory that a case may take above what its process had: the largest image that is read, 64 million pixels,
needs about 1 GiB while it is checked."""
MAX_ADDRESSES_BYTES = 4 << 30
"""Address space above what the process had: it protects the machine, the bound is the resident memory."""
CPU_LIMIT_S = 25.0
BLOCKED_LIMIT_S = 20.0
"""Seconds in which a case computed next to nothing (IDLE_SHARE): it waits for something that never comes."""
IDLE_SHARE = 0.01
WALL_LIMIT_S = 300.0
TICK_S = 2.0

_PACKAGE = str(Path(spade_deploy.__file__).parent)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LEFTOVER = re.compile(r"^\..*\.tmp|\.tmp$")


class HungError(BaseException):
    """Raised by the clock into a case that does not end; no reader catches it."""


@dataclass(frozen=True)
class Failure:
    """What did not hold. kind: traceback, hang, memory, write, message, leftover, exit or wrong. where: the group."""

    kind: str
    where: str
    text: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class Watch:
    """Runs the attempts of one case in `folder`, of which `allowed` may be written to."""

    def __init__(self, folder: Path, allowed: tuple[Path, ...]) -> None:
        self.folder = folder
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        self.failures: list[Failure] = []
        self.attempts: list[str] = []
        self.refused = 0
        self.accepted = 0
        self.errors: list[SpadeError] = []
        self.names_are_odd = False  # then a message may hold the name as it is: what is printed counts

    def command(self, *arguments: str | Path, must_fail: str = "", codes: tuple[int, ...] = (0, 1, 2)) -> int | None:
        """Run `spade ARGUMENTS` in this process, as the console script would; its exit code, None after a failure.

        must_fail: why an exit code of 0 would be a wrong result.
        """
        typed = [os.fspath(argument) for argument in arguments]
        self.attempts.append("spade " + " ".join(repr(part) for part in typed))
        out, err = _Text("strict"), _Text("backslashreplace")
        self.errors.clear()

        def run() -> int:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    _spade()(typed, prog_name="spade")
                except SystemExit as end:
                    return end.code if isinstance(end.code, int) else 1
            return 0

        code = self._guarded(run, f"spade {typed[0]}")
        for error in self.errors:
            self._check_error(error, f"spade {typed[0]}")
        self._check_output(out, f"spade {typed[0]}: stdout")
        self._check_output(err, f"spade {typed[0]}: stderr")
        if code is None:
            return None
        if code not in codes:
            self.fail("exit", f"spade {typed[0]}", f"exit code {code}; stderr: {err.getvalue()[-400:]}")
        if code != 0 and not err.getvalue().strip() and not out.getvalue().strip():
            self.fail("exit", f"spade {typed[0]}", f"exit code {code} without a word")
        if code == 0 and must_fail:
            self.fail("wrong", f"spade {typed[0]}: {must_fail}", f"accepted: {must_fail}")
        self.accepted += code == 0
        self.refused += code != 0
        return code

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, must_fail: str = "", **named: Any) -> Any:
        """Call a reader; its value, None where it refused (as it may) or failed."""
        self.attempts.append(name)
        refusals: list[SpadeError] = []

        def run() -> Any:
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    return function(*arguments, **named)
            except SpadeError as error:
                refusals.append(error)
                return None

        value = self._guarded(run, name)
        for error in refusals:
            self._check_error(error, name)
        if not refusals and value is not None and must_fail:
            self.fail("wrong", f"{name}: {must_fail}", f"accepted: {must_fail}")
        self.accepted += not refusals
        self.refused += len(refusals)
        return value

    def fail(self, kind: str, where: str, text: str) -> None:
        """Record that something did not hold."""
        self.failures.append(Failure(kind, where, text[:6000]))

    def _guarded(self, run: Callable[[], Any], name: str) -> Any:
        before = _resident()
        _reset_peak()
        value = None
        with _clock(), _writes_watched(self._judge_write):
            try:
                value = run()
            except HungError as error:
                self.fail("hang", f"{name}: {_deepest(error)}", _trace(error))
            except (KeyboardInterrupt, SystemExit) as error:
                self.fail("exit", f"{name}: {_deepest(error)}", f"{type(error).__name__}: {error}")
            except BaseException as error:
                self.fail("traceback", f"{type(error).__name__} in {_deepest(error)}", f"{name}\n{_trace(error)}")
        grown = _peak() - before
        if grown > MAX_GROWTH_BYTES:
            self.fail("memory", name, f"{grown / 2**20:.0f} MiB above the {before / 2**20:.0f} MiB before")
        self._check_leftovers(name)
        return value

    def _judge_write(self, event: str, path: str) -> None:
        real = os.path.realpath(path)
        if not any(real == root or real.startswith(root + os.sep) for root in self.allowed):
            frame = _deepest_now()
            self.fail("write", f"{event} in {frame}", f"{event} of {path!r} ({real!r}), which no command may write")

    def _check_error(self, error: SpadeError, name: str) -> None:
        if self.names_are_odd:
            return
        where = f"{type(error).__name__} in {_deepest(error)}"
        for what, text in (("message", error.message), ("hint", error.hint or "")):
            problem = text_problem(text)
            if problem:
                self.fail("message", f"{where}: {problem}", f"{name}: the {what} {problem}: {text[:300]!r}")

    def _check_output(self, printed: io.StringIO, name: str) -> None:
        text = printed.getvalue()
        if "Traceback (most recent" in text:
            self.fail("traceback", name, text[-2000:])
        found = _CONTROL.search(text.replace("\r", ""))
        if found:
            self.fail(
                "message", f"{name}: control character", f"{text[max(0, found.start() - 80) : found.end() + 80]!r}"
            )

    def _check_leftovers(self, name: str) -> None:
        for root in (path for path in self.allowed if path.startswith(os.path.realpath(self.folder))):
            for found in Path(root).rglob("*"):
                if _LEFTOVER.search(found.name) and not found.is_symlink():
                    self.fail("leftover", name, f"{found.relative_to(self.folder)} is left")
        temporary = self.folder / "tmp"
        left = sorted(temporary.iterdir())
        if left:
            self.fail("leftover", name, f"left in TMPDIR: {', '.join(path.name for path in left[:5])}")
            for path in left:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


@cache
def _spade() -> Callable[..., Any]:
    """The command, made once: `app()` makes it anew for each call, which takes longer than most cases."""
    return typer.main.get_command(cli.app)


class _Text(io.StringIO):
    """A stream of text as Python opens one for UTF-8: stdout refuses what cannot be encoded, stderr escapes it."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def write(self, text: str) -> int:
        super().write(text.encode("utf-8", self._how).decode("utf-8"))
        return len(text)


def text_problem(text: object) -> str:
    """Why a text is none for people, or ''."""
    if not isinstance(text, str):
        return f"is {type(text).__name__}, not a text"
    if len(text) >= MAX_MESSAGE:
        return f"has {MAX_MESSAGE} letters or more"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "cannot be encoded as UTF-8"
    if _CONTROL.search(text):
        return "has control characters"
    return ""


def record_errors(watch: Watch) -> None:
    """Let `watch` see every error that a command prints; the printing itself stays as it is."""
    original = getattr(cli.print_error, "original", cli.print_error)

    def printing(error: SpadeError) -> None:
        watch.errors.append(error)
        original(error)

    printing.original = original  # type: ignore[attr-defined]
    cli.print_error = printing


_judges: list[Callable[[str, str], None]] = []
_is_hooked = False
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
}


@contextlib.contextmanager
def _writes_watched(judge: Callable[[str, str], None]) -> Iterator[None]:
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_on_audit)  # for good: a hook cannot be taken away
        _is_hooked = True
    _judges.append(judge)
    try:
        yield
    finally:
        _judges.pop()


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _judges:
        return
    if event == "open":
        path, _, flags = arguments
        if not (isinstance(flags, int) and flags & _WRITING):
            return
        paths = [path]
    elif event in _CHANGES:
        paths = [arguments[index] for index in _CHANGES[event]]
    else:
        return
    for path in paths:
        if isinstance(path, (str, bytes)) or hasattr(path, "__fspath__"):
            text = os.fsdecode(os.fspath(path))
            if text != os.devnull:
                _judges[-1](event, text)


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    """Raise HungError into the block when it computes, or waits, too long. Looked at every TICK_S seconds."""
    start, cpu_start = time.monotonic(), _cpu()
    window = [start, cpu_start]

    def tick(_signal: int, _frame: FrameType | None) -> None:
        now, cpu = time.monotonic(), _cpu()
        is_blocked = False
        if now - window[0] > BLOCKED_LIMIT_S:
            is_blocked = cpu - window[1] < IDLE_SHARE * BLOCKED_LIMIT_S  # looking at the clock takes some, too
            window[:] = [now, cpu]
        if is_blocked or cpu - cpu_start > CPU_LIMIT_S or now - start > WALL_LIMIT_S:
            raise HungError(f"after {now - start:.0f} s, of which {cpu - cpu_start:.1f} s computing")

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def limit_addresses() -> None:
    """From now on this process gets no more than MAX_ADDRESSES_BYTES beyond what it has."""
    limit = _status("VmSize") + MAX_ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _deepest(error: BaseException) -> str:
    """The deepest frame of the package that an exception went through: what a failure is grouped by."""
    found = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    return _frame_name(found)


def _deepest_now() -> str:
    return _frame_name([frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE)])


def _frame_name(frames: list[traceback.FrameSummary]) -> str:
    if not frames:
        return "no frame of the package"
    name = frames[-1].filename.removeprefix(_PACKAGE + os.sep)
    return f"{name}:{frames[-1].name}"


def _trace(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error))
    return lines if len(lines) < 4000 else lines[:1000] + "\n...\n" + lines[-3000:]
