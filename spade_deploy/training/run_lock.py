"""The lock on a run's folder, by which two trainings never write there at once."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from spade_deploy.errors import TrainingError, reason_of
from spade_deploy.files.locks import locked

_LOG = logging.getLogger(__name__)


class RunLock:
    """The lock on a run's folder, held until `close`, so that no second process writes there."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._is_held = False

    def hold(self, run: Path) -> None:
        """Take the lock unless this object holds it. Raises FolderBusyError, which names the holder; TrainingError."""
        if self._is_held:
            return
        try:
            self._stack.enter_context(locked(run, "training this run"))
        except NotImplementedError:
            _LOG.warning("%s: this file system has no locks: make sure that no other process trains there", run)
        except OSError as error:
            raise TrainingError(
                f"{run}: cannot be written ({reason_of(error)})",
                hint="free some space, or choose another `runs` folder",
            ) from error
        self._is_held = True

    def close(self) -> None:
        self._stack.close()
        self._is_held = False
