"""Which networks judge images: what `spade eval` and `spade export` of a student may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.metrics.onnx_images import number_triple
from spade_deploy.settings import asked_of, check_one_of, setting
from spade_deploy.spec import parse_size

JUDGES = "Judges"
"""The group of these settings in `--help`."""


def parse_mean(text: str) -> tuple[float, float, float]:
    """Read '127' or '123.7,116.3,103.5'. Raises ConfigError."""
    return number_triple(text, "`mean`")


def parse_image_size(text: str) -> list[int]:
    """'224x224' -> [224, 224], height and width in pixels. Raises ConfigError."""
    try:
        return list(parse_size(text))
    except ConfigError as error:
        raise ConfigError(f"`size`: {quoted(text)} is not HEIGHTxWIDTH in pixels, such as 224x224") from error


@dataclass(frozen=True)
class ExtractorFacts:
    """How the extractor's input is made and its output read. These facts overrule the JSON file beside it."""

    mean: tuple[float, float, float] | None = setting(
        None,
        help="Mean of its normalisation, for pixels in 0..255: 127, or R,G,B.",
        group=JUDGES,
        flag="extractor-mean",
        parse=parse_mean,
    )
    std: tuple[float, float, float] | None = setting(
        None,
        help="Standard deviation of its normalisation: (pixels - mean) / std.",
        group=JUDGES,
        flag="extractor-std",
        parse=parse_mean,
    )
    size: list[int] | None = setting(
        None,
        help="HEIGHTxWIDTH to which its images are resized.",
        group=JUDGES,
        flag="extractor-size",
        parse=parse_image_size,
    )
    output: str | None = setting(
        None, help="Name of its output, if it has several.", group=JUDGES, flag="extractor-output"
    )


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """The networks that judge images; without any, only what needs no network is measured."""

    extractor: Path | None = setting(
        None, help="ONNX network for the Frechet and kernel distances of its features.", group=JUDGES
    )
    extractor_facts: Mapping[str, Any] = asked_of(ExtractorFacts)
    """The fields of ExtractorFacts that are given."""
    fid: bool = setting(False, help="FID and KID: needs the published Inception weights; no download.", group=JUDGES)
    lpips: str | None = setting(
        None,
        help="LPIPS to the photo, alex or vgg: needs the published weights; no download.",
        group=JUDGES,
        bare="alex",
    )
    judge_weights: Path | None = setting(
        None, help="Folder of these weights; default: $TORCH_HOME/hub/checkpoints.", group=JUDGES
    )
    segmenter: Path | None = setting(
        None, help="ONNX segmenter that judges whether images show what their label maps ask for.", group=JUDGES
    )
    train_segmenter: bool = setting(
        False, help="Train a segmenter on the real photos, once per data set.", group=JUDGES
    )
    segmenter_steps: int | None = setting(None, help="Number of steps of its training.", group=JUDGES)

    def __post_init__(self) -> None:
        if self.segmenter is not None and self.train_segmenter:
            raise ConfigError(f"`segmenter` {self.segmenter} contradicts `train_segmenter`; give one of them")
        if self.segmenter_steps is not None and not self.train_segmenter:
            raise ConfigError(f"`segmenter_steps` {self.segmenter_steps}: works only with `train_segmenter`")
        if self.fid and self.extractor is not None:
            raise ConfigError(
                f"`fid` contradicts `extractor` {self.extractor}: one network makes the features",
                hint="give one of them; two evaluations make two reports, with another `out`",
            )
        if self.lpips:
            check_one_of("lpips", self.lpips, ("alex", "vgg"))
        if self.judge_weights is not None and not (self.fid or self.lpips):
            raise ConfigError(f"`judge_weights` {self.judge_weights}: works only with `fid` or `lpips`")
        if self.extractor is None and any(value is not None for value in self.extractor_facts.values()):
            name = next(name for name, value in self.extractor_facts.items() if value is not None)
            raise ConfigError(f"`extractor_{name}`: works only with `extractor`")

    @property
    def first_judge(self) -> str | None:
        """The field of the first judge that is asked for; None without any."""
        asked = ("extractor", "fid", "lpips", "segmenter", "train_segmenter")
        return next((name for name in asked if getattr(self, name)), None)
