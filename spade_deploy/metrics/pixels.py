"""Generated pixels against the photo's own: weak measures, since many photos fit one label map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError

MAX_PSNR_DB = 100.0
"""The PSNR of equal images, instead of infinity."""


class PixelError:
    """Sums of differences over images."""

    def __init__(self) -> None:
        self._absolute = 0.0
        self._squared = 0.0
        self._values = 0

    def add(self, made: NDArray[Any], real: NDArray[Any]) -> None:
        """Add uint8 pixels of equal shape. Raises ConfigError if the shapes differ."""
        if made.shape != real.shape:
            raise ConfigError(f"pixels of {made.shape} cannot be compared with a photo of {real.shape}")
        difference = made.astype(np.float64) - real
        self._absolute += float(np.abs(difference).sum())
        self._squared += float((difference**2).sum())
        self._values += difference.size

    @property
    def l1(self) -> float:
        """Mean absolute difference, where black and white differ by 1."""
        return self._absolute / max(1, self._values) / 255

    @property
    def psnr(self) -> float:
        """The PSNR in dB, from the mean squared difference over all images; at most `MAX_PSNR_DB`."""
        return float(psnr_of(np.array(self._squared / max(1, self._values))))


def psnr_of(squared: NDArray[np.float64]) -> NDArray[np.float64]:
    """The PSNR of mean squared differences of pixels 0..255, in dB; at most `MAX_PSNR_DB`."""
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.minimum(MAX_PSNR_DB, 10 * np.log10(255**2 / squared))
    return found
