"""The request for int8 graphs: the label maps to calibrate on, and the quality. Nothing here needs PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import LABEL, Arrays
from spade_deploy.errors import ConfigError

DEFAULT_MIN_PSNR_DB = 35.0
DEFAULT_CALIBRATION_COUNT = 32


def require_target(min_psnr_db: float) -> None:
    """Raise ConfigError if a PSNR is not positive and finite."""
    if not 0 < min_psnr_db < float("inf"):
        raise ConfigError(f"`min_psnr_db`: {min_psnr_db:g} is not a positive number of decibels")


@dataclass(frozen=True)
class Int8Request:
    """Asks for an int8 graph of each kind, with a stated quality."""

    calibration: Arrays
    """The dense graph's inputs by name, N of each."""

    described: str
    """Where the label maps come from, for people."""

    min_psnr_db: float = DEFAULT_MIN_PSNR_DB
    """The PSNR of the image against float32 that every graph must reach."""

    def __post_init__(self) -> None:
        require_target(self.min_psnr_db)
        if not len(self.calibration[LABEL]):
            raise ConfigError("int8 needs at least one label map to calibrate on")
