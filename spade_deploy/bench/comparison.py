"""The PSNR of what is timed: each candidate's image of each case, held against the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE
from spade_deploy.bench.candidates import Candidate
from spade_deploy.bench.job import read_arrays
from spade_deploy.bench.judging import LEAST_PSNR_DB
from spade_deploy.metrics.differences import psnr_db


@dataclass
class ImageComparison:
    """The images of one bench."""

    references: tuple[Path, ...]
    """An .npz file with the reference's `image` of each case; empty where nothing is compared."""

    folder: Path
    """Where a worker writes the image that is compared next."""

    found: dict[Candidate, dict[int, float]] = field(default_factory=dict)
    """The PSNR in dB by candidate and case; infinite for identical images."""

    def image_to(self, candidate: Candidate, case: int) -> Path | None:
        """Where the image of the next run goes; None if it is not needed."""
        is_wanted = candidate.makes_images and case < len(self.references)
        return self.folder / "image.npz" if is_wanted and case not in self.found.get(candidate, {}) else None

    def add(self, candidate: Candidate, case: int, image: Path) -> str | None:
        """Compare the image in a file. Returns what is wrong with it, in words, or None."""
        found = image_psnr_db(read_arrays(image)[IMAGE], read_arrays(self.references[case])[IMAGE])
        self.found.setdefault(candidate, {})[case] = found
        if found >= LEAST_PSNR_DB:
            return None
        return (
            f"its image of case {case} is not the reference's: {found:.1f} dB, at least {LEAST_PSNR_DB:.0f} are needed"
        )


def image_psnr_db(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """PSNR of an image in [-1, 1]: infinite for identical ones, minus infinity for another shape and for NaN."""
    if found.shape != reference.shape or not np.isfinite(found).all():
        return -math.inf
    mean_square = float(np.mean((found.astype(np.float64) - reference) ** 2))
    found_db = psnr_db(mean_square)
    return math.inf if found_db is None else found_db
