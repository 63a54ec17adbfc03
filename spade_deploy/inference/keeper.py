"""The place of a run's results, as long as the run goes on: its lock, its record, its list of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ConfigError, reason_of
from spade_deploy.inference.jobs import Outcome
from spade_deploy.inference.log import ResultLog, logged_files
from spade_deploy.inference.maker import (
    Maker,
    Record,
    differences,
    note_labels,
    read_record,
    require_known,
    require_only,
    require_same,
    write_record,
)
from spade_deploy.inference.pipeline import TargetError
from spade_deploy.inference.places.sources import is_plain
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.places.urls import PlaceError, shown
from spade_deploy.inference.plan import Destination, Plan
from spade_deploy.inference.request import InferRequest
from spade_deploy.spec import Naming

_ALL = 2**63 - 1
"""A time after that of every file."""


class Keeper:
    """Keeps the results of one run. A single image with a name has neither record nor list."""

    def __init__(self, to: Destination, artifact: Artifact, request: InferRequest, maker: Maker) -> None:
        self._to, self._store = to, to.store
        self._artifact, self._request, self._maker = artifact, request, maker
        self._record: Record | None = None
        self._log: ResultLog | None = None
        self._plan = Plan((), (), ())
        self.kept = 0
        """How many images of this run are there for good."""

    def check(self, plan: Plan, record: Record | None) -> None:
        """Raise ConfigError where images of another maker would be kept. record: what the place has."""
        self._plan = plan
        request, store = self._request, self._store
        if not self._to.has_record:
            if plan.kept:
                raise ConfigError(f"`out`: {request.out} is there already", hint="`overwrite` makes it again")
            return
        if record is None:
            if not request.overwrite:
                require_known(store, len(plan.kept))
        elif not request.overwrite:
            require_same(store, record, self._maker)
            note_labels(store, record, labels_name(request.labels), len(plan.kept))
        elif differences(record.maker, self._maker):
            self._require_only(record)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the place while the images are made; the list is whole at the end, also after an error.

        A single label map locks nothing. Raises FolderBusyError.
        """
        self._store.prepare()
        labels = self._request.labels
        if not self._to.has_record or (is_plain(labels) and Path(labels).is_file()):
            yield from self._closing()
            return
        # Two commands that fill one folder would both make all images.
        with self._store.locked(f"making images of {shown(labels)}"):
            yield from self._closing()

    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the error that ends the run is told, not one that follows from it
                self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        try:
            self._write(self._store.finish())
        finally:
            if self._log is not None:
                with _writing(self._store.name):
                    self._log.close()
                self._log = None

    def begin(self, maker: Maker) -> None:
        """Record the maker before its first image. The place is locked, and its record is read once more."""
        if not self._to.has_record:
            return
        store, labels = self._store, labels_name(self._request.labels)
        old, redo_before_ns = read_record(store), None
        if not self._request.overwrite:
            if old is not None:
                require_same(store, old, maker)
                redo_before_ns = old.redo_before_ns
        elif old is None or differences(old.maker, maker):
            if old is not None:
                self._require_only(old)
            redo_before_ns = _ALL
        elif old.redo_before_ns is not None:
            redo_before_ns = old.redo_before_ns
        kept = old.labels if old is not None and redo_before_ns != _ALL else ()
        path = str(self._artifact.path)
        naming = Naming.PATH if old is not None and old.naming is Naming.PATH else self._plan.naming
        record = Record(maker, path, tuple(dict.fromkeys((*kept, labels))), redo_before_ns, naming)
        time_ns = write_record(store, record)
        if redo_before_ns == _ALL:
            # The time of the place, which may differ from that of this machine, separates old images from new.
            record = replace(record, redo_before_ns=time_ns)
            write_record(store, record)
        self._record = record
        self._log = ResultLog(store, maker, self._request.seed)
        with _writing(store.name):
            self._log.add_failures(self._plan.failures)
        self._adopt(self._log)

    def _require_only(self, record: Record) -> None:
        in_folders = Naming.PATH in (record.naming, self._plan.naming)
        require_only(self._store, [job.result for job in self._plan.jobs], in_folders=in_folders)

    def has_gaps(self) -> bool:
        """Whether images that are there are not in the list, though there is one: a killed run left them."""
        if not self._to.has_record or not self._plan.kept:
            return False
        logged = logged_files(self._store)
        return logged is not None and any(name not in logged for name, _ in self._plan.kept)

    def fill_gaps(self) -> None:
        """Add these images to the list, though there is nothing to make."""
        record = read_record(self._store)
        if record is not None:
            self._log = ResultLog(self._store, record.maker, self._request.seed)
            self._adopt(self._log)

    def _adopt(self, log: ResultLog) -> None:
        logged = logged_files(self._store) or {}
        with _writing(self._store.name):
            log.adopt([one for one in self._plan.kept if one[0] not in logged])

    def keep(self, outcome: Outcome) -> None:
        """Take an image that was made, or a failure. Raises TargetError where the place takes no more."""
        if outcome.error is not None:
            self._write([outcome], counts=False)
            return
        with _writing(self._store.target.where(outcome.file or "")):
            done = self._store.keep(outcome)
        self._write(done)

    def _write(self, outcomes: list[Outcome], *, counts: bool = True) -> None:
        if self._log is not None and outcomes:
            with _writing(f"{self._store.name}/{LOG}"):
                self._log.add(outcomes)
        if counts:
            self.kept += len(outcomes)

    def end(self, *, is_whole: bool) -> None:
        """All images were made again, unless some label map failed, whose old image is still another maker's."""
        if self._record is not None and self._record.redo_before_ns and is_whole:
            write_record(self._store, replace(self._record, redo_before_ns=None))


def labels_name(labels: Path | str) -> str:
    """How a record names the source of the label maps."""
    return str(labels.resolve()) if isinstance(labels, Path) else shown(labels)


@contextmanager
def _writing(where: str) -> Iterator[None]:
    """Turn what the place says inside the block into a TargetError."""
    try:
        yield
    except PlaceError as error:
        raise TargetError(error.message, hint=error.next_step) from error
    except OSError as error:
        raise TargetError(
            f"the result {where} cannot be written: {reason_of(error)}",
            hint="free some space or choose another folder; the same command continues where this one stopped",
        ) from error
