"""Event files for TensorBoard: settings, losses, rates, speed and metrics, sample grids as images."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import MissingDependencyError
from spade_deploy.runs.settings import as_text

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raise MissingDependencyError without tensorboard, now and not when the first event is written."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "tensorboard is not installed; `tensorboard` needs it",
            hint="pip install 'spade-deploy[tensorboard]', or train without `tensorboard`",
        )


class Board:
    """Writes RUN/tensorboard/, which `tensorboard --logdir RUNS` shows.

    start: events after this step, which an interrupted run left behind, are hidden.
    Every call writes to the disk before it returns, so that a full disk is an OSError of that call.
    """

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # The package is untyped in part, and it is only installed where TensorBoard is wanted.
        self._writer: Any = SummaryWriter(  # type: ignore[no-untyped-call, unused-ignore]
            str(run / FOLDER), purge_step=start + 1 if start else None
        )
        self._end: Any = None

    def settings(self, values: Mapping[str, Any], curves: Sequence[str]) -> None:
        """Write the run's settings for the HPARAMS page, which shows the last point of each of `curves` beside them.

        values: by dotted names. curves: as `scalars` names them, such as 'loss/l1'.
        """
        from torch.utils.tensorboard import summary

        shown = {
            name: value if isinstance(value, bool | int | float) else as_text(value) for name, value in values.items()
        }
        made = summary.hparams(shown, dict.fromkeys(curves, 0.0))  # type: ignore[no-untyped-call, unused-ignore]
        experiment, start, self._end = made
        for part in (experiment, start):
            self._writer.file_writer.add_summary(part)
        self._writer.flush()

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Add a point to one curve for each value; the curves are named `group/name`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Add an image, H x W x 3 uint8."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        if self._end is not None:
            self._writer.file_writer.add_summary(self._end)
        self._writer.close()
