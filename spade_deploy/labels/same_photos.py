"""Find photos that a data set holds twice, under other names: one that is trained on is new to no measurement.

Few bytes are read where nothing is the same: sizes are compared first, then some bytes of the middle, then digests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from spade_deploy.files.reading import open_regular, sha256_of
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import Sample, pair_files

_BLOCK = 4096


def photos_in_both(config: DataConfig, split: str, other: str) -> frozenset[Path]:
    """The photos of a split that are also in another one, as the same file or with the same content.

    Empty for the embedded data set, and where either split has no samples.
    """
    if config.root is None and config.labels_dir is None:
        return frozenset()
    return same_photos(photos_of(pair_files(config, split).samples), photos_of(pair_files(config, other).samples))


def copies_trained_on(config: DataConfig, split: str) -> frozenset[Path]:
    """The photos of a split of one's own data set whose content is trained on, too.

    Empty for the training split, and for data sets whose splits others have made.
    """
    if config.preset != "custom" or config.labels_only or split == "train":
        return frozenset()
    return photos_in_both(config, split, "train")


def photos_of(samples: Iterable[Sample]) -> list[Path]:
    """The photos of samples that have one."""
    return [sample.photo for sample in samples if sample.photo is not None]


def same_photos(photos: Iterable[Path], others: Iterable[Path]) -> frozenset[Path]:
    """Those of `photos` that are among `others`, or have the same content. Files that cannot be read are left out."""
    first, second = _by_size(photos), _by_size(others)
    found: set[Path] = set()
    for size in first.keys() & second.keys():
        if blocks := {_middle(path, size) for path in second[size]} - {None}:
            suspects = [path for path in first[size] if _middle(path, size) in blocks]
            found |= _of_same_digest(suspects, second[size]) if suspects else set()
    return frozenset(found)


def _of_same_digest(suspects: list[Path], others: list[Path]) -> set[Path]:
    digests = {_digest(path) for path in others} - {None}
    return {path for path in suspects if _digest(path) in digests}


def _by_size(photos: Iterable[Path]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for path in photos:
        try:
            found.setdefault(path.stat().st_size, []).append(path)
        except OSError:  # it is reported when it is used
            continue
    return found


def _middle(path: Path, size: int) -> bytes | None:
    try:
        with open_regular(path) as stream:
            stream.seek(max(0, size // 2 - _BLOCK // 2), os.SEEK_SET)
            return stream.read(_BLOCK)
    except OSError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
