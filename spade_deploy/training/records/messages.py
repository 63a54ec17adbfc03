"""Messages of a run to its user, and a block for work that may fail without ending the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spade_deploy.errors import reason_of


class RunMessages:
    """Keeps one sentence about each subject; a new sentence about the same subject replaces it.

    step: the step that is being recorded.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._by_subject: dict[str, str] = {}
        self._told: set[str] = set()

    def say(self, subject: str, sentence: str) -> None:
        """Set the sentence about a subject; an empty one removes it."""
        self._by_subject.pop(subject, None)
        if sentence:
            self._by_subject[subject] = sentence

    def all(self) -> tuple[str, ...]:
        """Every sentence, in the order they were said."""
        return tuple(self._by_subject.values())

    def new(self) -> tuple[str, ...]:
        """The sentences about subjects that are new since the last call."""
        fresh = {subject: text for subject, text in self._by_subject.items() if subject not in self._told}
        self._told.update(fresh)
        return tuple(fresh.values())

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A block that may fail, such as drawing a plot. The reason becomes a message, and training goes on."""
        try:
            yield
        except Exception as error:
            self.say(what, f"step {self.step}: {what} failed and training went on ({reason_of(error)})")
