"""`spade check-labels`: find label maps that would train or infer wrongly, and convert what can be converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spade_deploy.commands import output
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
    """Find label maps that would train or infer wrongly; --fix converts what can be converted."""
    from spade_deploy.labels.lint import lint_folder

    labels, folder = asked.labels, asked.folder
    with count_bar() as progress:
        found = lint_folder(
            folder,
            labels,
            preset=asked.preset or "custom",
            images_dir=asked.images,
            instances_dir=asked.instances,
            progress=progress,
        ).without(asked.ignore)
    _print_findings(found)
    result = {"label_maps": len(found.files), "counts": found.counts(), "findings": found.findings}
    output.report(result)
    is_clean = not found.errors
    if asked.fix is not None:
        fixed = _fix(found, asked.fix, labels)
        output.report({**result, "fixed": fixed})
        is_clean = all(result.target is not None for result in fixed)
        which = f"--preset {asked.preset}" if asked.preset else f"--num-labels {asked.num_labels}"
        print_next(f"spade check-labels {asked.fix} {which}")
    elif any(finding.fixable for finding in found.findings):
        print_next(f"spade check-labels {folder} --fix OUT   converts what can be converted")
    if not is_clean:
        raise typer.Exit(1)


def _print_findings(found: LintReport) -> None:
    out = stdout()
    if found.findings:
        print_findings(found)
    counts = ", ".join(f"{count} {severity}s" for severity, count in found.counts().items() if count)
    out.print(f"checked {len(found.files)} label maps: {counts or 'nothing to report'}")


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
