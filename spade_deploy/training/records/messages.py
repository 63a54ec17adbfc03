"""What a run has to tell its user, and the steps of it that may fail without ending it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spade_deploy.errors import reason_of


class RunMessages:
    """One sentence about each subject: a new one about the same subject replaces it.

    step: the step that is recorded now.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._by_subject: dict[str, str] = {}
        self._told: set[str] = set()

    def say(self, subject: str, sentence: str) -> None:
        """Say a sentence about a subject; an empty one takes back what was said."""
        self._by_subject.pop(subject, None)
        if sentence:
            self._by_subject[subject] = sentence

    def all(self) -> tuple[str, ...]:
        """Every sentence, in the order they were said."""
        return tuple(self._by_subject.values())

    def new(self) -> tuple[str, ...]:
        """The sentences about subjects that came up since this was last called."""
        fresh = {subject: text for subject, text in self._by_subject.items() if subject not in self._told}
        self._told.update(fresh)
        return tuple(fresh.values())

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A block that may fail: the reason becomes a message, since what is only looked at must not end a training."""
        try:
            yield
        except Exception as error:
            self.say(what, f"step {self.step}: {what} failed and training went on ({reason_of(error)})")
