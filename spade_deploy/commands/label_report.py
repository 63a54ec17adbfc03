"""What `spade check-labels` says: the ids that occur, the findings in groups, the next command; as text or as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spade_deploy.commands.console import line, stdout, styled
from spade_deploy.commands.flags import in_flags
from spade_deploy.printable import one_line

if TYPE_CHECKING:
    from spade_deploy.labels.check_request import CheckLabelsRequest
    from spade_deploy.labels.findings import LintReport
    from spade_deploy.labels.groups import Group
    from spade_deploy.labels.survey import Survey
    from spade_deploy.spec import LabelSpec

SHOWN_FILES = 3
"""How many files of a group are named."""
SHOWN_IDS = 60
"""How many ids are listed; the JSON has all."""
STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


def label_flags(asked: CheckLabelsRequest, labels: LabelSpec) -> list[str]:
    """The options that say what the labels are, as this command and `spade train` take them."""
    if asked.preset is not None:
        return ["--preset", asked.preset]
    flags = ["--num-labels", str(labels.num_labels)]
    if asked.classes is not None:
        flags = ["--classes", str(asked.classes), *(flags if asked.num_labels is not None else [])]
    if labels.ignore_id is not None:
        return [*flags, "--ignore-id", str(labels.ignore_id)]
    return [*flags, "--dontcare"] if labels.has_dontcare else flags


def check_command(asked: CheckLabelsRequest, labels: LabelSpec, folder: Path, *, fix: Path | None = None) -> str:
    """The command that checks `folder` in the same way, and perhaps writes a corrected copy."""
    parts = ["spade", "check-labels", str(folder), *label_flags(asked, labels)]
    for name in ("images", "instances", "palette"):
        if (path := getattr(asked, name)) is not None:
            parts += [f"--{name}", str(path)]
    for code in asked.ignore:
        parts += ["--ignore", code]
    return shlex.join([*parts, *(["--fix", str(fix)] if fix is not None else [])])


def train_command(asked: CheckLabelsRequest, labels: LabelSpec, folder: Path) -> str | None:
    """The command that trains on the checked files; None if it is not known where the photos are."""
    from spade_deploy.labels.layouts import DataConfig
    from spade_deploy.labels.pairs import has_layout

    flags = label_flags(asked, labels)
    if asked.images is not None:
        place = ["--labels", str(folder), "--images", str(asked.images)]
        place += ["--instances", str(asked.instances)] if asked.instances is not None else []
        return None if asked.preset else shlex.join(["spade", "train", *place, *flags])
    if has_layout(DataConfig.for_preset(asked.preset or "custom", root=folder)):
        return shlex.join(["spade", "train", "--data", str(folder), *flags])
    return None


def new_folder(folder: Path) -> Path:
    """A folder beside `folder` that does not exist yet, for a corrected copy."""
    plain = folder.resolve() if folder.name in ("", "..") else folder
    candidates = [plain.with_name(f"{plain.name}-fixed{n}") for n in ("", *(f"-{n}" for n in range(2, 1000)))]
    return next((path for path in candidates if not path.exists()), candidates[0])


def print_survey(found: Survey, asked: CheckLabelsRequest, labels: LabelSpec | None) -> None:
    """Print the ids that occur, and the options that they suggest."""
    from spade_deploy.pages.render import percent

    out = stdout()
    out.print(f"{len(found.ids)} ids in {found.read} of {found.files} files:")
    for entry in found.ids[:SHOWN_IDS]:
        name = f"  {labels.names[entry.value]}" if labels and entry.value < len(labels.names) else ""
        out.print(f"  {entry.value:>5}  {percent(entry.share):>8}  in {entry.files} files{name}")
    if len(found.ids) > SHOWN_IDS:
        out.print(f"  ... and {len(found.ids) - SHOWN_IDS} more, which --json lists")
    if found.missing:
        shown = ", ".join(map(str, found.missing[:10])) + (", ..." if len(found.missing) > 10 else "")
        out.print(f"  no pixel has {shown}")
    if labels is None:
        return
    out.print(line("options that fit: ", styled(shlex.join(label_flags(asked, labels)), "bold")))
    for text in alternatives(found, asked):
        out.print(f"              or: {text}")


def why_no_labels(found: Survey) -> str:
    """Why no options fit, and what to do."""
    if found.ids:
        return f"the highest id, {found.ids[-1].value}, is too high for a class: are these instance maps?"
    return "no file holds ids: name the classes and their colours with --classes FILE"


def alternatives(found: Survey, asked: CheckLabelsRequest) -> list[str]:
    """Other options that the ids may stand for, each with its condition."""
    if found.are_masks and not asked.has_dontcare and asked.ignore_id is None:
        return ["--num-labels 1 --dontcare   if 255 means pixels of no class (void)"]
    void = found.void_or_class
    if void is None or asked.ignore_id is not None:
        return []
    value, count = void
    return [f"--num-labels {count} --ignore-id {value}   if {value} means pixels of no class (void)"]


def print_groups(groups: Sequence[Group]) -> None:
    """Print a line for each group, and below it the first of its files."""
    out = stdout()
    for group in groups:
        text = in_flags(group.message) + (f": {in_flags(group.hint)}" if group.hint else "")
        how = "  (--fix converts)" if group.fixable else ""
        out.print(line(styled(f"{group.severity:<7}", STYLES[group.severity]), f" {group.code}: {text}{how}"))
        names = ", ".join(one_line(path.name) for path in group.files[:SHOWN_FILES])
        left = len(group.files) - SHOWN_FILES
        out.print(f"          {names}" + (f" and {left} more" if left > 0 else ""))


def counted(found: LintReport, groups: Sequence[Group]) -> str:
    """What was checked and found, in a line."""
    parts = []
    for severity in STYLES:
        of_it = [group for group in groups if group.severity == severity]
        if of_it:
            files = len({path for group in of_it for path in group.files})
            plural = "s" if len(of_it) > 1 else ""
            parts.append(f"{len(of_it)} {severity}{plural} in {files} file{'s' if files > 1 else ''}")
    return f"checked {len(found.files)} label maps: {', '.join(parts) or 'nothing to report'}"


def as_json(
    asked: CheckLabelsRequest,
    found: LintReport,
    groups: Sequence[Group],
    survey: Survey,
    labels: LabelSpec | None,
) -> dict[str, Any]:
    """The whole report."""
    return {
        "folder": str(asked.folder),
        "checked": len(found.files),
        "labels": None if labels is None else labels.to_json(),
        "options": [] if labels is None else label_flags(asked, labels),
        "alternatives": alternatives(survey, asked) if asked.num_labels is None and labels is not None else [],
        "ids": [{"id": entry.value, "share": entry.share, "files": entry.files} for entry in survey.ids],
        "files_with_ids": survey.read,
        "groups": [
            {
                "code": group.code,
                "severity": str(group.severity),
                "message": in_flags(group.message),
                "hint": in_flags(group.hint),
                "fixable": group.fixable,
                "files": [str(path) for path in group.files],
            }
            for group in groups
        ],
        "findings": [
            {
                "file": str(finding.path),
                "code": finding.code,
                "severity": str(finding.severity),
                "message": in_flags(finding.message),
                "fixable": finding.fixable,
            }
            for finding in found.findings
        ],
    }
