"""What is wrong with a folder of label maps, before a network sees them.

An error is something that would train or infer wrongly, or not at all; a warning is worth a look.
`fix_labels` makes a repaired copy of what can be repaired; the conversions themselves are in label_fix.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.dataset_files import DataConfig, Pairing, Sample, has_layout, pair_files
from spade_deploy.errors import ConfigError, DatasetError, LabelMapError, NotFoundError
from spade_deploy.label_fix import (
    FixAction,
    FixResult,
    copy_file,
    fix_file,
    is_grey_ids,
    match_colors,
    read_palette_file,
    reordered_palette,
)
from spade_deploy.label_map import (
    bad_ids,
    describe_bad_ids,
    image_size,
    list_label_files,
    opened,
    read_instance_map,
)
from spade_deploy.label_sets import LABEL_SETS, label_set
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

INTERPOLATED = 0.07
"""Least `interpolation_score` of a file that is called antialiased.

Measured on 500 real and synthetic maps (13 of COCO-Stuff, all 447 Earth tiles, 40 Voronoi maps of five label sets):
untouched they reach 0.037 (COCO-Stuff 0.001), after NEAREST resizes by 0.31, 0.5 and 1.3 0.067. Of the same maps
after interpolation this many are found: bilinear x 0.5 98 %, x 1.5 100 %; bicubic x 0.7 94 %, x 2 99.8 %;
Lanczos x 0.5 95 %, x 1.3 99 %; box x 0.5 86 %. The misses are Earth tiles: noisy land cover with few, close ids.
"""

_MIN_RAMP_PIXELS = 16  # fewer are no evidence
_MASK_SHARE = 0.05  # more masks than that are masks, not pictures of class 0 with unknown around it


CODES = (
    *("rgb", "palette-order", "mask", "range", "antialiased", "jpeg", "damaged", "size", "empty"),
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
    progress: Progress | None = None,
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
    if not list_label_files(folder):
        raise DatasetError(
            f"{folder}: holds no label maps, and is no {preset} data set",
            hint="give a folder of PNG label maps, or a data set's root and its --preset",
        )
    flat = DataConfig.for_preset("custom", labels_dir=folder, images_dir=images_dir, instances_dir=instances_dir)
    return lint_pairing(pair_files(flat, "train"), labels, root=folder, progress=progress, workers=workers)


def lint_pairing(
    pairing: Pairing,
    labels: LabelSpec,
    *,
    root: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> LintReport:
    """Check every label map of a pairing, with its photo and instance map; one image a thread is in memory."""
    lone = [Sample(path.stem, path) for path in pairing.unpaired_labels]
    samples = sorted([*pairing.samples, *lone], key=lambda sample: sample.label)
    findings: list[Finding] = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(lambda sample: check_sample(sample, labels), samples), start=1):
            findings += found
            if progress:
                progress(done, len(samples))
    findings = _masks_judged_together(findings, labels, len(samples))
    findings += [Finding(found.path, found.code, Severity.ERROR, found.message) for found in pairing.problems]
    return LintReport(root, tuple(sample.label for sample in samples), tuple(findings))


def fix_labels(
    report: LintReport, out: Path, labels: LabelSpec, *, progress: Progress | None = None
) -> list[FixResult]:
    """Make a copy of the report's label maps under `out`: good files unchanged, fixable ones converted to PNG.

    Names relative to the report's root are kept. What cannot be fixed is refused and not copied. `out` must be new or
    empty, so a source is never overwritten. Raises ConfigError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--fix: {out} exists and is not empty", hint="name a folder that does not exist yet")
    results = []
    for done, path in enumerate(report.files, start=1):
        results.append(_fixed(path, report, out, labels))
        if progress:
            progress(done, len(report.files))
    return results


def _fixed(path: Path, report: LintReport, out: Path, labels: LabelSpec) -> FixResult:
    target = out / path.relative_to(report.root)
    # Pairing is not a fault of the file: a label map without a photo is copied, two of one stem are not.
    own = [found for found in report.errors if found.path == path and not found.code.startswith("missing-")]
    if not own:
        return copy_file(path, target)
    hopeless = [found for found in own if not found.fixable]
    if hopeless:
        return FixResult(path, None, FixAction.REFUSED, f"{hopeless[0].code}: {hopeless[0].message}")
    return fix_file(path, target.with_suffix(".png"), labels, is_mask=any(found.code == "mask" for found in own))


def check_sample(sample: Sample, labels: LabelSpec) -> list[Finding]:
    """All that is wrong with a label map and the files that belong to it."""
    try:
        findings = list(check_label_file(sample.label, labels))
        size = image_size(sample.label)
    except LabelMapError as error:
        findings, size = [_damaged(sample.label, error)], None
    for what, path in (("photo", sample.photo), ("instance map", sample.instance)):
        if path is None:
            continue
        try:
            other = _photo_size(path) if what == "photo" else read_instance_map(path).shape
        except LabelMapError as error:
            findings.append(_damaged(path, error))
            continue
        if size is not None and other != size:
            message = f"{size[1]} x {size[0]} pixels, but its {what} {path.name} has {other[1]} x {other[0]}"
            findings.append(Finding(sample.label, "size", Severity.ERROR, message))
    return findings


def check_label_file(path: Path, labels: LabelSpec) -> Iterator[Finding]:
    """All that is wrong with one label map by itself. Raises LabelMapError where it cannot be decoded."""
    with opened(path, "label map") as image:
        mode, is_jpeg, colors = image.mode, image.format == "JPEG", image.getpalette()
        is_color = mode not in ("1", "L", "P") and not mode.startswith("I")
        pixels = np.array(image.convert("RGB") if is_color else image)
    if is_jpeg:
        # Not fixable, colours neither: of colour-coded maps as JPEG of quality 75 the nearest palette colour gave
        # back 43 % (Cityscapes) to 98 % (facades) of the ids.
        message = "a JPEG: lossy compression turns ids and colours into others along all borders; save it as PNG"
        yield Finding(path, "jpeg", Severity.ERROR, message)
    elif is_color:
        yield from _check_colors(path, pixels, labels, mode)
    elif mode == "P" and (moved := reordered_palette(pixels, colors, labels)):
        index, label_id = next((index, label_id) for index, label_id in moved.items() if index != label_id)
        message = (
            f"the palette has the label set's colours at other indices: index {index} has the colour of id {label_id}"
            f" ({labels.name_of(label_id)}), yet files are read by index"
        )
        yield Finding(path, "palette-order", Severity.ERROR, message, fixable=True)
    else:
        yield from _check_ids(path, pixels.astype(np.int32), labels)


def _check_colors(path: Path, rgb: NDArray[np.uint8], labels: LabelSpec, mode: str) -> Iterator[Finding]:
    if is_grey_ids(rgb, labels):
        message = f"greyscale stored as {mode}: needed is one channel"
        yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
        yield from _check_ids(path, rgb[..., 0].astype(np.int32), labels)
        return
    match = match_colors(rgb, labels)
    if not match.is_usable:
        message = f"a {mode} image that is no label map in this palette: {match.exact:.1%} of its pixels match"
        yield Finding(path, "rgb", Severity.ERROR, message)
        return
    message = f"colours instead of ids (mode {mode}); {match.exact:.1%} of the pixels have a colour of the palette"
    yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
    if match.exact < 1:
        message = f"{1 - match.exact:.1%} of the pixels have mixed colours: antialiased edges; they take the nearest"
        yield Finding(path, "antialiased", Severity.WARNING, message, fixable=True)


def _check_ids(path: Path, ids: NDArray[np.int32], labels: LabelSpec) -> Iterator[Finding]:
    values = {int(value) for value in np.unique(ids)}
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


def _photo_size(path: Path) -> tuple[int, int]:
    """A photo's size after decoding it, at an eighth of its size where it is a JPEG: damage is found all the same."""
    with opened(path, "photo") as image:
        size = image.height, image.width
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()
        return size


def _damaged(path: Path, error: LabelMapError) -> Finding:
    return Finding(path, "damaged", Severity.ERROR, error.message.removeprefix(f"{path}: "))
