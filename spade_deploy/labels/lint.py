"""What is wrong with a folder of label maps, before a network sees them.

An error is something that would train or infer wrongly, or not at all; a warning is worth a look.
`fix_labels` makes a repaired copy of what can be repaired; the conversions themselves are in labels/fix.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, NotFoundError
from spade_deploy.images.image_file import Samples, check_photo, read_samples, size_beside
from spade_deploy.labels.files import bad_ids, describe_bad_ids, read_instance_map
from spade_deploy.labels.fix import (
    FixAction,
    FixResult,
    copy_file,
    eight_bit,
    fix_file,
    grey_ids,
    match_colors,
    read_palette_file,
    unclear,
)
from spade_deploy.labels.layouts import DataConfig, Pairing, Sample, has_layout, pair_files, pair_flat, train_ids_in
from spade_deploy.labels.palettes import moved_palette
from spade_deploy.labels.sets import LABEL_SETS, is_label_set, label_set
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

INTERPOLATED = 0.07
"""Least `interpolation_score` of a file that is called antialiased.

Measured on 500 real and synthetic maps (13 of COCO-Stuff, all 447 Earth tiles, 40 Voronoi maps of five label sets):
untouched they reach 0.037 (COCO-Stuff 0.001), after NEAREST resizes by 0.31, 0.5 and 1.3 0.067. Of the same maps
after interpolation this many are found: bilinear x 0.5 98 %, x 1.5 100 %; bicubic x 0.7 94 %, x 2 99.8 %;
Lanczos x 0.5 95 %, x 1.3 99 %; box x 0.5 86 %. The misses are Earth tiles: noisy land cover with few, close ids.
"""

_MIN_RAMP_PIXELS = 16  # fewer are no evidence
_ENOUGH_TO_JUDGE = 3
_MAX_TRAIN_ID = 18
_MASK_SHARE = 0.05  # more masks than that are masks, not pictures of class 0 with unknown around it


CODES = (
    *("rgb", "palette-order", "mask", "range", "antialiased", "jpeg", "damaged", "size", "empty"),
    *("depth", "train-ids", "transparent", "animation", "exif", "photo", "not-a-file"),
    *("missing-photo", "missing-label", "missing-instance", "duplicate-stem"),
)


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing about one file. fixable: `fix_labels` converts it.

    code: one of CODES.
    """

    path: Path
    code: str
    severity: Severity
    message: str
    fixable: bool = False


@dataclass(frozen=True)
class LintReport:
    """files: the label maps that were looked at; root: what their names are relative to in a fixed copy."""

    root: Path
    files: tuple[Path, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity."""
        return {severity: sum(found.severity is severity for found in self.findings) for severity in Severity}

    def without(self, codes: Iterable[str]) -> LintReport:
        """The report without findings of these codes. Raises ConfigError for a code that does not exist."""
        codes = tuple(codes)
        for code in codes:
            if code not in CODES:
                raise ConfigError(f"--ignore: {code!r} is not one of {', '.join(CODES)}")
        return replace(self, findings=tuple(found for found in self.findings if found.code not in codes))


def labels_to_check(
    preset: str | None, num_labels: int | None, *, has_dontcare: bool = False, palette: Path | None = None
) -> LabelSpec:
    """The labels that were asked for: a preset's, or `num_labels` without names; a palette file replaces the colours.

    Raises ConfigError where both or neither are given.
    """
    if (preset is None) == (num_labels is None):
        what = "neither is given" if preset is None else "both are given"
        raise ConfigError(
            f"--preset, --num-labels: {what}; label maps are checked against one of them",
            hint=f"--preset {'|'.join(LABEL_SETS)}, or --num-labels N [--dontcare]",
        )
    labels = label_set(preset) if preset is not None else LabelSpec(num_labels or 0, has_dontcare=has_dontcare)
    if palette is None:
        return labels
    colors, names = read_palette_file(palette)
    if len(colors) != labels.num_ids:
        raise ConfigError(f"--palette: {palette} has {len(colors)} colours, but there are {labels.num_ids} ids")
    return replace(labels, palette=colors, names=names or labels.names)


def lint_folder(
    folder: Path,
    labels: LabelSpec,
    *,
    preset: str = "custom",
    images_dir: Path | None = None,
    instances_dir: Path | None = None,
    progress: Progress = SILENT,
    workers: int | None = None,
) -> LintReport:
    """Check a flat folder of label maps, or a data set root in the preset's layout (every split that is there).

    images_dir, instances_dir: of a flat folder, to check pairing and sizes as well.
    Raises NotFoundError without the folder, DatasetError where it holds no label maps.
    """
    for path in (folder, images_dir, instances_dir):
        if path is not None and not path.is_dir():
            raise NotFoundError(f"{path}: there is no such folder")
    if images_dir is None and instances_dir is None:
        config = DataConfig.for_preset(preset, root=folder)
        if has_layout(config):
            splits = [pair_files(config, split) for split in config.splits]
            pairing = Pairing(
                tuple(sample for split in splits for sample in split.samples),
                tuple(problem for split in splits for problem in split.problems),
                tuple(path for split in splits for path in split.unpaired_labels),
            )
            return lint_pairing(pairing, labels, root=folder, progress=progress, workers=workers)
    pairing = pair_flat(folder, images_dir, instances_dir, preset)
    if not (pairing.samples or pairing.problems):
        if preset == "cityscapes" and (other := train_ids_in(folder)) is not None:
            raise DatasetError(f"{folder}: holds train ids (0..18), as {other.name}, and no label ids (0..33)")
        raise DatasetError(
            f"{folder}: holds no label maps, and is no {preset} data set",
            hint="give a folder of PNG label maps, or a data set's root and its --preset",
        )
    return lint_pairing(pairing, labels, root=folder, progress=progress, workers=workers)


def lint_pairing(
    pairing: Pairing,
    labels: LabelSpec,
    *,
    root: Path,
    progress: Progress = SILENT,
    workers: int | None = None,
) -> LintReport:
    """Check every label map of a pairing, with its photo and instance map; one image a thread is in memory."""
    others = {problem.path for problem in pairing.problems if problem.code in ("photo", "not-a-file")}
    lone = [Sample(path.stem, path) for path in pairing.unpaired_labels if path not in others]
    samples = sorted([*pairing.samples, *lone], key=lambda sample: sample.label)
    findings: list[Finding] = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(lambda sample: check_sample(sample, labels), samples), start=1):
            findings += found
            progress.count("checking", done, len(samples))
    findings = _masks_judged_together(findings, labels, len(samples))
    findings = _train_ids_judged_together(findings, len(samples))
    for problem in pairing.problems:
        severity = Severity.WARNING if problem.code == "photo" else Severity.ERROR
        findings.append(Finding(problem.path, problem.code, severity, problem.message))
    return LintReport(root, tuple(sample.label for sample in samples), tuple(findings))


def _train_ids_judged_together(findings: list[Finding], count: int) -> list[Finding]:
    """One map without an id above 18 may be an odd picture; where none of several has one they are train ids."""
    seem = sum(found.code == "train-ids" for found in findings)
    if count < _ENOUGH_TO_JUDGE or seem < count:
        return findings
    return [replace(found, severity=Severity.ERROR) if found.code == "train-ids" else found for found in findings]


def fix_labels(report: LintReport, out: Path, labels: LabelSpec, *, progress: Progress = SILENT) -> list[FixResult]:
    """Make a copy of the report's label maps under `out`: good files unchanged, fixable ones converted to PNG.

    Names relative to the report's root are kept. What cannot be fixed is refused and not copied. `out` must be new or
    empty, so a source is never overwritten. Raises ConfigError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--fix: {out} exists and is not empty", hint="name a folder that does not exist yet")
    results = []
    for done, path in enumerate(report.files, start=1):
        results.append(_fixed(path, report, out, labels))
        progress.count("fixing", done, len(report.files))
    return results


def _fixed(path: Path, report: LintReport, out: Path, labels: LabelSpec) -> FixResult:
    target = out / path.relative_to(report.root)
    # Pairing is not a fault of the file: a label map without a photo is copied, two of one stem are not.
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
    """Whether reading refuses the file for its palette. Where that is ignored, the copy has no palette."""
    try:
        samples = read_samples(path, "label map")
    except LabelMapError:
        return False
    moved = moved_palette(samples.values, samples.palette, labels) if samples.values is not None else None
    return moved is not None and moved.is_certain


def check_sample(sample: Sample, labels: LabelSpec) -> list[Finding]:
    """All that is wrong with a label map and the files that belong to it."""
    readable = False
    try:
        findings = list(check_label_file(sample.label, labels))
        readable = True
    except LabelMapError as error:
        findings = [_damaged(sample.label, error)]
    for path, is_photo in ((sample.photo, True), (sample.instance, False)):
        if path is None:
            continue
        try:
            if is_photo:
                findings += _check_photo(path)
            else:
                read_instance_map(path)
            problem = size_beside(sample.label, path, is_photo=is_photo) if readable else None
        except LabelMapError as error:
            findings.append(_damaged(path, error))
            continue
        if problem is not None:
            findings.append(Finding(sample.label, "size", Severity.ERROR, problem))
    return findings


def _check_photo(path: Path) -> Iterator[Finding]:
    """What is said about a photo that can be used. Raises LabelMapError for one that cannot."""
    orientation = check_photo(path)
    if orientation != 1:
        message = (
            f"is turned upright (EXIF orientation {orientation}) when it is read: its label map must lie over it as"
            " viewers show it"
        )
        yield Finding(path, "exif", Severity.WARNING, message)


def check_label_file(path: Path, labels: LabelSpec) -> Iterator[Finding]:
    """All that is wrong with one label map by itself. Raises LabelMapError where it cannot be decoded."""
    samples = read_samples(path, "label map")
    if (reason := unclear(samples)) is not None:
        yield Finding(path, reason[0], Severity.ERROR, reason[1])
        return
    if samples.colors is not None:
        yield from _check_colors(path, samples.colors, samples.kind, labels)
    elif samples.values is not None:
        yield from _check_values(path, samples.values, samples, labels)


def _check_values(path: Path, values: NDArray[Any], samples: Samples, labels: LabelSpec) -> Iterator[Finding]:
    moved = moved_palette(values, samples.palette, labels) if samples.palette else None
    if moved is not None:
        severity = Severity.ERROR if moved.is_certain else Severity.WARNING
        yield Finding(path, "palette-order", severity, moved.message, fixable=moved.is_certain)
        if moved.is_certain:
            return
    scaled = values.astype(np.int32) * samples.grey_scale
    if samples.grey_scale > 1 and values.any() and not bad_ids(scaled, labels):
        message = (
            f"greyscale of few bits, read as its samples 0..{values.max()}; a PNG optimiser may have made it of"
            f" the ids {', '.join(map(str, np.unique(scaled)[:4]))}, which viewers show"
        )
        yield Finding(path, "depth", Severity.WARNING, message)
    yield from _check_ids(path, values.astype(np.int32), labels)


def _check_colors(path: Path, colors: NDArray[Any], kind: str, labels: LabelSpec) -> Iterator[Finding]:
    ids = grey_ids(colors, labels)
    if ids is not None:
        message = f"greyscale stored as {kind}: needed is one channel"
        yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
        yield from _check_ids(path, ids.astype(np.int32), labels)
        return
    rgb = eight_bit(colors)
    if rgb is None:
        message = f"a {kind} image whose colours need 16 bits: no label map, or a photo?"
        yield Finding(path, "rgb", Severity.ERROR, message)
        return
    match = match_colors(rgb, labels)
    if not match.is_usable:
        message = f"a {kind} image that is no label map in this palette: {match.exact:.1%} of its pixels match"
        yield Finding(path, "rgb", Severity.ERROR, f"{message}; or is it a photo?")
        return
    message = f"colours instead of ids (mode {kind}); {match.exact:.1%} of the pixels have a colour of the palette"
    yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
    if match.exact < 1:
        message = f"{1 - match.exact:.1%} of the pixels have mixed colours: antialiased edges; they take the nearest"
        yield Finding(path, "antialiased", Severity.WARNING, message, fixable=True)


def _check_ids(path: Path, ids: NDArray[np.int32], labels: LabelSpec) -> Iterator[Finding]:
    values = {int(value) for value in np.unique(ids)}
    if is_label_set(labels, "cityscapes") and (found := _train_ids(path, values)) is not None:
        yield found
        if found.severity is Severity.ERROR:
            return
    if values == {0, UNKNOWN_VALUE} and labels.num_ids <= UNKNOWN_VALUE:
        if labels.unknown_id is None:
            message = "a mask, only 0 and 255: 255 is no id here"
            yield Finding(path, "mask", Severity.ERROR, message, fixable=labels.num_ids > 1)
        else:
            message = f"only 0 and 255: a mask, or {labels.name_of(0)} with unknown pixels"
            yield Finding(path, "mask", Severity.WARNING, message)
        return
    bad = bad_ids(ids, labels)
    if bad:
        yield Finding(path, "range", Severity.ERROR, describe_bad_ids(bad, labels))
    elif UNKNOWN_VALUE in values and labels.unknown_id is not None and labels.num_ids <= UNKNOWN_VALUE:
        name = labels.name_of(labels.unknown_id)
        if labels.names and not _means_unknown(name):
            message = f"255 (unknown) becomes id {labels.unknown_id}, which is {name!r} in this label set"
            yield Finding(path, "range", Severity.WARNING, message)
    score = interpolation_score(ids)
    if score >= INTERPOLATED:
        message = (
            f"the borders look interpolated (score {score:.2f}, from {INTERPOLATED} on): ids between those of two"
            " neighbours are other classes; resize label maps with nearest neighbour"
        )
        yield Finding(path, "antialiased", Severity.ERROR, message)
    unknown = {
        label_id for label_id in range(labels.num_ids) if labels.names and _means_unknown(labels.names[label_id])
    }
    if values <= unknown | {UNKNOWN_VALUE, labels.unknown_id}:
        yield Finding(path, "empty", Severity.WARNING, "nothing but unknown pixels")


def _train_ids(path: Path, values: set[int]) -> Finding | None:
    """A finding where a map of Cityscapes holds train ids (0..18, 255 elsewhere) instead of label ids, as it seems."""
    if "labelTrainIds" in path.name:
        message = "holds train ids (0..18, and 255), by its name; needed are label ids (0..33, _labelIds.png)"
        return Finding(path, "train-ids", Severity.ERROR, message)
    if not values - {UNKNOWN_VALUE} or max(values - {UNKNOWN_VALUE}) > _MAX_TRAIN_ID:
        return None
    message = "has no id above 18 (vegetation, sky, car, ...)"
    if UNKNOWN_VALUE in values and len(values) > 2:
        return Finding(path, "train-ids", Severity.ERROR, f"{message}, but 255: train ids; needed are label ids, 0..33")
    return Finding(path, "train-ids", Severity.WARNING, f"{message}: train ids? Needed are label ids, 0..33")


def interpolation_score(ids: NDArray[Any]) -> float:
    """How much the borders of a label map look like those of an interpolated image, 0..1.

    Interpolation leaves ramps: pixels strictly between their two neighbours in a row or column. The score is the share
    of border pixels that lie on a ramp, times the share of ramps among all one-pixel steps, which tells them from the
    single-pixel regions of noisy label maps (peaks and valleys as often as ramps).
    """
    ramp, border = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    steps = ramps = 0
    for view, on_ramp, on_border in ((ids, ramp, border), (ids.T, ramp.T, border.T)):
        before, here, after = view[:-2], view[1:-1], view[2:]
        is_ramp = ((before < here) & (here < after)) | ((before > here) & (here > after))
        on_ramp[1:-1] |= is_ramp
        ramps += int(is_ramp.sum())
        steps += int(((before != here) & (here != after)).sum())
        differs = view[1:] != view[:-1]
        on_border[1:] |= differs
        on_border[:-1] |= differs
    on_ramps = int(ramp.sum())
    return on_ramps / int(border.sum()) * ramps / steps if on_ramps >= _MIN_RAMP_PIXELS else 0.0


def _masks_judged_together(findings: list[Finding], labels: LabelSpec, count: int) -> list[Finding]:
    """One map of class 0 and unknown in a large data set is plausible; several are masks."""
    masks = {found.path for found in findings if found.code == "mask" and found.severity is Severity.WARNING}
    if len(masks) <= count * _MASK_SHARE:
        return findings
    message = (
        f"a mask, only 0 and 255, as {len(masks)} of {count} files: 255 would be read as unknown"
        f" (if it does mean unknown and 0 is {labels.name_of(0)}: --ignore mask)"
    )
    return [
        replace(found, severity=Severity.ERROR, message=message, fixable=labels.num_ids > 1)
        if found.code == "mask"
        else found
        for found in findings
    ]


def _means_unknown(name: str) -> bool:
    return name.startswith("unknown") or name == "unlabeled"


def _damaged(path: Path, error: LabelMapError) -> Finding:
    return Finding(path, "damaged", Severity.ERROR, error.message.removeprefix(f"{path}: "))
