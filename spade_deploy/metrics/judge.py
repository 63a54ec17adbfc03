"""Right or wrong: the one place that decides it, for every command and every benchmark.

The reference is what the untouched PyTorch module makes of label maps. The candidate is anything else that makes images
of the same maps: a graph in a runtime, a folded module, an emulation. The figures are in `differences.py`, and the
limits in `tolerances.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, LOGITS, PIXELS
from spade_deploy.metrics.differences import DiffAccumulator, ImagePair, OutputDiff, measure, not_comparable
from spade_deploy.metrics.tolerances import (
    MOST_UNDECIDED,
    STRESS_TOLERANCE,
    Tolerance,
    is_undecided,
    logit_margin,
    tolerance_for,
)
from spade_deploy.spec import LabelSpec, Precision, RoundingError


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is right."""

    failures: tuple[str, ...]
    """One sentence for each limit that is exceeded; empty if the candidate is right."""
    diff: OutputDiff
    """The figures over all values."""
    decided: OutputDiff
    """The figures over the values that rounding alone does not decide: these are held to the tolerance."""
    tolerance: Tolerance
    """The tolerance that the candidate was held to."""
    undecided_share: float
    """The share of the values that rounding alone decides (`tolerances.is_undecided`)."""

    @property
    def passed(self) -> bool:
        return not self.failures


class Judge:
    """Compares a candidate's outputs with the reference's, one label map after another, and gives a verdict.

    labels: of the model that both run. precision: the candidate's. rounding: the float32 error that eager PyTorch
    itself has. tolerance: what the candidate is held to; `tolerance_for` its precision if left out.
    most_undecided: the verdict is a failure where rounding alone decides a larger share of the values than this.
    """

    def __init__(
        self,
        labels: LabelSpec,
        precision: Precision,
        rounding: RoundingError,
        tolerance: Tolerance | None = None,
        most_undecided: float = MOST_UNDECIDED,
    ) -> None:
        names = tuple(labels.name_of(label_id) for label_id in range(labels.num_ids))
        self._margin = logit_margin(precision, rounding)
        self._tolerance = tolerance if tolerance is not None else tolerance_for(precision, rounding)
        self._most_undecided = most_undecided
        self._all, self._decided = DiffAccumulator(names), DiffAccumulator(names)
        self._shares: list[float] = []
        self._mismatches: list[str] = []

    @classmethod
    def of_stress_map(cls, labels: LabelSpec, rounding: RoundingError) -> Judge:
        """A judge of half precision on one stress map. It asks for a quality, and allows many undecided values."""
        return cls(labels, Precision.FP16, rounding, STRESS_TOLERANCE, most_undecided=1.0)

    @property
    def images(self) -> int:
        """How many images were added and could be compared."""
        return self._all.images

    def add(
        self, label: NDArray[Any], expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
    ) -> float:
        """Compare what a candidate found for some label maps; returns the largest error of the image.

        label: N x H x W ids. expected: `image`, `pixels` and `logits` of the reference. found: `image` and `pixels` of
        the candidate; other outputs are not looked at. Where one is missing or has another shape or type, the verdict
        is a failure and says so; the error is infinite then, as it is for values that are not finite.
        """
        problem = mismatch_of(expected, found)
        if problem is not None:
            self._mismatches.append(problem)
            return math.inf
        trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found[IMAGE], found[PIXELS])
        decided, share = decided_only(expected[LOGITS], self._margin, trusted, candidate)
        self._shares.append(share)
        measured = measure(label, trusted, candidate, self._all.ids)
        self._all.count(measured)
        # Where rounding decides nothing both are the same, and measuring takes long.
        self._decided.count(measure(label, trusted, decided, self._all.ids) if share else measured)
        return max(one.max_abs for one in measured)

    def verdict(self) -> Verdict:
        """The verdict on everything that was added; at least one image."""
        if self._mismatches:
            broken = not_comparable(self._all.images)
            return Verdict(tuple(dict.fromkeys(self._mismatches)), broken, broken, self._tolerance, 0.0)
        decided, share = self._decided.result(), sum(self._shares) / len(self._shares)
        failures = [*decided.failures(self._tolerance), *too_undecided(share, self._most_undecided)]
        return Verdict(tuple(failures), self._all.result(), decided, self._tolerance, share)


def mismatch_of(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> str | None:
    """Why `image` and `pixels` of a candidate cannot be compared with the reference's: one sentence, or None."""
    for name in (IMAGE, PIXELS):
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != expected[name].shape:
            return f"{name} has shape {found[name].shape}, not {expected[name].shape}"
        if found[name].dtype != expected[name].dtype:
            return f"{name} has type {found[name].dtype}, not {expected[name].dtype}"
    return None


def decided_only(
    logits: NDArray[Any], margin: float, reference: ImagePair, candidate: ImagePair
) -> tuple[ImagePair, float]:
    """The candidate with the reference's values where rounding alone decides, and the share of those values.

    logits: the reference's, N x 3 x H x W. margin: see `is_undecided`. What is not finite stays: that is no rounding.
    """
    undecided = is_undecided(logits, margin)
    image = np.where(undecided & np.isfinite(candidate[0]), reference[0], candidate[0])
    pixels = np.where(undecided.transpose(0, 2, 3, 1), reference[1], candidate[1])
    return (image, pixels), float(undecided.mean())


def too_undecided(share: float, most: float = MOST_UNDECIDED) -> list[str]:
    """A failure, in words, if so many values are left out that the rest proves nothing."""
    if share <= most:
        return []
    return [f"rounding alone decides {share:.0%} of the values: nothing is left to compare"]
