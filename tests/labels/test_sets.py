"""The published lists: their lengths, known anchors, and that they fit the released models."""

from __future__ import annotations

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.labels.sets import LABEL_SETS, label_set

# Segmap channels of the released models, and of the two data sets that have none.
CHANNELS = {"coco": 184, "ade20k": 151, "cityscapes": 36, "facades": 13, "earth": 17}

ANCHORS = {
    "coco": {0: "person", 15: "bird", 16: "cat", 71: "tv", 91: "banner", 123: "grass", 156: "sky-other", 168: "tree",
             181: "wood", 182: "unknown"},
    "ade20k": {0: "unknown/other", 1: "wall", 3: "sky", 5: "tree", 13: "person", 21: "car", 150: "flag"},
    "cityscapes": {0: "unlabeled", 7: "road", 11: "building", 23: "sky", 24: "person", 26: "car", 33: "bicycle",
                   34: "license plate"},
    "facades": {0: "unknown", 1: "background", 2: "facade", 3: "window", 4: "door", 12: "shop"},
    "earth": {0: "water", 2: "evergreen broadleaf forest", 13: "urban", 15: "snow and ice", 16: "barren"},
}  # fmt: skip

COLORS = {
    "ade20k": {0: (0, 0, 0), 1: (120, 120, 120), 3: (6, 230, 230), 150: (92, 0, 255)},
    "cityscapes": {0: (0, 0, 0), 7: (128, 64, 128), 23: (70, 130, 180), 26: (0, 0, 142), 33: (119, 11, 32)},
    "facades": {0: (0, 0, 0), 1: (0, 0, 170), 2: (0, 0, 255), 12: (170, 0, 0)},
    "earth": {0: (20, 60, 140), 15: (240, 245, 255)},
}


@pytest.mark.parametrize("name", LABEL_SETS)
def test_channels_names_and_anchors(name: str) -> None:
    labels = label_set(name)
    assert labels.num_channels == CHANNELS[name]
    assert len(labels.names) == labels.num_ids
    assert {label_id: labels.name_of(label_id) for label_id in ANCHORS[name]} == ANCHORS[name]
    assert all(entry == entry.strip() and entry for entry in labels.names)


@pytest.mark.parametrize("name", sorted(COLORS))
def test_palettes(name: str) -> None:
    palette = label_set(name).palette
    assert {label_id: palette[label_id] for label_id in COLORS[name]} == COLORS[name]


def test_names_are_distinct_where_the_data_set_says_so() -> None:
    for name in ("coco", "cityscapes", "facades", "earth"):
        names = label_set(name).names
        assert len(set(names)) == len(names)


def test_what_255_becomes() -> None:
    assert {name: label_set(name).unknown_id for name in LABEL_SETS} == {
        "earth": None, "coco": 182, "ade20k": 150, "cityscapes": None, "facades": None,
    }  # fmt: skip


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'cocoa' is not one of earth, coco"):
        label_set("cocoa")
