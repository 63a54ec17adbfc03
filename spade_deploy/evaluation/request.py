"""The request for an evaluation, and the data set, size and labels that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spade_deploy.engines.base import Backend
from spade_deploy.errors import ConfigError
from spade_deploy.evaluation.judge_request import JUDGES, JudgeRequest
from spade_deploy.evaluation.models import Model
from spade_deploy.images.image_file import Size
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.sets import LABEL_SETS, label_set
from spade_deploy.settings import check_ranges, setting
from spade_deploy.spec import MAX_BATCH, LabelSpec, parse_size

DATA = "Data"
"""The group of these settings in `--help`; that of the judges is in `judge_request`."""


@dataclass(frozen=True)
class DataFlags:
    """The data that models are judged on; a field that is None is that of the first model's training."""

    root: Path | None = setting(
        None, help="Folder of the data set; default: that of the training.", group=DATA, flag="data"
    )
    preset: str | None = setting(None, help="Layout of the data set: earth, coco, ade20k and so on.", group=DATA)
    labels: Path | None = setting(None, help="Label maps instead of a data set.", group=DATA)
    images: Path | None = setting(None, help="Folder of the real photos, paired by stem.", group=DATA)
    instances: Path | None = setting(None, help="Instance maps of these label maps, paired by stem.", group=DATA)
    num_labels: int | None = setting(
        None, help="Number of classes, if only folders of images are compared; ids are 0..N-1.", group=DATA
    )
    has_dontcare: bool | None = setting(
        None, help="The value 255 means unknown.", group=DATA, flag="dontcare", negatable=True
    )
    split: str | None = setting(None, help="train, val or test; default: the held-out split.", group=DATA)
    size: Size | None = setting(
        None, help="HEIGHTxWIDTH to run at; default: the models' own size.", group=DATA, parse=parse_size
    )


@dataclass(frozen=True)
class EvalRequest(JudgeRequest):
    """Which models are judged, on which data, by which networks."""

    models: tuple[Path, ...] = setting(
        (),
        help="Runs, checkpoints, artifacts, earth (shipped) or folders of images to compare; default: the newest run.",
        argument=True,
    )
    data: DataFlags = field(default_factory=DataFlags)
    """The data that they are judged on."""
    samples: int | None = setting(
        None, help="Maximum number of samples, evenly spaced; default: all.", group=DATA, least=2, most=10**7
    )
    styles: int = setting(0, help="Images of one label map whose diversity is measured.", group=JUDGES)
    best: bool = setting(False, help="Use a run's best checkpoint (`best_by` of its training), not its newest.")
    backend: Backend = setting(Backend.AUTO, help="Engine that runs the models.")
    batch_size: int = setting(4, help="Batch size.", least=1, most=MAX_BATCH)
    seed: int = setting(0, help="Random seed (styles, subsets of the kernel distance).", least=0, most=2**32 - 1)
    pictures: int = setting(8, help="Number of samples on the page.", least=0, most=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.styles == 1 or not 0 <= self.styles <= 100:
            raise ConfigError(f"`styles`: {self.styles} is not 0 or from 2 to 100: a single style has no diversity")
        if self.styles and self.extractor is None and not self.fid and not self.lpips:
            raise ConfigError(
                f"`styles` {self.styles}: diversity is a distance of features",
                hint="give `extractor` FILE.onnx, or `lpips`",
            )
        check_ranges(self)


def chosen_data(flags: DataFlags, models: Sequence[Model]) -> tuple[DataConfig, Size, LabelSpec]:
    """The data set, the size and the labels that all models are judged on. Raises ConfigError."""
    specs = [(model, model.spec) for model in models if model.spec is not None]
    trained_on = next((model.data for model in models if model.data is not None), None)
    sizes = {(spec.height, spec.width): model.name for model, spec in specs}
    if flags.size is None and len(sizes) > 1:
        told = ", ".join(f"{name} {size[0]} x {size[1]}" for size, name in sizes.items())
        raise ConfigError(
            f"the models make images of different sizes: {told}",
            hint="`size` HEIGHTxWIDTH sets one size for all models",
        )
    size = flags.size or next(iter(sizes), None)
    config = _config(flags, trained_on, size)
    size = size or config.crop_size
    for model in models:
        model.check_size(size)
    config = config if config.crop_size == size else replace(config, crop_size=size, load_size=size)
    if specs and (flags.num_labels is not None or flags.has_dontcare is not None):
        name = "num_labels" if flags.num_labels is not None else "has_dontcare"
        raise ConfigError(f"`{name}`: {specs[0][0].name} says what its labels are", hint="leave it out")
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
            raise ConfigError(f"`labels`: contradicts `preset` {flags.preset}", hint="leave `preset` out")
        if flags.labels is None or flags.images is None:
            raise ConfigError("`labels` and `images` belong together: the label maps and their real photos")
        return DataConfig.for_preset("custom", crop_size=size or flags.size, **given)
    if flags.preset is not None:
        return DataConfig.for_preset(flags.preset, crop_size=size or flags.size, root=flags.root)
    if flags.root is not None:
        if trained_on is None or trained_on.labels_dir is not None:
            return DataConfig.for_preset("custom", crop_size=size or flags.size, root=flags.root)
        return replace(trained_on, root=flags.root)
    if trained_on is None:
        raise ConfigError(
            "it is not known which data to evaluate on: no model says what it was trained on",
            hint="`labels` DIR `images` DIR, or `preset` NAME `data` DIR, or `preset` earth for the embedded data",
        )
    return trained_on


def _labels(flags: DataFlags, config: DataConfig) -> LabelSpec:
    """The labels if only folders of images are judged, since these say nothing of labels."""
    if flags.num_labels is not None:
        return LabelSpec(flags.num_labels, has_dontcare=bool(flags.has_dontcare))
    if config.preset in LABEL_SETS:
        return replace(label_set(config.preset), has_edges=False)
    raise ConfigError(
        "`num_labels` is needed: folders of images do not say how many classes the label maps have",
        hint="`spade check-labels DIR --num-labels N` tells whether a number fits",
    )
