"""A run as the process that plans it sees it: it counts the outcomes, whoever makes the images."""

from __future__ import annotations

import time

from spade_deploy.errors import ConfigError
from spade_deploy.inference.jobs import Failure, Outcome
from spade_deploy.inference.keeper import Keeper
from spade_deploy.inference.maker import Maker, differences
from spade_deploy.inference.work import Desk
from spade_deploy.progress import Figures, Progress


class Run(Desk):
    """Counts the images that are done, and reports them to `progress`."""

    def __init__(self, artifact: str, total: int, failures: list[Failure], progress: Progress, keeper: Keeper) -> None:
        """Nothing is done yet.

        artifact: its path. total: the images to make. failures: the label maps without an image so far. keeper: takes
        the images.
        """
        self.progress = progress
        self.failures = failures
        self.losses: list[str] = []
        self.written = self.resized = 0
        self.runtime = ""
        self._artifact, self._total, self._keeper = artifact, total, keeper
        self._maker: Maker | None = None
        self._done: set[str] = set()
        self._started = self._ended = 0.0

    @property
    def seconds(self) -> float:
        """The time from the first file to the last, without loading the model."""
        return self._ended - self._started

    def admit(self, maker: Maker, name: str) -> None:
        """See `Desk.admit`."""
        if self._maker is not None:
            found = differences(self._maker, maker)
            if found:
                raise ConfigError(
                    f"the processes of this run would make different images: {'; '.join(found)}",
                    hint="name the `backend` and the `precision`, and see that all have the same packages",
                )
            return
        self._keeper.begin(maker)
        self._maker, self.runtime = maker, name
        self.progress.step(f"running {self._artifact} with {name}")
        self._started = self._ended = time.perf_counter()

    def done(self, outcome: Outcome) -> None:
        """See `Desk.done`."""
        if outcome.id in self._done:
            return
        self._keeper.keep(outcome)
        self._done.add(outcome.id)
        if outcome.error is None:
            self.written += 1
            self.resized += outcome.was_resized
        else:
            self.failures.append(Failure(outcome.label, outcome.error, outcome.hint, outcome.id))
        self._ended = time.perf_counter()
        rate = self.written / max(self.seconds, 1e-9)
        self.progress.count("images", len(self._done), self._total, Figures(per_second=rate))

    def lost(self, what: str, jobs: int) -> None:
        """See `Desk.lost`."""
        sentence = f"{what}; {jobs} label map{'' if jobs == 1 else 's'} went to another process"
        self.losses.append(sentence)
        self.progress.note(sentence)
