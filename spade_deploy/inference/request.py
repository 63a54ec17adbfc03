"""The request for `infer`: which label maps, where the images go, and how the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.engines.base import parse_backend, parse_graph_choice
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.inference.places.urls import as_place, place_of
from spade_deploy.labels.files import RESULT_SUFFIXES
from spade_deploy.settings import check_one_of, check_ranges, setting
from spade_deploy.spec import MAX_BATCH, Backend, Naming, Precision, PrecisionChoice, ResizePolicy, parse_size
from spade_deploy.tuning.wish import parse_precision

PLACES = "Tables and shards"
"""The heading of these options in `--help`."""


@dataclass(frozen=True)
class InferRequest:
    """A folder of label maps (or a data set in its layout, or one file), and how images are made of it."""

    labels: Path | str = setting(
        help="Label maps: a folder, a file, a glob, a list (.txt), shards (.tar), .parquet, or a URL of these.",
        argument=True,
        parse=place_of,
    )
    out: Path | str = setting(
        help="Folder or URL for the photos; OUT/{000000..}.tar or .parquet writes shards.",
        argument=True,
        parse=place_of,
    )
    instances: Path | str | None = setting(
        None, help="Instance maps, paired by stem, for a model with an edge channel.", parse=place_of
    )
    no_instances: bool = setting(False, help="Leave the edge channel empty.")
    preset: str | None = setting(None, help="Data set whose layout LABELS has; default: that of the training.")
    precision: PrecisionChoice | Precision | str | None = setting(
        None, help="Precision; default: fp16 on a GPU, fp32 on a CPU. bf16 needs OpenVINO. fastest: see `min_psnr_db`."
    )
    min_psnr_db: float | None = setting(
        None, help="Minimum PSNR in dB against the reference, for `precision` fastest; default: 45.", flag="min-psnr"
    )
    backend: Backend | str = setting(
        Backend.AUTO, help="auto: a TensorRT engine that fits, else CUDA, else what is fastest on this CPU."
    )
    resize: ResizePolicy | str = setting(
        ResizePolicy.MODEL,
        help="model: every map is resized to the model's size, nearest. never: its own size must fit.",
    )
    size: Size | None = setting(None, help="HEIGHTxWIDTH to run at instead of the model's size.", parse=parse_size)
    batch_size: int = setting(1, help="Batch size (images per run of the graph).", least=1, most=MAX_BATCH)
    overwrite: bool = setting(False, help="Overwrite existing results.")
    seed: int | None = setting(
        None, help="Random seed of the style, for a model with styles; default: the mean style, in OASIS 0."
    )
    style_image: Path | None = setting(None, help="A photo whose style, or instance features, are taken.")
    image_format: str = setting("png", help="png or jpg.", flag="format")
    names: Naming | str = setting(
        Naming.AUTO, help="Names of photos of globs and lists: stem; path, with folders; auto: path if stems are equal."
    )
    threads: int | None = setting(None, help="CPU threads; default: one per core.")
    label_column: str = setting("label", help="Column of the label maps in Parquet files.", group=PLACES)
    id_column: str = setting("id", help="Column of the ids in Parquet files.", group=PLACES)
    instance_column: str = setting("instance", help="Column of the instance maps in Parquet files.", group=PLACES)
    shard_size: int = setting(1000, help="Images in a shard, where OUT names shards.", least=1, group=PLACES)
    workers: int = setting(
        1, help="Processes that make images: each gets its share of the cores, or a GPU of its own.", least=1
    )
    graph: str = setting("auto", help="dense, lookup, or auto: lookup where it was measured to be faster.")

    def __post_init__(self) -> None:
        for name in ("labels", "out", "instances"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_place(place))
        check_ranges(self)
        if self.instances is not None and self.no_instances:
            raise ConfigError("`instances` and `no_instances` contradict each other", hint="leave one of them out")
        check_one_of("resize", self.resize, ResizePolicy)
        check_one_of("names", self.names, Naming)
        if self.resize == ResizePolicy.NEVER and self.size is not None:
            raise ConfigError("`size` and `resize` never contradict each other", hint="leave one of them out")
        if f".{self.image_format}" not in RESULT_SUFFIXES:
            raise ConfigError(f"`image_format`: {self.image_format!r} is not one of png, jpg")
        parse_precision(self.precision, self.min_psnr_db)
        parse_backend(str(self.backend))
        parse_graph_choice(str(self.graph))
        if self.seed is not None and self.style_image is not None:
            raise ConfigError("`seed` and `style_image` contradict each other", hint="leave one of them out")
