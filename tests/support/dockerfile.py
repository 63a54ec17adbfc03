"""The instructions of a Dockerfile, as far as those of docker/ go: no heredocs, no parser directives."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Stage:
    """What one FROM begins."""

    base: str
    name: str = ""
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]

    def the(self, instruction: str) -> str:
        (found,) = self.all(instruction)
        return found

    def environment(self) -> dict[str, str]:
        return {name: value for text in self.all("ENV") for name, value in re.findall(r"(\w+)=(\S+)", text)}


@dataclass
class Dockerfile:
    """A Dockerfile with its stages in order; the last one is the image."""

    arguments: dict[str, str]
    """The ARG before the first FROM."""
    stages: list[Stage]

    @property
    def image(self) -> Stage:
        return self.stages[-1]

    def argument(self, name: str) -> str:
        """The default of an ARG, wherever it stands."""
        texts = [text for stage in self.stages for text in stage.all("ARG")]
        found = {**self.arguments, **dict(text.split("=", 1) for text in texts)}
        return found[name]


def read_dockerfile(path: Path) -> Dockerfile:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        name, text = line.split(maxsplit=1)
        if name == "FROM":
            base, _, alias = text.partition(" AS ")
            stages.append(Stage(base, alias))
        elif not stages:
            assert name == "ARG", line
            arguments |= dict([text.split("=", 1)])
        else:
            stages[-1].instructions.append((name, text))
    return Dockerfile(arguments, stages)


def exec_form(text: str) -> list[str]:
    """The words of an instruction in exec form. Fails for the shell form."""
    words: Any = json.loads(text)
    assert isinstance(words, list)
    assert all(isinstance(word, str) for word in words)
    return words
