"""The findings of the label linter, and its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from spade_deploy.settings import check_one_of

CODES = (
    *("rgb", "palette-order", "mask", "range", "antialiased", "jpeg", "damaged", "size", "empty"),
    *("depth", "train-ids", "transparent", "animation", "exif", "photo", "not-a-file", "nested"),
    *("missing-photo", "missing-label", "missing-instance", "duplicate-stem"),
)


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One finding about one file."""

    path: Path
    """The file."""
    code: str
    """The kind of the finding, one of CODES."""
    severity: Severity
    """How much it matters."""
    message: str
    """What was found, in a sentence."""
    fixable: bool = False
    """Whether `fix_labels` converts the file."""
    ids: tuple[int, ...] = ()
    """The values that are no ids, for the code range."""


@dataclass(frozen=True)
class LintReport:
    """What was found in a folder of label maps."""

    root: Path
    """The folder that the files' names are relative to in a fixed copy."""
    files: tuple[Path, ...]
    """The label maps that were checked."""
    findings: tuple[Finding, ...]
    """All findings, in the order of the files."""

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
            check_one_of("ignore", code, CODES)
        return replace(self, findings=tuple(found for found in self.findings if found.code not in codes))
