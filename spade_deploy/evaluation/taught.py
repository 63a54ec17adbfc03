"""Keep the photos that a segmenter learns from apart from those that it judges."""

from __future__ import annotations

from dataclasses import replace

from spade_deploy.errors import ConfigError, DatasetError
from spade_deploy.labels.holdout import hold_out
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.labels.pairs import find_samples
from spade_deploy.labels.samples import is_embedded

TAUGHT_SHARE = 0.5
"""The share of the photos that are judged, if a segmenter has to learn from the rest of the same photos."""
FEWEST = 4
"""With fewer photos there is nothing to learn from and to judge."""


def apart_from_segmenter(config: DataConfig, split: str) -> tuple[DataConfig, str, tuple[str, ...]]:
    """The data set and the split to judge on, so that the train split is left for the segmenter, and a note.

    Where the judged photos would be those that it learns from, one half of them is judged. Raises ConfigError where
    that cannot be done.
    """
    if split != "train":
        return config, split, ()
    if is_embedded(config) or config.holdout is not None or config.has_kept_samples or _has_other_split(config):
        raise ConfigError(
            "`train_segmenter` contradicts `split` train: the segmenter would judge the photos that it learned from",
            hint="leave `split` out, or give `segmenter` FILE.onnx",
        )
    stems = [sample.stem for sample in find_samples(config, "train").samples if sample.photo is not None]
    if len(stems) < FEWEST:
        raise ConfigError(
            f"`train_segmenter`: {len(stems)} photos are too few to train on some and judge the others",
            hint="give `segmenter` FILE.onnx, or leave `train_segmenter` out",
        )
    halved = replace(config, holdout=hold_out(stems, TAUGHT_SHARE))
    judged = len(find_samples(halved, "val").samples)
    note = (
        f"the segmenter learns from {len(stems) - judged} of the {len(stems)} photos, and only the other {judged} are"
        " judged: it never judges a photo that it learned from"
    )
    return halved, "val", (note,)


def _has_other_split(config: DataConfig) -> bool:
    """Whether photos outside the train split exist, so that judging the train split was a choice."""
    for split in config.splits[1:]:
        try:
            if any(sample.photo for sample in find_samples(config, split).samples):
                return True
        except DatasetError:
            continue
    return False
