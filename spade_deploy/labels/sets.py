"""The label sets of the known data sets: names, colours and the channels their models were trained with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from spade_deploy.settings import check_one_of
from spade_deploy.spec import LabelSpec

LABEL_SETS = ("earth", "coco", "ade20k", "cityscapes", "facades")

_FILE = Path(__file__).parents[1] / "data" / "label_sets.json"


@cache
def label_set(name: str) -> LabelSpec:
    """The label spec of a data set. Raises ConfigError for an unknown name.

    coco: COCO-Stuff's 182 classes, then unknown. A label file's id k is the published category k + 1.
    ade20k: raw ids, 0 (unknown/other) to 150; id k is the k-th class of SceneParse150. The released model counts
        150 labels and one dontcare channel, so a 255 in a file would become 150, which is 'flag'.
    cityscapes: `labelIds` 0..33. License plates have the id -1 and are drawn into no label file; the released model
        has a 35th channel all the same, named after them here. No unknown id.
    facades: CMP's 12 classes from id 1 on; 0 is unknown.
    earth: the 17 classes of IGBP land cover.
    """
    check_one_of("preset", name, LABEL_SETS)
    return LabelSpec.from_json(json.loads(_FILE.read_text(encoding="utf-8"))[name])


def is_label_set(labels: LabelSpec, name: str) -> bool:
    """Whether `labels` are those of a known data set, by their number and names; colours and edges may differ."""
    known = label_set(name)
    return (labels.num_labels, labels.names) == (known.num_labels, known.names)


def preset_of(labels: LabelSpec) -> str | None:
    """The known data set whose labels these are, or None."""
    return next((name for name in LABEL_SETS if labels.names and is_label_set(labels, name)), None)
