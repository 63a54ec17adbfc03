"""The order of an evaluation: find the models, the data and the judges; look at the real photos; judge each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spade_deploy.dataset_files import DataConfig
from spade_deploy.engines.runtime import Backend
from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.evaluation.data import SampleSet, described, evenly, has_one_set, held_out_split, open_set
from spade_deploy.evaluation.measure import (
    STYLED_SAMPLES,
    Judges,
    Kept,
    Progress,
    Reality,
    measure_floor,
    measure_model,
    measure_reality,
)
from spade_deploy.evaluation.models import Model, find_models, open_images
from spade_deploy.evaluation.result import EvalResult, Row, Strip, StyleStrip
from spade_deploy.label_map import Size
from spade_deploy.label_sets import LABEL_SETS, label_set
from spade_deploy.metrics import OnnxExtractor, OnnxSegmenter
from spade_deploy.metrics.onnx_images import number_triple
from spade_deploy.spec import LabelSpec, parse_size

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class DataFlags:
    """Which data, where flags say so; None is what the first model was trained on."""

    preset: str | None = None
    root: Path | None = None
    labels: Path | None = None
    images: Path | None = None
    instances: Path | None = None
    num_labels: int | None = None
    has_dontcare: bool | None = None
    split: str | None = None
    size: Size | None = None


@dataclass(frozen=True)
class EvalRequest:
    """What was asked for.

    models: runs, checkpoints, artifacts, folders of images; none is the newest run. samples: at most so many, evenly
    spaced. extractor_facts: mean, std, size, output, as in the JSON beside an extractor. styles: images of one label
    map that diversity compares, 0 for none. pictures: samples that the page shows.
    """

    models: tuple[Path, ...] = ()
    data: DataFlags = field(default_factory=DataFlags)
    samples: int | None = None
    extractor: Path | None = None
    extractor_facts: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Path | None = None
    train_segmenter: bool = False
    segmenter_steps: int | None = None
    styles: int = 0
    backend: Backend = Backend.AUTO
    batch_size: int = 4
    seed: int = 0
    pictures: int = 8

    def __post_init__(self) -> None:
        if self.segmenter is not None and self.train_segmenter:
            raise ConfigError(f"--segmenter {self.segmenter} contradicts --train-segmenter; give one of them")
        if self.segmenter_steps is not None and not self.train_segmenter:
            raise ConfigError(f"--segmenter-steps {self.segmenter_steps}: is for --train-segmenter alone")
        if self.extractor is None and any(value is not None for value in self.extractor_facts.values()):
            name = next(name for name, value in self.extractor_facts.items() if value is not None)
            raise ConfigError(f"--extractor-{name}: is for --extractor alone")
        if self.styles == 1 or not 0 <= self.styles <= 100:
            raise ConfigError(f"--styles: {self.styles} is not 0 or from 2 to 100: a single style has no diversity")
        if self.styles and self.extractor is None:
            raise ConfigError(
                f"--styles {self.styles}: diversity is a distance of features", hint="give --extractor FILE.onnx"
            )
        for flag, value, least in (
            ("--samples", self.samples, 2),
            ("--batch-size", self.batch_size, 1),
            ("--pictures", self.pictures, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{flag}: {value} is less than {least}")


def request_from_flags(
    models: Sequence[Path], data: DataFlags, extractor_flags: Mapping[str, str | None], **rest: Any
) -> EvalRequest:
    """What was typed; extractor_flags: the texts of --extractor-mean, -std, -size and -output. Raises ConfigError."""
    facts: dict[str, Any] = dict(extractor_flags)
    for name in ("mean", "std"):
        if (text := extractor_flags.get(name)) is not None:
            facts[name] = number_triple(text, f"--extractor-{name}")
    if (text := extractor_flags.get("size")) is not None:
        facts["size"] = list(parse_size(text))
    return EvalRequest(tuple(models), data, extractor_facts=facts, **rest)


def evaluate(
    request: EvalRequest,
    *,
    runs_dir: Path = Path("runs"),
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Progress = lambda *_: None,
) -> EvalResult:
    """Judge every model on the same held-out samples. What a sample's files do wrong is in the result's skipped.

    Raises ConfigError, NotFoundError, DatasetError, and what loading a model, an extractor or a segmenter raises.
    """
    models = find_models(request.models, runs_dir)
    config, size, labels = _data(request.data, models)
    split = request.data.split or held_out_split(config)
    samples = open_set(config, split, labels, size)
    notes = [*_data_notes(config, split, samples, models)]
    extractor = OnnxExtractor(request.extractor, request.extractor_facts) if request.extractor else None
    segmenter, more = _segmenter(request, config, split, labels, runs_dir, on_step, on_progress)
    judges = Judges(extractor, segmenter, labels.num_labels, request.seed, request.batch_size)
    on_step(f"{described(config)}, {samples.name}: reading the real photos")
    reality = measure_reality(judges, samples, evenly(len(samples), request.samples), on_progress)
    references = [reality.row] if segmenter is not None else []
    floor, why = _floor(judges, reality, config, split, labels, size, on_progress)
    references += [floor] if floor is not None else []
    rows, strips, style_strips = _judge_all(request, judges, reality, models, size, on_step, on_progress)
    notes += [*more, *why, *_notes(request, rows, models, judges)]
    result = EvalResult(
        rows=tuple(rows),
        references=tuple(references),
        labels=labels,
        names=_names(extractor, segmenter),
        settings=_settings(request, config, split, size, extractor, segmenter),
        samples=len(reality.chosen),
        skipped=reality.skipped,
        notes=tuple(notes),
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
    on_step: Callable[[str], None],
    on_progress: Progress,
) -> tuple[list[Row], tuple[Strip, ...], tuple[StyleStrip, ...]]:
    shown = [reality.chosen[place] for place in evenly(len(reality.chosen), request.pictures)]
    rows, kept = [], dict[str, Kept]()
    for model in models:
        kept[model.name] = Kept(frozenset(shown))
        with open_images(model, size, request.backend) as images:
            on_step(f"{model.name}: {images.runtime}")
            rows.append(measure_model(judges, reality, model, images, request.styles, kept[model.name], on_progress))
    strips = []
    for index in shown:
        sample = reality.samples.load(index)
        images_by_name = {name: found.images[index] for name, found in kept.items() if index in found.images}
        strips.append(Strip(sample.stem, sample.label, images_by_name, sample.photo))
    stem = reality.samples.stem(reality.chosen[0])
    styled = tuple(StyleStrip(name, stem, found.styles) for name, found in kept.items() if found.styles)
    return rows, tuple(strips), styled


def _data(flags: DataFlags, models: Sequence[Model]) -> tuple[DataConfig, Size, LabelSpec]:
    """The data set, the size and the labels that all models are judged on. Raises ConfigError."""
    specs = [(model, model.spec) for model in models if model.spec is not None]
    trained_on = next((model.data for model in models if model.data is not None), None)
    sizes = {(spec.height, spec.width): model.name for model, spec in specs}
    if flags.size is None and len(sizes) > 1:
        told = ", ".join(f"{name} {size[0]} x {size[1]}" for size, name in sizes.items())
        raise ConfigError(f"the models make images of different sizes: {told}", hint="--size HEIGHTxWIDTH is for all")
    size = flags.size or next(iter(sizes), None)
    config = _config(flags, trained_on, size)
    size = size or config.crop_size
    for model in models:
        model.check_size(size)
    config = config if config.crop_size == size else replace(config, crop_size=size, load_size=size)
    first = specs[0][1].labels if specs else _labels(flags, config)
    for model, spec in specs[1:]:
        labels = spec.labels
        if (labels.num_labels, labels.has_dontcare) != (first.num_labels, first.has_dontcare):
            raise ConfigError(
                f"{model.name} has {labels.num_labels} labels{' and dontcare' * labels.has_dontcare},"
                f" {specs[0][0].name} {first.num_labels}{' and dontcare' * first.has_dontcare}: they cannot be compared"
            )
    has_edges = any(spec.labels.has_edges for _, spec in specs)
    return config, size, replace(first, has_edges=has_edges)


def _config(flags: DataFlags, trained_on: DataConfig | None, size: Size | None) -> DataConfig:
    folders = {"labels_dir": flags.labels, "images_dir": flags.images, "instances_dir": flags.instances}
    given = {name: folder for name, folder in folders.items() if folder is not None}
    if given:
        if flags.preset not in (None, "custom"):
            raise ConfigError(f"--labels: contradicts --preset {flags.preset}", hint="leave --preset out")
        if flags.labels is None or flags.images is None:
            raise ConfigError("--labels and --images belong together: what was asked for, and the real photos of it")
        return DataConfig.for_preset("custom", crop_size=size or flags.size, **given)
    if flags.preset is not None:
        return DataConfig.for_preset(flags.preset, crop_size=size or flags.size, root=flags.root)
    if flags.root is not None:
        if trained_on is None or trained_on.labels_dir is not None:
            return DataConfig.for_preset("custom", crop_size=size or flags.size, root=flags.root)
        return replace(trained_on, root=flags.root)
    if trained_on is None:
        raise ConfigError(
            "which data to evaluate on is not known: no model says what it was trained on",
            hint="--labels DIR --images DIR, or --preset NAME --data DIR, or --preset earth for the embedded data",
        )
    return trained_on


def _labels(flags: DataFlags, config: DataConfig) -> LabelSpec:
    """Of folders of images alone, which say nothing of labels."""
    if flags.num_labels is not None:
        return LabelSpec(flags.num_labels, has_dontcare=bool(flags.has_dontcare))
    if config.preset in LABEL_SETS:
        return replace(label_set(config.preset), has_edges=False)
    raise ConfigError(
        "--num-labels is needed: folders of images do not say how many classes the label maps have",
        hint="`spade check-labels DIR --num-labels N` tells whether a number fits",
    )


def _segmenter(
    request: EvalRequest,
    config: DataConfig,
    split: str,
    labels: LabelSpec,
    runs_dir: Path,
    on_step: Callable[[str], None],
    on_progress: Progress,
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
    on_step(f"the segmenter of {described(config)} ({asked.steps} steps; trained once, then reused) in {folder}")
    made = training.find_or_train(
        asked,
        folder,
        device=training.default_device(),
        on_progress=lambda step, steps, loss: on_progress(f"segmenter, loss {loss:.2f}", step, steps),
    )
    notes = (*made.notes, *(("the segmenter learned from the very photos it is used on",) * has_one_set(config)))
    return OnnxSegmenter(made.path, labels), notes


def _floor(
    judges: Judges,
    reality: Reality,
    config: DataConfig,
    split: str,
    labels: LabelSpec,
    size: Size,
    on_progress: Progress,
) -> tuple[Row | None, tuple[str, ...]]:
    if judges.extractor is None:
        return None, ()
    if has_one_set(config) or split == "train":
        return None, ("there is no second set of real photos: what the distances of real photos are is not known",)
    try:
        others = open_set(config, "train", labels, size)
    except DatasetError as error:
        return None, (f"no reference row of other real photos: {error.message}",)
    row = measure_floor(judges, reality, others, on_progress)
    return (row, row.skipped) if row.frechet is not None else (None, row.skipped)


def _data_notes(config: DataConfig, split: str, samples: SampleSet, models: Sequence[Model]) -> list[str]:
    notes = []
    if split == "train":
        notes.append(f"{described(config)} was evaluated on its training samples: the figures are too good")
    for model in models:
        if model.data is not None and (model.data.preset, model.data.root, model.data.labels_dir) != (
            config.preset,
            config.root,
            config.labels_dir,
        ):
            notes.append(f"{model.name} was trained on {described(model.data)}, not on what it is judged on")
        elif model.data is not None and has_one_set(config):
            notes.append(f"{model.name} was trained on these very samples: its figures are too good")
    if samples.problems:
        shown = "; ".join(samples.problems[:SHOWN_PROBLEMS])
        more = f"; and {len(samples.problems) - SHOWN_PROBLEMS} more" * (len(samples.problems) > SHOWN_PROBLEMS)
        notes.append(f"{len(samples.problems)} files pair with nothing and are left out: {shown}{more}")
    return notes


def _notes(request: EvalRequest, rows: Sequence[Row], models: Sequence[Model], judges: Judges) -> list[str]:
    notes = list(dict.fromkeys(row.frechet.caveat for row in rows if row.frechet is not None and row.frechet.caveat))
    notes = [f"Frechet distances are {caveat}" for caveat in notes]
    counts = {row.name: row.images for row in rows}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        notes.append(f"the models have different numbers of images ({told}): Frechet distances do not compare well")
    without = [model.name for model in models if model.z_dim is None]
    if request.styles and without:
        notes.append(f"no style vector, and so no diversity: {', '.join(without)}")
    if judges.extractor is None and judges.segmenter is None:
        notes.append(
            "L1 and PSNR are weak measures: many photos fit one label map, and a blurred mean of them does best"
        )
    return notes


def _names(extractor: OnnxExtractor | None, segmenter: OnnxSegmenter | None) -> dict[str, str]:
    names = {"l1": "L1 of pixels", "psnr": "PSNR, dB"}
    if extractor is not None:
        names["frechet"] = extractor.frechet_name
        names["kernel"] = extractor.kernel_name
        names["diversity"] = f"feature diversity ({extractor.name})"
    if segmenter is not None:
        names["miou"] = f"mIoU (segmenter {segmenter.name})"
        names["accuracy"] = f"pixel accuracy (segmenter {segmenter.name})"
    return names


def _settings(
    request: EvalRequest,
    config: DataConfig,
    split: str,
    size: Size,
    extractor: OnnxExtractor | None,
    segmenter: OnnxSegmenter | None,
) -> dict[str, Any]:
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
        "segmenter": segmenter.describe() if segmenter is not None else None,
    }
