"""How an evaluation proceeds: find the models, the data and the judges, measure the real photos, judge each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spade_deploy.errors import DatasetError
from spade_deploy.evaluation.data import SampleSet, evenly, has_one_set, held_out_split, learned_from, open_set
from spade_deploy.evaluation.judges import Extractor, Judges, Perceptual
from spade_deploy.evaluation.measure import (
    STYLED_SAMPLES,
    Kept,
    Reality,
    measure_floor,
    measure_model,
    measure_reality,
)
from spade_deploy.evaluation.models import Model, find_models, open_images
from spade_deploy.evaluation.request import EvalRequest, chosen_data
from spade_deploy.evaluation.result import EvalResult, Strip, StyleStrip
from spade_deploy.evaluation.row import Row
from spade_deploy.evaluation.scores import Drawn, Scores, draw_again
from spade_deploy.evaluation.seeds import compare_groups, group_by_seed
from spade_deploy.evaluation.taught import apart_from_segmenter
from spade_deploy.evaluation.verdict import best_by_class, verdicts
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.metrics import OnnxExtractor, OnnxSegmenter
from spade_deploy.metrics.unfit import unfit_judges
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import LabelSpec

SHOWN_PROBLEMS = 5


def evaluate(
    request: EvalRequest,
    *,
    runs_dir: Path = Path("runs"),
    progress: Progress = SILENT,
) -> EvalResult:
    """Judge every model on the same held-out samples. The result's `skipped` says which samples could not be used.

    Raises ConfigError, NotFoundError, DatasetError, and what loading a model, an extractor or a segmenter raises.
    """
    models = find_models(request.models, runs_dir, best=request.best)
    config, size, labels = chosen_data(request.data, models)
    split = request.data.split or held_out_split(config)
    taught: tuple[str, ...] = ()
    if request.train_segmenter:
        config, split, taught = apart_from_segmenter(config, split)
    samples = open_set(config, split, labels, size)
    learned = {model.name: _learned(model, config, split) for model in models if model.spec is not None}
    notes = [*taught, *_data_notes(config, split, samples, models, learned)]
    extractor, perceptual = _extractor(request), _perceptual(request)
    segmenter, more = _segmenter(request, config, split, labels, runs_dir, progress)
    judges = Judges(extractor, segmenter, labels.num_labels, request.seed, request.batch_size, perceptual)
    progress.step(f"{config.described}, {samples.name}: reading the real photos")
    reality = measure_reality(judges, samples, evenly(len(samples), request.samples), progress)
    real = reality.scores
    unfit = unfit_judges(None if real.sums is None else real.sums.sum(0), real.features)
    remark = "; ".join(f"no verdict by this judge: {why}" for why in dict.fromkeys(unfit.values()))
    references = [replace(reality.row, remark=remark)] if segmenter is not None or unfit else []
    floor, why = _floor(judges, reality, config, split, labels, size, progress)
    references += [floor] if floor is not None else []
    judged, strips, style_strips = _judge_all(request, judges, reality, models, size, progress)
    progress.step("drawing the samples again, to estimate the uncertainty of the figures")
    drawn = draw_again([scores for _, scores in judged], reality.scores, request.seed)
    rows = _with_intervals([row for row, _ in judged], drawn, remark)
    notes += [*more, *why, *_notes(request, rows, models, judges)]
    groups = group_by_seed(models, rows)
    result = EvalResult(
        rows=tuple(rows),
        references=tuple(references),
        labels=labels,
        names=_names(judges),
        settings=_settings(request, config, split, size, judges) | {"held_out": _is_held_out(learned)},
        samples=len(reality.chosen),
        skipped=reality.skipped,
        notes=tuple(notes),
        verdicts=verdicts(rows, drawn, unfit),
        seed_groups=groups,
        seed_verdicts=compare_groups(groups, unfit),
        best_by_class=best_by_class(rows, drawn, unfit),
        strips=strips,
        style_strips=style_strips,
    )
    result.require_measured()
    return result


def _judge_all(
    request: EvalRequest,
    judges: Judges,
    reality: Reality,
    models: Sequence[Model],
    size: Size,
    progress: Progress,
) -> tuple[list[tuple[Row, Scores]], tuple[Strip, ...], tuple[StyleStrip, ...]]:
    shown = [reality.chosen[place] for place in evenly(len(reality.chosen), request.pictures)]
    rows, kept = [], dict[str, Kept]()
    for model in models:
        kept[model.name] = Kept(frozenset(shown))
        with open_images(model, size, request.backend) as images:
            progress.step(f"{model.name}: {images.runtime}")
            rows.append(measure_model(judges, reality, model, images, request.styles, kept[model.name], progress))
    strips = []
    for index in shown:
        sample = reality.samples.load(index)
        images_by_name = {name: found.images[index] for name, found in kept.items() if index in found.images}
        strips.append(Strip(sample.stem, sample.label, images_by_name, sample.photo))
    stem = reality.samples.stem(reality.chosen[0])
    styled = tuple(StyleStrip(name, stem, found.styles) for name, found in kept.items() if found.styles)
    return rows, tuple(strips), styled


def _extractor(request: EvalRequest) -> Extractor | None:
    if request.fid:
        from spade_deploy.evaluation.published.inception import InceptionFeatures

        return InceptionFeatures(request.judge_weights)
    return OnnxExtractor(request.extractor, request.extractor_facts) if request.extractor is not None else None


def _perceptual(request: EvalRequest) -> Perceptual | None:
    if not request.lpips:
        return None
    from spade_deploy.evaluation.published.lpips import Lpips

    return Lpips(request.lpips, request.judge_weights)


def _with_intervals(rows: Sequence[Row], drawn: Drawn | None, remark: str) -> list[Row]:
    """The rows with the interval of each figure, and the remark on a judge that fails."""
    if drawn is None:
        return [replace(row, remark=remark) for row in rows]
    found = []
    for place, row in enumerate(rows):
        halves = {name: drawn.interval(place, name) for name in drawn.figures[place]}
        known = {name: half for name, half in halves.items() if half is not None and row.figure(name) is not None}
        found.append(replace(row, intervals=known, remark=remark))
    return found


def _segmenter(
    request: EvalRequest,
    config: DataConfig,
    split: str,
    labels: LabelSpec,
    runs_dir: Path,
    progress: Progress,
) -> tuple[OnnxSegmenter | None, tuple[str, ...]]:
    if request.segmenter is not None:
        return OnnxSegmenter(request.segmenter, labels), ()
    if not request.train_segmenter:
        return None, ()
    from spade_deploy.training import segmenter as training

    asked = training.SegmenterRequest(config, replace(labels, has_edges=False), split)
    if request.segmenter_steps is not None:
        asked = replace(asked, steps=request.segmenter_steps)
    folder = runs_dir / f"segmenter-{config.preset}"
    progress.step(f"the segmenter of {config.described} ({asked.steps} steps; trained once, then reused) in {folder}")
    made = training.find_or_train(
        asked,
        folder,
        device=training.default_device(),
        progress=progress,
    )
    return OnnxSegmenter(made.path, labels), made.notes


def _floor(
    judges: Judges,
    reality: Reality,
    config: DataConfig,
    split: str,
    labels: LabelSpec,
    size: Size,
    progress: Progress,
) -> tuple[Row | None, tuple[str, ...]]:
    if judges.extractor is None:
        return None, ()
    if has_one_set(config) or split == "train":
        return None, ("there is no second set of real photos, so the distance between real photos is not known",)
    try:
        others = open_set(config, "train", labels, size)
    except DatasetError as error:
        return None, (f"no reference row of other real photos: {error.message}",)
    row = measure_floor(judges, reality, others, progress)
    return (row, row.skipped) if row.frechet is not None else (None, row.skipped)


def _learned(model: Model, config: DataConfig, split: str) -> int | None:
    """How many of the judged samples a model was trained on; None if that is not known."""
    return None if model.data is None else learned_from(model.data, config, split, model.init)


def _is_held_out(learned: Mapping[str, int | None]) -> bool | None:
    """Whether no model was trained on a sample that it is judged on; None if that is not known of every model."""
    if any(learned.values()):
        return False
    return None if None in learned.values() or not learned else True


def _data_notes(
    config: DataConfig,
    split: str,
    samples: SampleSet,
    models: Sequence[Model],
    learned: Mapping[str, int | None],
) -> list[str]:
    notes = []
    if split == "train" and not has_one_set(config):
        notes.append(f"{config.described} was evaluated on its training samples: the figures are too good")
    for model in models:
        count = learned.get(model.name)
        if count:
            which = "these very samples" if count == len(samples) else f"{count} of these {len(samples)} samples"
            notes.append(f"{model.name} was trained on {which}: its figures are too good")
        elif model.data is not None and (model.data.preset, model.data.root, model.data.labels_dir) != (
            config.preset,
            config.root,
            config.labels_dir,
        ):
            notes.append(f"{model.name} was trained on {model.data.described}, not on the data of this evaluation")
    if samples.problems:
        shown = "; ".join(samples.problems[:SHOWN_PROBLEMS])
        more = f"; and {len(samples.problems) - SHOWN_PROBLEMS} more" * (len(samples.problems) > SHOWN_PROBLEMS)
        notes.append(f"{len(samples.problems)} files have no partner and are left out: {shown}{more}")
    return notes


def _notes(request: EvalRequest, rows: Sequence[Row], models: Sequence[Model], judges: Judges) -> list[str]:
    notes = list(dict.fromkeys(row.frechet.caveat for row in rows if row.frechet is not None and row.frechet.caveat))
    notes = [f"Frechet distances are {caveat}" for caveat in notes]
    counts = {row.name: row.images for row in rows}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        notes.append(
            f"the models have different numbers of images ({told}): their Frechet distances cannot be compared well"
        )
    without = [model.name for model in models if model.z_dim is None]
    if request.styles and without:
        notes.append(f"no style vector, and so no diversity: {'; '.join(without)}")
    if judges.extractor is None and judges.segmenter is None:
        notes.append(
            "L1 and PSNR are weak measures: many photos fit one label map, and a blurred mean of them has the"
            " best values"
        )
    return notes


def _names(judges: Judges) -> dict[str, str]:
    names = {
        "l1": "mean absolute difference from the photo, where black and white differ by 1",
        "psnr": "peak signal-to-noise ratio against the photo, in dB",
    }
    extractor, segmenter, perceptual = judges.extractor, judges.segmenter, judges.perceptual
    if extractor is not None:
        names["frechet"] = extractor.frechet_name
        names["kernel"] = extractor.kernel_name
        names["diversity"] = f"feature diversity ({extractor.name})"
    if perceptual is not None:
        names["lpips"] = f"{perceptual.name} to the photo"
        names.setdefault("diversity", f"{perceptual.name} between styles of one label map")
    if segmenter is not None:
        names["miou"] = f"mean IoU of the classes that occur (segmenter: {segmenter.name})"
        names["accuracy"] = f"share of pixels whose class is found (segmenter: {segmenter.name})"
    return names


def _settings(request: EvalRequest, config: DataConfig, split: str, size: Size, judges: Judges) -> dict[str, Any]:
    extractor, segmenter, perceptual = judges.extractor, judges.segmenter, judges.perceptual
    return {
        "data": config.to_json(),
        "split": split,
        "height": size[0],
        "width": size[1],
        "most_samples": request.samples,
        "seed": request.seed,
        "style": "of the standard normal distribution, by seed and sample; of models that have a style vector",
        "styles": request.styles,
        "styled_samples": STYLED_SAMPLES if request.styles else 0,
        "extractor": extractor.describe() if extractor is not None else None,
        "lpips": perceptual.describe() if perceptual is not None else None,
        "segmenter": segmenter.describe() if segmenter is not None else None,
    }
