"""What is asked of int8: the label maps to calibrate on, and the quality of the graphs. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.errors import ConfigError

DEFAULT_MIN_PSNR_DB = 35.0
DEFAULT_CALIBRATION_COUNT = 32


def require_target(min_psnr_db: float) -> None:
    """Raises ConfigError for what cannot be a target."""
    if not 0 < min_psnr_db < float("inf"):
        raise ConfigError(f"`min_psnr_db`: {min_psnr_db:g} is not a positive number of decibels")


@dataclass(frozen=True)
class Int8Request:
    """An int8 graph of each kind, of a stated quality."""

    calibration: Arrays
    """The dense graph's inputs by name, N of each."""

    described: str
    """Where they come from, for people."""

    min_psnr_db: float = DEFAULT_MIN_PSNR_DB
    """The PSNR of the image against float32 that every graph must reach."""

    def __post_init__(self) -> None:
        require_target(self.min_psnr_db)
        if not len(self.calibration[LABEL]):
            raise ConfigError("int8 needs at least one label map to calibrate on")
