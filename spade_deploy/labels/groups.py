"""Put findings of one kind together: what is wrong with 367 files in the same way is one finding to a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.labels.findings import Finding, LintReport, Severity
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

_BY_NAME = "files belong together by the same name, whatever their suffixes; rename them, or leave them out"
HINTS = {
    "size": "resize the label maps to the size of their photos with nearest neighbour, or the photos to theirs",
    "missing-photo": _BY_NAME,
    "missing-label": _BY_NAME,
    "missing-instance": _BY_NAME,
    "duplicate-stem": "keep one of them",
    "damaged": "save it again as PNG, or leave it out",
    "nested": "put all files into one folder, or all into folders",
}
"""What helps against findings of a kind, where their own text does not say it."""


@dataclass(frozen=True)
class Group:
    """Findings of one kind."""

    code: str
    """Their kind, one of CODES."""
    severity: Severity
    """How much they matter."""
    message: str
    """What was found, in words that hold for all of them; of different ones the first is quoted."""
    files: tuple[Path, ...]
    """The files, in their order."""
    fixable: bool
    """Whether `fix_labels` converts them."""
    hint: str = ""
    """What may be meant, and the settings for it; empty where that is not known."""


def grouped(report: LintReport, labels: LabelSpec) -> list[Group]:
    """The findings of a report in groups: errors first, and among them the largest groups."""
    groups = [*_of_ids(report, labels)]
    kinds: dict[tuple[str, Severity, bool], list[Finding]] = {}
    for finding in report.findings:
        if not finding.ids:
            kinds.setdefault((finding.code, finding.severity, finding.fixable), []).append(finding)
    for (code, severity, fixable), found in kinds.items():
        messages = list(dict.fromkeys(finding.message for finding in found))
        message = messages[0] if len(messages) == 1 else f"such as {found[0].path.name}: {messages[0]}"
        groups.append(Group(code, severity, message, _files(found), fixable, HINTS.get(code, "")))
    order = list(Severity)
    return sorted(groups, key=lambda group: (order.index(group.severity), -len(group.files), group.code))


def _of_ids(report: LintReport, labels: LabelSpec) -> Iterable[Group]:
    """A group for each value that is no id."""
    findings = [finding for finding in report.findings if finding.ids]
    values = sorted({value for finding in findings for value in finding.ids})
    for value in values:
        found = [finding for finding in findings if value in finding.ids]
        message = f"{value} in {len(found)} of {len(report.files)} files; allowed are 0..{labels.num_ids - 1}"
        yield Group("range", found[0].severity, message, _files(found), False, _meant(value, values, labels))


def _meant(value: int, values: list[int], labels: LabelSpec) -> str:
    """What a value that is no id may mean, with the settings for it."""
    if value == UNKNOWN_VALUE:
        return "unknown pixels? `has_dontcare`"
    if value > labels.num_ids and value - 1 not in values:
        return f"pixels of no class? `ignore_id` {value}"
    if labels.names:
        return f"pixels of no class? `ignore_id` {value}"
    return f"pixels of no class? `ignore_id` {value}; a class? `num_labels` {value + 1}"


def _files(found: list[Finding]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(finding.path for finding in found))
