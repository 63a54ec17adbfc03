"""What was asked for, checked, and the data that it comes down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spade_deploy.engines.base import Backend
from spade_deploy.errors import ConfigError
from spade_deploy.evaluation.models import Model
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.sets import LABEL_SETS, label_set
from spade_deploy.metrics.onnx_images import number_triple
from spade_deploy.spec import LabelSpec, parse_size


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

    models: runs, checkpoints, artifacts, folders of images; none is the newest run. best: of runs, the checkpoint that
    was the best while they trained. samples: at most so many, evenly
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
    best: bool = False
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
        for flag, value, least, most in (
            ("--samples", self.samples, 2, 10**7),
            ("--batch-size", self.batch_size, 1, 4096),
            ("--pictures", self.pictures, 0, 1000),
            ("--seed", self.seed, 0, 2**32 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{flag}: {value} is not in {least}..{most}")


def request_from_flags(
    models: Sequence[Path], data: DataFlags, extractor_flags: Mapping[str, str | None], **rest: Any
) -> EvalRequest:
    """What was typed; extractor_flags: the texts of --extractor-mean, -std, -size and -output. Raises ConfigError."""
    facts: dict[str, Any] = dict(extractor_flags)
    for name in ("mean", "std"):
        if (text := extractor_flags.get(name)) is not None:
            facts[name] = number_triple(text, f"extractor_{name}")
    if (text := extractor_flags.get("size")) is not None:
        try:
            facts["size"] = list(parse_size(text))
        except ConfigError as error:
            raise ConfigError(f"--extractor-size: {text!r} is not HEIGHTxWIDTH in pixels, such as 224x224") from error
    return EvalRequest(tuple(models), data, extractor_facts=facts, **rest)


def chosen_data(flags: DataFlags, models: Sequence[Model]) -> tuple[DataConfig, Size, LabelSpec]:
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
    if specs and (flags.num_labels is not None or flags.has_dontcare is not None):
        flag = "--num-labels" if flags.num_labels is not None else "--dontcare"
        raise ConfigError(f"{flag}: {specs[0][0].name} says what its labels are", hint="leave the flag out")
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
