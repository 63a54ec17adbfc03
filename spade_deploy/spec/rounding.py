"""The float32 rounding error of a model, from which every tolerance follows."""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.errors import ConfigError


@dataclass(frozen=True)
class RoundingError:
    """The rounding error of float32 itself: eager PyTorch in float32 against float64."""

    max_abs: float
    """The largest difference of images in [-1, 1]."""

    mean_abs: float
    """The mean difference of images in [-1, 1]."""

    logit_max: float
    """The largest difference of the logits, the values before tanh, in their own scale."""

    logit_mean: float
    """The mean difference of the logits."""

    def __post_init__(self) -> None:
        for what, mean, largest in (("image", self.mean_abs, self.max_abs), ("logit", self.logit_mean, self.logit_max)):
            if not 0 <= mean <= largest < float("inf"):
                raise ConfigError(f"rounding error: {what} mean {mean} and max {largest} cannot be")
