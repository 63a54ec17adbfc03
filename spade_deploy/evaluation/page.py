"""Write the report's files: evaluation.json with every figure, evaluation.html with the pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spade_deploy.errors import MissingDependencyError, SpadeError
from spade_deploy.evaluation.result import EvalResult, Row
from spade_deploy.files.atomic import write_json, write_text
from spade_deploy.labels.files import colorize
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.metrics import HIGHER_IS_BETTER
from spade_deploy.pages import render as pages

JSON_FILE = "evaluation.json"
HTML_FILE = "evaluation.html"

HEADINGS = {
    "frechet": "Frechet",
    "kernel": "kernel",
    "miou": "mIoU",
    "accuracy": "pixels",
    "diversity": "diversity",
    "l1": "L1",
    "psnr": "PSNR",
}


@dataclass(frozen=True)
class Cell:
    """A figure as the page shows it."""

    text: str
    """The figure in words."""
    is_best: bool = False
    """Whether it is the best one of its column."""

    @property
    def short(self) -> str:
        """The figure without its deviation."""
        return self.text.partition(" ±")[0]


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


def heading(name: str) -> str:
    """The head of a column: 'mIoU ↑', where the arrow says which way is better."""
    way = {True: " ↑", False: " ↓"}[HIGHER_IS_BETTER[name]] if name in HIGHER_IS_BETTER else ""
    return HEADINGS[name] + way


def shown(row: Row, name: str) -> str:
    """A figure for people; empty if the row has none."""
    value = row.figure(name)
    if value is None:
        return ""
    if name == "kernel" and row.kernel is not None:
        return f"{value:.4f} ± {row.kernel.std:.4f}"
    return {"frechet": f"{value:.2f}", "psnr": f"{value:.2f}", "accuracy": f"{value:.1%}"}.get(name, f"{value:.4f}")


def lines(result: EvalResult) -> list[Line]:
    """The table: models first, then real photos."""
    columns = result.measured()
    best = {name: result.best(name) for name in columns}
    return [
        Line(
            row.name,
            row.kind == "reference",
            row.images,
            tuple(Cell(shown(row, name), best[name] == row.name) for name in columns),
        )
        for row in (*result.rows, *result.references)
    ]


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
        headings=[heading(name) for name in columns],
        lines=lines(result),
        meanings=[(HEADINGS[name], result.names[name]) for name in columns],
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
    shows = "what each makes of the same label maps, and what a camera saw."
    if result.settings["split"] == "train" or result.settings.get("held_out") is False:
        return f"{what} on {result.samples} samples, not all of which were held out of training: {shows}"
    held_out = " that are held out" if result.settings.get("held_out") else ""
    return f"{what} on {result.samples} samples{held_out}: {shows}"


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
        models = values[: sum(row.kind != "reference" for row in rows)]
        top = max(models, default=0.0)
        cells = [
            Cell(f"{value:.3f}", len(models) > 1 and value == top and n < len(models)) for n, value in enumerate(values)
        ]
        found.append((result.labels.name_of(label_id), pages.percent(score.share), cells))
    return found
