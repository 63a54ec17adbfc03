"""`spade check-labels`: find label maps that would train or infer wrongly, and convert what can be converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands import label_report, output
from spade_deploy.commands.console import line, print_next, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import CHECK, command
from spade_deploy.commands.progress import count_bar
from spade_deploy.commands.tables import print_findings
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.files.temporary import beside
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from spade_deploy.labels.check_request import CheckLabelsRequest
    from spade_deploy.labels.findings import LintReport
    from spade_deploy.labels.fix import FixResult
    from spade_deploy.spec import LabelSpec


def _requests() -> tuple[type, ...]:
    from spade_deploy.labels.check_request import CheckLabelsRequest

    return (CheckLabelsRequest,)


@command("check-labels", panel=CHECK, requests=_requests)
def check_labels(asked: CheckLabelsRequest) -> None:
    """Find label maps that would give wrong results; --fix converts those that can be converted.

    Without a number of classes it lists the ids that occur, and the options that fit them.
    """
    from spade_deploy.labels.groups import grouped
    from spade_deploy.labels.lint import folder_pairing, lint_pairing, samples_to_check, without_labels
    from spade_deploy.labels.survey import Survey, survey

    stated = asked.labels
    pairing = folder_pairing(asked.folder, asked.preset or "custom", asked.images, asked.instances)
    with count_bar() as progress:
        seen = Survey(0, 0, ())
        if stated is None or output.is_json():
            seen = survey([sample.label for sample in samples_to_check(pairing)], progress=progress)
        labels = stated or seen.suggested(has_dontcare=asked.has_dontcare, ignore_id=asked.ignore_id)
        found = lint_pairing(pairing, labels or _any_labels(), root=asked.folder, progress=progress)
    found = (found if labels else without_labels(found)).without(asked.ignore)
    groups = grouped(found, labels or _any_labels())
    report = label_report.as_json(asked, found, groups, seen, labels)
    output.report(report)
    if stated is None:
        label_report.print_survey(seen, asked, labels)
    if asked.verbose and found.findings:
        print_findings(found)
    label_report.print_groups(groups)
    stdout().print(label_report.counted(found, groups))
    if labels is None:
        stdout().print(label_report.why_no_labels(seen))
    is_clean = labels is not None and not found.errors
    if asked.fix is not None and labels is not None:
        fixed = _fix(found, asked.fix, labels)
        output.report({**report, "fixed": fixed})
        is_clean = all(result.target is not None for result in fixed)
    if (following := _next(asked, found, labels)) is not None:
        print_next(following)
    if not is_clean:
        raise typer.Exit(1)


def _any_labels() -> LabelSpec:
    """Labels to check files against that hold no ids, such as colour images: what is found is the same for any."""
    from spade_deploy.spec import LabelSpec

    return LabelSpec(1)


def _next(asked: CheckLabelsRequest, found: LintReport, labels: LabelSpec | None) -> str | None:
    """The next command; None if what is wrong has to be mended by hand, or it is not known where the photos are."""
    if labels is None:
        return None
    if asked.fix is not None:
        return label_report.check_command(asked, labels, asked.fix)
    if any(finding.fixable for finding in found.findings):
        return label_report.check_command(asked, labels, asked.folder, fix=label_report.new_folder(asked.folder))
    return None if found.errors else label_report.train_command(asked, labels, asked.folder)


def _fix(found: LintReport, target: Path, labels: LabelSpec) -> list[FixResult]:
    """Write the corrected copy, and say what became of each file that was not just copied."""
    from spade_deploy.labels.fix import FixAction, fix_labels

    with locked(target, "writing label maps", file=beside(target, LOCK)), count_bar() as progress:
        fixed = fix_labels(found, target, labels, progress=progress)
    for result in fixed:
        if result.action != FixAction.COPIED:
            stdout().print(f"  {result.path}: {result.action}: {in_flags(result.message)}")
    written = sum(result.target is not None for result in fixed)
    stdout().print(line(f"wrote {written} of {len(fixed)} label maps to ", styled(one_line(target), "bold")))
    return fixed
