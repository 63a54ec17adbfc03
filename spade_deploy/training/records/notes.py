"""What a run has to say while it goes, and the things that may fail without ending it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spade_deploy.errors import reason_of


class Notes:
    """One sentence about each thing; the last one said about it counts. step: the one that is recorded now."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._notes: dict[str, str] = {}
        self._told: set[str] = set()

    def say(self, about: str, note: str) -> None:
        """An empty text takes back what was said."""
        self._notes.pop(about, None)
        if note:
            self._notes[about] = note

    def all(self) -> tuple[str, ...]:
        return tuple(self._notes.values())

    def new(self) -> tuple[str, ...]:
        """The first note about each thing that came up since this was last asked."""
        fresh = {about: note for about, note in self._notes.items() if about not in self._told}
        self._told.update(fresh)
        return tuple(fresh.values())

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Whatever goes wrong with a thing that is only looked at is said, and does not end a training of days."""
        try:
            yield
        except Exception as error:
            self.say(what, f"step {self.step}: {what} failed and training went on ({reason_of(error)})")
