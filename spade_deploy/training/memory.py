"""The memory bank of a run of SIMS: made of its training photos once, before the first step."""

from __future__ import annotations

import numpy as np

from spade_deploy.errors import DatasetError, LabelMapError
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.build import BankBuilder
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import SampleSource

MOST_PHOTOS = 1000
"""How many samples a bank is made of at most, so that a large data set is not read before the first step."""


def build_bank(source: SampleSource, setup: Setup) -> MemoryBank:
    """The bank of a setup's training samples, always the same one.

    At most MOST_PHOTOS evenly spaced samples are read; those that cannot be used are left out. Raises DatasetError if
    no segment is found.
    """
    labels, config = setup.generator.labels, setup.train
    builder = BankBuilder(labels)
    count = min(MOST_PHOTOS, len(source))
    bad: list[str] = []
    for index in (number * len(source) // count for number in range(count)):
        try:
            arrays = source.whole(index)
        except LabelMapError as error:
            bad.append(error.message)
            continue
        builder.add(index, arrays.label, arrays.photo)
    bank = builder.bank(config.bank_segments)
    if not len(bank):
        why = f"none of {count} samples can be used; the first one: {bad[0]}" if bad else "all pixels are unknown"
        raise DatasetError(f"no segment for a memory bank was found: {why}", hint=source.check_hint)
    return bank


def described(bank: MemoryBank) -> str:
    """A bank in a sentence."""
    photos = len(np.unique(bank.photo))
    return f"the memory bank holds {len(bank)} segments of {photos} training photos, {bank.nbytes / 1e6:.1f} MB"
