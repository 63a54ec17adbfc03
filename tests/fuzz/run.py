"""Runs cases in several processes, and outlives whatever a case does to one of them."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .readers import READERS, make_outside, reader_of
from .watch import WALL_LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
KEPT_OF_A_GROUP = 3
_GIVES_UP_S = WALL_LIMIT_S + 60
"""A case that its own clock cannot end, since it never returns to Python, is ended from here."""


@dataclass
class Summary:
    """What became of all cases. groups: failures by reader, kind and place, with the cases that showed them."""

    seed: int
    only: Sequence[str] = ()
    cases: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)

    def reproduce(self, index: int) -> str:
        """The command that runs a case again."""
        chosen = "".join(f" --reader {name}" for name in self.only)
        return f"python -m tests.fuzz --seed {self.seed}{chosen} --case {index}"

    @property
    def passed(self) -> bool:
        return not self.groups

    def add(self, outcome: dict[str, Any]) -> bool:
        """Whether the case's folder is worth keeping."""
        reader = outcome["reader"]
        self.cases[reader] += 1
        self.accepted[reader] += outcome["accepted"]
        self.refused[reader] += outcome["refused"]
        self.failed[reader] += bool(outcome["failures"])
        keep = False
        for failure in outcome["failures"]:
            group = self.groups.setdefault((failure["kind"], failure["where"]), [])
            keep = keep or len(group) < KEPT_OF_A_GROUP
            group.append({**outcome, "failure": failure})
        return keep

    def table(self) -> str:
        """One row a reader, then one a group of failures."""
        lines = [f"{'reader':<24}{'cases':>7}{'accepted':>10}{'refused':>9}{'failed':>8}"]
        for name in READERS:
            if self.cases[name]:
                row = self.cases[name], self.accepted[name], self.refused[name], self.failed[name]
                lines.append(f"{name:<24}{row[0]:>7}{row[1]:>10}{row[2]:>9}{row[3]:>8}")
        total = sum(self.cases.values()), sum(self.accepted.values()), sum(self.refused.values())
        lines.append(f"{'all':<24}{total[0]:>7}{total[1]:>10}{total[2]:>9}{sum(self.failed.values()):>8}")
        for (kind, where), found in sorted(self.groups.items(), key=lambda pair: -len(pair[1])):
            first = found[0]
            lines.append(f"\n{len(found)} x {kind}: {where}")
            lines.append(f"  {first['reader']}: {'; '.join(first['damages'])[:300]}")
            lines.append(f"  {self.reproduce(first['index'])}")
            text = str(first["failure"]["text"]).strip()
            lines.append(f"  {text.splitlines()[-1][:300] if text else ''}")
        return "\n".join(lines)


def run_cases(
    indices: list[int],
    seed: int,
    work: Path,
    *,
    jobs: int = 2,
    only: Sequence[str] = (),
    on_case: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Run the cases of these numbers. Failing ones keep their folders in work/failures."""
    work.mkdir(parents=True, exist_ok=True)
    summary = Summary(seed, only)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in indices:
        waiting.put(index)
    lock = threading.Lock()

    def serve(number: int) -> None:
        place = work / f"worker-{number}"
        worker = _Worker(place, seed, only)
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                break
            outcome = worker.run(index)
            with lock:
                keep = summary.add(outcome)
                if outcome["failures"]:
                    _keep(work, place / f"case-{index}", outcome, summary.reproduce(index), keep)
                on_case(sum(summary.cases.values()))
        worker.close()

    _Worker(work / "worker-0", seed, only).close()  # makes the corpus, before there are several to make it
    threads = [threading.Thread(target=serve, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summary


class _Worker:
    """One process, started again when a case ends it."""

    def __init__(self, place: Path, seed: int, only: Sequence[str]) -> None:
        self._place, self._seed, self._only = place, seed, only
        place.mkdir(parents=True, exist_ok=True)
        make_outside(place)
        self._start()

    def _start(self) -> None:
        self._log = (self._place / "log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", self._place, str(self._seed), *self._only],
            cwd=Path(__file__).resolve().parents[__package__.count(".") + 1],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": _python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        if not self._lines.get(timeout=600):
            raise RuntimeError(f"a worker cannot start; {self._place / 'log'} says why")

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
        assert process.stdout is not None
        with process.stdout as answers:
            for line in answers:
                lines.put(line)
        lines.put("")

    def run(self, index: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        started = time.monotonic()
        try:
            print(index, file=self._process.stdin, flush=True)
            line = self._lines.get(timeout=_GIVES_UP_S)
        except (BrokenPipeError, queue.Empty):
            line = ""
        if line:
            outcome: dict[str, Any] = json.loads(line)
            return outcome
        is_hung = self._process.poll() is None and time.monotonic() - started >= _GIVES_UP_S
        self._process.kill()
        code = self._process.wait()
        kind, where = ("hang", "never returned to Python") if is_hung else ("traceback", f"the process ended: {code}")
        self._log.close()
        said = (self._place / "log").read_bytes()[-1500:].decode(errors="replace")
        self._start()
        return {
            "index": index,
            "reader": reader_of(self._seed, index, self._only),
            "damages": [],
            "attempts": [],
            "accepted": 0,
            "refused": 0,
            "failures": [{"kind": kind, "where": where, "text": said}],
        }

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._log.close()


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])


def _keep(work: Path, folder: Path, outcome: dict[str, Any], reproduce: str, keep: bool) -> None:
    if not folder.exists():
        return
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    target = work / "failures" / f"{outcome['reader']}-{outcome['index']}"
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    shutil.move(folder, target)
    lines = [
        reproduce,
        *outcome["damages"],
        *outcome["attempts"],
        *(f"{failure['kind']}: {failure['where']}\n{failure['text']}" for failure in outcome["failures"]),
    ]
    (target / "reproduce.txt").write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
