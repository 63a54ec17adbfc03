"""The request for a release: the checkpoint, the precisions, the label maps that it is proved on, the upload.

Nothing here needs PyTorch, so that `spade export --help` works without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.export.int8.request import require_target
from spade_deploy.labels.pairs import require_labels
from spade_deploy.settings import check_positive, setting
from spade_deploy.spec import GraphSet, Precision

_INT8, _HUB = "int8", "Hugging Face Hub"
LICENSE_LENGTH = 60


def is_license(text: str) -> bool:
    """Whether a text may stand as the name of a licence in files for people and programs."""
    return re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9.+ -]{{0,{LICENSE_LENGTH - 1}}}", text) is not None


@dataclass(frozen=True)
class Int8Options:
    """Whether int8 graphs are made, on which label maps they are calibrated, and how good they must be."""

    wanted: bool = setting(False, help="Also write int8 graphs of a minimum quality.", flag="int8", group=_INT8)
    calibrate: Path | None = setting(
        None, help="Label maps to calibrate on; default: the training labels.", group=_INT8
    )
    calibrate_instances: Path | None = setting(
        None, help="Instance maps of these label maps, paired by stem.", group=_INT8
    )
    calibration_count: int | None = setting(
        None, help="Number of calibration maps, evenly spaced; default: 32.", group=_INT8
    )
    min_psnr_db: float | None = setting(
        None,
        help="Minimum PSNR against float32 in dB; layers stay float32 until it is reached; default: 35.",
        flag="min-psnr",
        group=_INT8,
    )

    def __post_init__(self) -> None:
        if not self.wanted:
            for name in ("calibrate", "calibrate_instances", "calibration_count", "min_psnr_db"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"`{name}`: belongs to `int8`", hint="add `int8`, or leave it out")
        if self.min_psnr_db is not None:
            require_target(self.min_psnr_db)
        check_positive("calibration_count", self.calibration_count)
        if self.calibrate_instances is not None and self.calibrate is None:
            raise ConfigError("`calibrate_instances`: needs `calibrate`, the label maps that they belong to")


@dataclass(frozen=True)
class ReleaseRequest:
    """Which checkpoint becomes an artifact, with which graphs, and where."""

    checkpoint: Path | None = setting(None, help="A run or a checkpoint; default: the newest.", argument=True)
    fp16: bool = setting(False, help="Also write graphs in half precision.")
    keep_fp32: tuple[str, ...] = setting(
        (), help="Layer to keep in float32, such as up_1; may be repeated. Layers that would overflow are always kept."
    )
    best: bool = setting(False, help="Export the run's best checkpoint (spade train --best-by), not its newest.")
    out: Path | None = setting(None, help="Folder for the artifact; default: RUN/artifact.")
    labels: Path | None = setting(None, help="Label maps to validate on and to keep as golden inputs.")
    instances: Path | None = setting(None, help="Instance maps of these label maps, paired by stem.")
    graph: GraphSet = setting(GraphSet.ALL, help="all, or dense: leave out the lookup graph, which halves the time.")
    tune: bool = setting(
        True,
        help="Measure for which label maps the lookup graph is faster; otherwise dense runs them all.",
        negatable=True,
    )
    license: str | None = setting(
        None, help="Licence of the weights, such as cc-by-4.0, for the model card and the ONNX files."
    )
    int8: Int8Options = field(default_factory=Int8Options)
    """Whether and how int8 graphs are made."""

    fp32: bool = True
    """Whether there are graphs in single precision; the command always makes them."""

    def __post_init__(self) -> None:
        require_labels(self.labels, self.instances)
        if self.keep_fp32 and not self.fp16:
            raise ConfigError("`keep_fp32`: belongs to `fp16`", hint="add `fp16`, or leave it out")
        if self.license is not None and not is_license(self.license):
            raise ConfigError(
                f"`license`: {quoted(self.license)} is not the name of a licence: up to {LICENSE_LENGTH} letters,"
                " digits, '.', '-', '+' and spaces",
                hint="an SPDX identifier is best: cc-by-4.0, apache-2.0, cc-by-nc-sa-4.0",
            )
        if not (self.fp32 or self.fp16):
            raise ConfigError("`fp32` and `fp16` are both off: an artifact needs at least one graph")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of the graphs without int8, whose graphs are made from the fp32 ones."""
        asked = ((Precision.FP32, self.fp32), (Precision.FP16, self.fp16))
        return tuple(precision for precision, is_asked in asked if is_asked)


@dataclass(frozen=True)
class HubRequest:
    """Whether and where the artifact is uploaded."""

    push_to_hub: str | None = setting(
        None,
        help="Upload the artifact to this repository of the Hugging Face Hub after it passed its validation. If an"
        " artifact is given instead of a checkpoint, nothing is exported.",
        metavar="USER/NAME",
        group=_HUB,
    )
    hub_public: bool = setting(False, help="Make a new repository public; by default it is private.", group=_HUB)

    def __post_init__(self) -> None:
        if self.hub_public and self.push_to_hub is None:
            raise ConfigError("`hub_public`: belongs to `push_to_hub`", hint="add `push_to_hub`, or leave it out")
