"""Write the report's files: evaluation.json with every figure, evaluation.html with the pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spade_deploy.errors import MissingDependencyError, SpadeError
from spade_deploy.evaluation.result import EvalResult
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.verdict import Verdict
from spade_deploy.evaluation.verdict import shown as as_text
from spade_deploy.files.atomic import write_json, write_text
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.metrics import HIGHER_IS_BETTER
from spade_deploy.pages import render as pages
from spade_deploy.runs.settings import as_text as setting_text
from spade_deploy.runs.settings import differing

JSON_FILE = "evaluation.json"
HTML_FILE = "evaluation.html"

HEADINGS = {
    "frechet": "Frechet",
    "kernel": "kernel",
    "miou": "mIoU",
    "accuracy": "pixels",
    "diversity": "diversity",
    "lpips": "LPIPS",
    "l1": "L1",
    "psnr": "PSNR",
}


@dataclass(frozen=True)
class Cell:
    """A figure as the page shows it."""

    text: str
    """The figure in words."""
    is_best: bool = False
    """Whether it is the best one of its column, and leads by more than the noise."""
    is_void: bool = False
    """Whether its judge fails on real photos, so that it says nothing; it is shown in brackets."""

    @property
    def short(self) -> str:
        """The figure without its interval."""
        text = self.text.partition(" ±")[0]
        return f"({text})" if self.is_void and text else text


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    name: str
    """The name of the model."""
    is_reference: bool
    """Whether the figures are of real photos, not of a model."""
    images: int
    """How many images were measured."""
    cells: tuple[Cell, ...]
    """The figures, one for each column."""
    remark: str = ""
    """A sentence that stands in the row, such as why its judge gives no verdict."""
    architecture: str = ""
    """The architecture of the model in words; empty for photos and folders of images."""


def heading(result: EvalResult, name: str) -> str:
    """The head of a column: 'mIoU ↑', where the arrow says which way is better."""
    way = {True: " ↑", False: " ↓"}[HIGHER_IS_BETTER[name]] if name in HIGHER_IS_BETTER else ""
    return short_name(result, name) + way


def short_name(result: EvalResult, name: str) -> str:
    """The name of a figure in one word: FID only where it was measured with the published Inception weights."""
    told = result.names.get(name, "")
    return told if told in ("FID", "KID") else HEADINGS[name]


def shown(row: Row, name: str) -> str:
    """A figure for people with its 95 % interval; empty if the row has none."""
    value = row.figure(name)
    if value is None:
        return ""
    half = row.intervals.get(name)
    return as_text(name, value) if half is None else f"{as_text(name, value)} ± {as_text(name, half)}"


def lines(result: EvalResult) -> list[Line]:
    """The table: models first, then real photos."""
    columns = result.measured()
    best = {name: result.best(name) for name in columns}
    void = {name for name, verdict in result.verdicts.items() if verdict.is_judge_unfit}
    return [
        Line(
            row.name,
            row.kind == "reference",
            row.images,
            tuple(Cell(shown(row, name), best[name] == row.name, name in void) for name in columns),
            row.remark,
            row.facts.get("architecture", ""),
        )
        for row in (*result.rows, *result.references)
    ]


def verdict_lines(result: EvalResult) -> list[tuple[str, str, bool]]:
    """For each figure its short name, the sentence of its verdict, and whether there is a best model.

    Figures with the same sentence share a line.
    """
    is_told = len(result.rows) > 1
    found = {name: verdict for name, verdict in result.verdicts.items() if is_told or verdict.is_judge_unfit}
    return _grouped(result, found)


def seed_lines(result: EvalResult) -> list[tuple[str, str, list[str]]]:
    """For each group of seeds its name, its seeds, and mean and deviation of each column."""
    found = []
    for group in result.seed_groups:
        cells = [group.figures.get(name) for name in result.measured()]
        texts = [
            "" if cell is None else f"{as_text(name, cell.mean)} ± {as_text(name, cell.std)}"
            for name, cell in zip(result.measured(), cells, strict=True)
        ]
        found.append((group.name, ", ".join(map(str, group.seeds)), texts))
    return found


def seed_verdict_lines(result: EvalResult) -> list[tuple[str, str, bool]]:
    """As `verdict_lines`, of the settings whose seeds are averaged."""
    return _grouped(result, result.seed_verdicts)


def _grouped(result: EvalResult, verdicts: Mapping[str, Verdict]) -> list[tuple[str, str, bool]]:
    by_reason: dict[str, list[str]] = {}
    for name in result.measured():
        if name in verdicts:
            by_reason.setdefault(verdicts[name].reason, []).append(name)
    return [
        (", ".join(short_name(result, name) for name in names), reason, verdicts[names[0]].best is not None)
        for reason, names in by_reason.items()
    ]


def _model_settings(result: EvalResult) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The names of the models that have settings, the rows in which they differ, and the rows that all share."""
    rows = [row for row in result.rows if row.facts.get("settings")]
    tables = [row.facts["settings"] for row in rows]
    if not tables:
        return [], [], []
    names = list(dict.fromkeys(name for table in tables for name in table))
    apart = differing(tables)
    told = {name: [name, *(setting_text(table.get(name)) for table in tables)] for name in names}
    shared = [told[name][:2] for name in names if name not in apart]
    return [row.name for row in rows], [told[name] for name in apart], shared


def write_report(result: EvalResult, out: Path) -> tuple[Path, ...]:
    """Write the report's files into the folder `out` and return them.

    Without jinja2 there is no page, and the JSON stands alone. Raises SpadeError where nothing can be written.
    """
    files = [out / JSON_FILE]
    try:
        write_json(out / JSON_FILE, result.to_json())
        try:
            write_text(out / HTML_FILE, _page(result))
            files.append(out / HTML_FILE)
        except MissingDependencyError:
            (out / HTML_FILE).unlink(missing_ok=True)  # an older page beside newer figures would mislead
    except OSError as error:
        raise SpadeError(
            f"{out}: the report cannot be written ({error})", hint="choose another folder: `out`"
        ) from error
    return tuple(files)


def _page(result: EvalResult) -> str:
    columns = result.measured()
    present = {int(value) for strip in result.strips for value in np.unique(strip.label)}
    names = [row.name for row in result.rows]
    return pages.render(
        "evaluation.html.j2",
        title="Evaluation: " + " against ".join(names) if len(names) < 4 else f"Evaluation of {len(names)} models",
        lead=_lead(result),
        headings=[heading(result, name) for name in columns],
        lines=lines(result),
        verdicts=verdict_lines(result),
        seeds=seed_lines(result),
        seed_verdicts=seed_verdict_lines(result),
        model_settings=_model_settings(result),
        has_intervals=any(row.intervals for row in result.rows),
        meanings=[(short_name(result, name), result.names[name]) for name in columns],
        settings=_settings(result),
        notes=result.notes,
        skipped=result.all_skipped,
        legend=pages.legend(result.labels, effective_palette(result.labels), present),
        names=names,
        strips=_strips(result),
        style_strips=[
            (strip.name, [pages.picture(f"style {n}", image) for n, image in enumerate(strip.images)])
            for strip in result.style_strips
        ],
        classes=_classes(result),
        class_columns=[row.name for row in (*result.rows, *result.references) if row.classes],
    )


def _lead(result: EvalResult) -> str:
    count = len(result.rows)
    what = "One model" if count == 1 else f"{count} models"
    makes = "it makes of the label maps" if count == 1 else "each makes of the same label maps"
    shows = f"the images that {makes}, and the real photos."
    is_held_out = result.settings.get("held_out")
    told = " that are held out" if is_held_out else ""
    if is_held_out is False:
        told = ", not all of which were held out of training"
    elif is_held_out is None and result.settings["split"] == "train":  # an import does not say what it learned from
        told = ", which training may have seen"
    return f"{what} on {result.samples} samples{told}: {shows}"


def _settings(result: EvalResult) -> list[tuple[str, str]]:
    settings = result.settings
    data = settings["data"]
    where = data["root"] or data["labels_dir"] or "embedded"
    rows = [
        ("data", f"{data['preset']} ({where}), {settings['split']} split, {settings['height']} x {settings['width']}"),
        ("seed", str(settings["seed"])),
    ]
    if settings["extractor"] is not None:
        found = settings["extractor"]
        rows.append(("extractor", f"{found['file']}, output {found['output']}, {_facts_of_model(found)}"))
    if settings["lpips"] is not None:
        found = settings["lpips"]
        digests = ", ".join(f"{what} sha256 {found[f'{what}_sha256'][:12]}" for what in ("backbone", "linear"))
        rows.append(("LPIPS", f"{found['name']}, {digests}"))
    if settings["segmenter"] is not None:
        found = settings["segmenter"]
        trained = f", trained on {found['trained_on']}" if "trained_on" in found else ""
        rows.append(("segmenter", f"{found['file']}{trained}, {_facts_of_model(found)}"))
    rows += [(row.name, str(row.facts["runtime"])) for row in result.rows]
    return rows


def _facts_of_model(found: dict[str, object]) -> str:
    how = found["preprocessing"]
    assert isinstance(how, dict)  # describe() made it
    size = f"{how['size'][0]} x {how['size'][1]}, {how['resize']}" if how["size"] else "images at their own size"
    mean, std = (_numbers(how[name]) for name in ("mean", "std"))
    return f"sha256 {str(found['sha256'])[:12]}, {size}, (RGB - {mean}) / {std}"


def _numbers(values: Sequence[float]) -> str:
    """Numbers in words; '127' for three equal ones."""
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"


def _strips(result: EvalResult) -> list[list[pages.Picture]]:
    rows, names = [], [row.name for row in result.rows]
    for strip in result.strips:
        blank = np.full_like(strip.photo, 128)
        row = [pages.picture(f"label map {strip.stem}", colorize(strip.label, result.labels), is_ids=True)]
        row += [
            pages.picture(name if name in strip.images else f"{name}: no image", strip.images.get(name, blank))
            for name in names
        ]
        rows.append([*row, pages.picture("real photo", strip.photo)])
    return rows


def _classes(result: EvalResult) -> list[tuple[str, str, list[Cell]]]:
    """A row for each class that occurs: its name, its share, and each model's IoU, that of real photos last."""
    rows = [row for row in (*result.rows, *result.references) if row.classes]
    if not rows:
        return []
    scores = [{score.label_id: score for score in row.classes} for row in rows]
    found = []
    for label_id, score in scores[-1].items():
        values = [by_id[label_id].iou if label_id in by_id else 0.0 for by_id in scores]
        best = result.best_by_class.get(label_id)
        cells = [Cell(f"{value:.3f}", row.name == best) for row, value in zip(rows, values, strict=True)]
        found.append((result.labels.name_of(label_id), pages.percent(score.share), cells))
    return found
