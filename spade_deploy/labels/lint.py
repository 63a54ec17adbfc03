"""Find what is wrong with a folder of label maps, before a network sees them.

An error would train or infer wrongly, or not at all; a warning is worth a look. `lint_file.py` checks a single file,
and `fix.py` makes a copy in which files are repaired as far as possible.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from spade_deploy.errors import DatasetError, NotFoundError
from spade_deploy.labels.findings import Finding, LintReport, Severity
from spade_deploy.labels.kinds import train_ids_in
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.lint_file import check_sample
from spade_deploy.labels.nested import images_inside
from spade_deploy.labels.pairs import Pairing, Sample, has_layout, merged, pair_files, pair_flat
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import LabelSpec

_ENOUGH_TO_JUDGE = 3
_MASK_SHARE = 0.05  # if there are more, they are masks, not maps of class 0 and unknown pixels


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
    pairing = folder_pairing(folder, preset, images_dir, instances_dir)
    return lint_pairing(pairing, labels, root=folder, progress=progress, workers=workers)


def folder_pairing(
    folder: Path, preset: str = "custom", images_dir: Path | None = None, instances_dir: Path | None = None
) -> Pairing:
    """The label maps that `lint_folder` checks, with the files beside them. Raises as it does."""
    for path in (folder, images_dir, instances_dir):
        if path is not None and not path.is_dir():
            raise NotFoundError(f"{path}: there is no such folder")
    if images_dir is None and instances_dir is None:
        config = DataConfig.for_preset(preset, root=folder)
        if has_layout(config):
            return merged([pair_files(config, split) for split in config.splits])
    pairing = pair_flat(folder, images_dir, instances_dir, preset)
    if not (pairing.samples or pairing.problems):
        if preset == "cityscapes" and (other := train_ids_in(folder)) is not None:
            raise DatasetError(f"{folder}: holds train ids (0..18), such as {other.name}, and no label ids (0..33)")
        raise _no_label_maps(folder, preset)
    return pairing


def _no_label_maps(folder: Path, preset: str) -> DatasetError:
    hint = "give a folder of PNG label maps, or a data set's root and its `preset`"
    inside = images_inside(folder)
    if inside is None:
        return DatasetError(f"{folder}: holds no label maps, and is no {preset} data set", hint=hint)
    return DatasetError(
        f"{folder}: holds no label maps, and is no {preset} data set; the folders in it hold {inside.count} images,"
        f" such as {inside.first}",
        hint="give the folder of the label maps, or a data set's root and its `preset`; for label maps in several"
        " folders also `images`, with the photos in folders of the same names",
    )


def samples_to_check(pairing: Pairing) -> list[Sample]:
    """Every label map of a pairing, those without a partner included, in the order of their paths."""
    others = {problem.path for problem in pairing.problems if problem.code in ("photo", "not-a-file")}
    lone = [Sample(path.stem, path) for path in pairing.unpaired_labels if path not in others]
    return sorted([*pairing.samples, *lone], key=lambda sample: sample.label)


def lint_pairing(
    pairing: Pairing,
    labels: LabelSpec,
    *,
    root: Path,
    progress: Progress = SILENT,
    workers: int | None = None,
) -> LintReport:
    """Check every label map of a pairing, with its photo and instance map; one image a thread is in memory."""
    samples = samples_to_check(pairing)
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
    findings += [Finding(one.path, one.code, Severity.WARNING, one.message) for one in pairing.nested]
    return LintReport(root, tuple(sample.label for sample in samples), tuple(findings))


def without_labels(report: LintReport) -> LintReport:
    """A report of files whose labels are not known: nothing is said of ids, or of how well colours match a palette."""
    message = "colours instead of ids: which class each colour stands for has to be said; or is it a photo?"
    return replace(
        report,
        findings=tuple(
            replace(found, message=message, fixable=False) if found.code == "rgb" else found
            for found in report.findings
            if found.code not in ("antialiased", "range", "mask")
        ),
    )


def _train_ids_judged_together(findings: list[Finding], count: int) -> list[Finding]:
    """Judge the findings of train ids: if none of several maps has an id above 18, they are train ids, not odd maps."""
    seem = sum(found.code == "train-ids" for found in findings)
    if count < _ENOUGH_TO_JUDGE or seem < count:
        return findings
    return [replace(found, severity=Severity.ERROR) if found.code == "train-ids" else found for found in findings]


def _masks_judged_together(findings: list[Finding], labels: LabelSpec, count: int) -> list[Finding]:
    """Judge the findings of masks: one map of class 0 and unknown pixels may be right, several of many are masks."""
    masks = {found.path for found in findings if found.code == "mask" and found.severity is Severity.WARNING}
    if len(masks) <= count * _MASK_SHARE:
        return findings
    can_fix = labels.num_labels > 1  # else class 1, which 255 would become, is that of unknown pixels
    message = (
        f"a mask, only 0 and 255, as {len(masks)} of {count} files: 255 would be read as unknown"
        f" (if it does mean unknown and 0 is {labels.name_of(0)}: `ignore` mask"
        + (")" if can_fix else "; if it is a class: `num_labels` 2)")
    )
    return [
        replace(found, severity=Severity.ERROR, message=message, fixable=can_fix) if found.code == "mask" else found
        for found in findings
    ]
