"""Make a copy of a folder of label files, in which colours, masks and shuffled palettes are replaced by ids.

Nothing is guessed silently: each result says how well the colours matched, and what does not match is refused.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, LabelMapError
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import open_regular
from spade_deploy.images.image_file import Samples, read_samples
from spade_deploy.labels.colors import eight_bit, grey_ids, match_colors
from spade_deploy.labels.files import refuse_bad_ids
from spade_deploy.labels.findings import LintReport
from spade_deploy.labels.lint_file import unclear
from spade_deploy.labels.palettes import moved_palette
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec


class FixAction(StrEnum):
    """What became of a file."""

    COPIED = "copied"
    CONVERTED = "converted"
    REFUSED = "refused"


@dataclass(frozen=True)
class FixResult:
    """What became of one file."""

    path: Path
    """The file."""
    target: Path | None
    """Its copy; None if the file was refused."""
    action: FixAction
    """Whether it was copied, converted or refused."""
    message: str
    """How it was converted, or why it was refused."""


def fix_labels(report: LintReport, out: Path, labels: LabelSpec, *, progress: Progress = SILENT) -> list[FixResult]:
    """Make a copy of the report's label maps under `out`: good files unchanged, fixable ones converted to PNG.

    Names relative to the report's root are kept. What cannot be fixed is refused and not copied. `out` must be new or
    empty, so a source is never overwritten. Raises ConfigError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"`fix`: {out} exists and is not empty", hint="name a folder that does not exist yet")
    results = []
    for done, path in enumerate(report.files, start=1):
        results.append(_fixed(path, report, out, labels))
        progress.count("fixing", done, len(report.files))
    return results


def _fixed(path: Path, report: LintReport, out: Path, labels: LabelSpec) -> FixResult:
    target = out / path.relative_to(report.root)
    # A missing partner is not the file's fault: a label map without a photo is copied. Two files of one stem are not.
    own = [found for found in report.errors if found.path == path and not found.code.startswith("missing-")]
    hopeless = [found for found in own if not found.fixable]
    if hopeless:
        return FixResult(path, None, FixAction.REFUSED, f"{hopeless[0].code}: {hopeless[0].message}")
    codes = {found.code for found in own}
    by_index = "palette-order" not in codes and _has_moved_palette(path, labels)
    if not own and not by_index:
        return copy_file(path, target)
    return fix_file(path, target.with_suffix(".png"), labels, is_mask="mask" in codes, by_index=by_index)


def _has_moved_palette(path: Path, labels: LabelSpec) -> bool:
    """Whether the file would be refused for its palette. If the user ignores that, the copy gets no palette."""
    try:
        samples = read_samples(path, "label map")
    except LabelMapError:
        return False
    moved = moved_palette(samples.values, samples.palette, labels) if samples.values is not None else None
    return moved is not None and moved.is_certain


def fix_file(path: Path, target: Path, labels: LabelSpec, *, is_mask: bool, by_index: bool = False) -> FixResult:
    """Write the ids of `path` to `target` (PNG), or refuse. Never raises LabelMapError.

    is_mask: 255 becomes 1. by_index: take the indices of a palette file, and leave its colours out.
    """
    try:
        ids, how = _converted(path, labels, is_mask, by_index)
        refuse_bad_ids(ids, labels, path)
        with atomic_file(target, flush="file") as temporary:
            Image.fromarray(ids.astype(np.uint8 if labels.id_type == "uint8" else np.uint16)).save(
                temporary, format="PNG"
            )
    except (LabelMapError, OSError) as error:
        return FixResult(path, None, FixAction.REFUSED, str(error).removeprefix(f"{path}: "))
    return FixResult(path, target, FixAction.CONVERTED, how)


def copy_file(path: Path, target: Path) -> FixResult:
    """Copy a good file byte by byte."""
    try:
        with (
            open_regular(path) as source,
            atomic_file(target, flush="file") as temporary,
            temporary.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy)
    except OSError as error:
        return FixResult(path, None, FixAction.REFUSED, f"cannot be copied ({error})")
    return FixResult(path, target, FixAction.COPIED, "unchanged")


def _converted(path: Path, labels: LabelSpec, is_mask: bool, by_index: bool) -> tuple[NDArray[Any], str]:
    samples = read_samples(path, "label map")
    if (found := unclear(samples)) is not None:
        raise LabelMapError(f"{path}: {found[1]}")
    values, how = samples.values, "nothing here that can be converted"
    if samples.colors is not None:
        values = grey_ids(samples.colors, labels)
        how = "greyscale stored as colour: one of three equal channels taken"
        if values is None:
            return _by_color(path, samples, labels)
        if not is_mask:
            return values, how
    elif samples.palette and values is not None:
        moved = moved_palette(values, samples.palette, labels)
        if by_index:
            return values, "the palette's indices taken as ids, its colours left out"
        if moved is not None and moved.is_certain:
            table = np.arange(256)
            table[list(moved.mapping)] = list(moved.mapping.values())
            values, how = table[values], "palette indices put into the order of the ids"
            if moved.is_grey:
                how = "greys of the palette taken as ids"
            if not is_mask:
                return values, how
    if is_mask and labels.num_labels < 2:
        raise LabelMapError(f"{path}: a mask needs two classes, and there is one")
    if is_mask and values is not None and set(np.unique(values)) <= {0, UNKNOWN_VALUE}:
        return np.where(values == UNKNOWN_VALUE, 1, 0), "mask: 255 became id 1"
    raise LabelMapError(f"{path}: {how}")


def _by_color(path: Path, samples: Samples, labels: LabelSpec) -> tuple[NDArray[Any], str]:
    rgb = eight_bit(samples.colors) if samples.colors is not None else None
    if rgb is None:
        raise LabelMapError(f"{path}: its colours have 16 bits, and are not colours of 8 bits")
    match = match_colors(rgb, labels)
    if not match.is_usable:
        raise LabelMapError(f"{path}: too few pixels have a colour of the palette: {match.summary}")
    return match.ids, match.summary
