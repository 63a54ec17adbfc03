"""Hold out a share of the samples of one's own data set, so that figures are of photos that were not learned from.

A sample's name and a seed decide on a number from 0 to below 1; samples whose number is below a limit are held out. The
limit is chosen once, when a run begins, so that the share is right, and is saved with the run. So a photo that is added
later moves no other one, and what was held out stays held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from spade_deploy.errors import ConfigError
from spade_deploy.fields import Count, Rule

DEFAULT_SHARE = 0.1
"""The share that is held out if nothing else is asked for."""
FEWEST = 10
"""With fewer samples none is held out by default: one or two photos say little, and are missed in training."""
MOST_SHARE = 0.9
"""The largest share that may be held out."""

Share = Annotated[float, Rule(lambda share: 0 < share <= MOST_SHARE, f"above 0 and at most {MOST_SHARE}")]
"""A share of the samples that may be held out."""

_DIGITS = 6


@dataclass(frozen=True)
class HoldOut:
    """Which samples of a data set are held out of training, to measure on."""

    share: Share
    """The share that was asked for."""
    seed: Count
    """The random seed of the choice."""
    below: float
    """Samples whose number (`number_of`) is below this limit are held out."""
    count: Count
    """How many samples were held out when the limit was chosen."""
    of: Count
    """Of how many samples."""

    def holds_out(self, stem: str) -> bool:
        """Whether the sample of this name is held out."""
        return number_of(stem, self.seed) < self.below

    @property
    def described(self) -> str:
        """For people: '37 of 367 samples (10 %, seed 0)'."""
        return f"{self.count} of {self.of} samples ({self.share:.3g} of them, seed {self.seed})"


def hold_out(stems: Sequence[str], share: float, seed: int = 0) -> HoldOut:
    """Hold out `share` of the samples of these names, at least one, and leave at least one to learn from.

    Raises ConfigError for fewer than two samples.
    """
    if len(stems) < 2:
        raise ConfigError(f"`holdout`: {len(stems)} samples cannot be split into two parts", hint="leave it out")
    count = min(len(stems) - 1, max(1, round(share * len(stems))))
    numbers = sorted(number_of(stem, seed) for stem in stems)
    return HoldOut(share, seed, numbers[count], count, len(stems))


def number_of(stem: str, seed: int) -> float:
    """The number of a sample, from 0 to below 1, by its name and the seed; the same on every machine."""
    digest = hashlib.sha256(f"{seed}:".encode() + stem.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:_DIGITS], "big") / float(1 << (8 * _DIGITS))
