"""Chains of kills: a command is killed, looked at, killed again, and at last left to end."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .scenarios import Ended, Scenario, leftovers, run_spade


@dataclass(frozen=True)
class Result:
    """One chain. kills: where each was, in words. problems: what did not hold, empty where all did."""

    scenario: str
    kills: tuple[str, ...]
    problems: tuple[str, ...]


class Killer:
    """A scenario, its unbroken run, and kills at places from a seed."""

    def __init__(self, scenario: Scenario, work: Path, rng: random.Random) -> None:
        self.scenario = scenario
        self._work, self._rng = work / scenario.name, rng
        self._work.mkdir(parents=True)
        template = self._work / "template"
        template.mkdir()
        scenario.prepare(template)
        _clear(self._work / "template.tmp")
        self._template = template
        unbroken = self._work / "unbroken"
        shutil.copytree(template, unbroken, symlinks=True)
        ended = run_spade(scenario.command, unbroken)
        if ended.code != 0 or ended.changes is None:
            raise RuntimeError(f"{scenario.name} does not run: {ended.said[-2000:]}")
        # Libraries keep files of their own there (ONNX Runtime's .ses), in an unbroken run, too.
        self._always_left = set(leftovers(unbroken, self._work / "unbroken.tmp"))
        self.changes, self.seconds = ended.changes, ended.seconds
        self.expected = scenario.facts(unbroken)

    def chain(self, kills: int, number: int) -> Result:
        """Kill the command `kills` times in one folder, then let it end."""
        folder = self._work / f"chain-{number}"
        shutil.copytree(self._template, folder, symlinks=True)
        said, problems = [], []
        for _ in range(kills):
            before = self.scenario.state(folder)
            where, ended = self._kill(folder)
            said.append(where)
            if ended.code not in (-signal.SIGKILL, 0):
                problems.append(f"{where}: ended with code {ended.code}: {ended.said[-800:]}")
            problems += [f"after {where}: {problem}" for problem in self.scenario.problems(folder, before)]
        ended = run_spade(self.scenario.command, folder)
        if ended.code != 0:
            problems.append(f"the last run ended with code {ended.code}: {ended.said[-1200:]}")
        else:
            problems += self._differences(folder)
            left = sorted({*leftovers(folder, folder.parent / f"{folder.name}.tmp")} - self._always_left)
            problems += [f"left behind: {', '.join(left[:6])} ({len(left)} in all)"] if left else []
        if not problems:
            _clear(folder)
        return Result(self.scenario.name, tuple(said), tuple(problems))

    def _kill(self, folder: Path) -> tuple[str, Ended]:
        if self._rng.random() < 0.75:
            place = self._rng.randint(1, self.changes)
            return f"change {place} of {self.changes}", run_spade(self.scenario.command, folder, kill_at=place)
        seconds = self.seconds * self._rng.uniform(0.2, 1.0)
        return f"{seconds:.1f} s", run_spade(self.scenario.command, folder, kill_after_s=seconds)

    def _differences(self, folder: Path) -> list[str]:
        try:
            found = self.scenario.facts(folder)
        except Exception as error:
            return [f"the results cannot be read: {type(error).__name__}: {error}"]
        return [
            f"{name} differs from the unbroken run: {_short(self.expected.get(name), found.get(name))}"
            for name in sorted({*self.expected, *found})
            if self.expected.get(name) != found.get(name)
        ]


def _short(expected: Any, found: Any) -> str:
    """What differs, in a line."""
    if isinstance(expected, list) and isinstance(found, list):
        missing = [entry for entry in expected if entry not in found]
        more = [entry for entry in found if entry not in expected]
        return f"missing {str(missing)[:300]}, more {str(more)[:300]}"
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key in {*expected, *found} if expected.get(key) != found.get(key)]
        return f"in {', '.join(map(str, keys[:5]))}"
    return f"{str(expected)[:150]} -> {str(found)[:150]}"


def kill_all(
    chosen: list[Scenario],
    kills: int,
    seed: int,
    work: Path,
    *,
    longest_chain: int = 3,
    on_chain: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """`kills` kills in all, spread over the scenarios; those that are slow get half as many."""
    weights = [1 if scenario.is_slow else 2 for scenario in chosen]
    results = []
    number = 0
    for index, scenario in enumerate(chosen):
        share = round(kills * sum(weights[: index + 1]) / sum(weights)) - round(
            kills * sum(weights[:index]) / sum(weights)
        )
        rng = random.Random(f"{seed} {scenario.name}")
        killer = Killer(scenario, work, rng)
        while share > 0:
            length = min(share, rng.randint(1, longest_chain))
            number += 1
            results.append(killer.chain(length, number))
            on_chain(results[-1])
            share -= length
    return results


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
