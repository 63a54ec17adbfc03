"""Files of classes: every form gives the same names and colours, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spade_deploy.errors import ConfigError
from spade_deploy.labels.class_file import Classes, class_labels, read_class_file
from spade_deploy.spec import LabelSpec

NAMES = ("road", "big tree", "sky")
COLORS = ((128, 64, 128), (0, 128, 0), (70, 130, 180))
BOTH = Classes(NAMES, COLORS)
ENTRIES = [{"name": name, "color": list(color)} for name, color in zip(NAMES, COLORS, strict=True)]


def written(folder: Path, text: object, name: str) -> Path:
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lines.txt", "# CamVid\n128 64 128\troad\n\n0 128 0 big tree  # green\n70 130 180 sky\n", BOTH),
        ("class_dict.csv", "name,r,g,b\nroad,128,64,128\nbig tree,0,128,0\nsky, 70, 130, 180\n", BOTH),
        ("coco.names", "road\nbig tree\nsky\n", Classes(NAMES, ())),
        ("colors.json", [list(color) for color in COLORS], Classes((), COLORS)),
        ("names.json", list(NAMES), Classes(NAMES, ())),
        ("list.json", [[*color, name] for name, color in zip(NAMES, COLORS, strict=True)], BOTH),
        ("objects.json", ENTRIES, BOTH),
        ("ids.json", [{"id": 2 - n, **ENTRIES[2 - n]} for n in range(3)], BOTH),
        ("categories.json", {"categories": [{"id": n, **ENTRIES[n]} for n in range(3)]}, BOTH),
        ("mapping.json", dict(zip(NAMES, COLORS, strict=True)), BOTH),
        ("hex.json", dict(zip(NAMES, ("#804080", "#008000", "4682b4"), strict=True)), BOTH),
        ("by_id.json", {"0": "road", "1": "big tree", "2": "sky"}, Classes(NAMES, ())),
        ("data.yaml", "path: x\ntrain: images\nnc: 3\nnames: [road, big tree, sky]\n", Classes(NAMES, ())),
        ("new.yml", "names:\n  0: road\n  1: big tree\n  2: sky\n", Classes(NAMES, ())),
        ("upper.csv", "name,R,G,B\nroad,128,64,128\nbig tree,0,128,0\nsky,70,130,180\n", BOTH),
        ("quoted.csv", '"road","128","64","128"\n"big tree","0","128","0"\n"sky","70","130","180"\n', BOTH),
        ("hex.csv", "label,color\nroad,#804080\nbig tree,#008000\nsky,#4682b4\n", BOTH),
        ("tuple.csv", 'name;rgb\nroad;"(128, 64, 128)"\nbig tree;"0 128 0"\nsky;"70,130,180"\n', BOTH),
        ("hex.txt", "road #804080\nbig tree #008000\nsky #4682b4  # blue\n", BOTH),
        ("blanks.txt", "R G B name\n128 64 128 road\n0 128 0 big tree\n70 130 180 sky\n", BOTH),
        (
            "labelmap.txt",
            "# label:color:parts:actions\nroad:128,64,128::\nbig tree:0,128,0::\nsky:70,130,180::\n",
            BOTH,
        ),
        ("ids.csv", "id,name,r,g,b\n2,sky,70,130,180\n0,road,128,64,128\n1,big tree,0,128,0\n", BOTH),
        ("ids.txt", "2 sky 70 130 180\n0 road 128 64 128\n1 big tree 0 128 0\n", BOTH),
        ("counted.txt", "1 0 128 0 big tree\n0 128 64 128 road\n2 70 130 180 sky\n", BOTH),
        ("labels.txt", "1: big tree\n0: road\n2: sky\n", Classes(NAMES, ())),
        ("info.csv", "Idx,Ratio,Name\n1,0.2,big tree\n0,0.3,road\n2,0.1,sky\n", Classes(NAMES, ())),
        ("pandas.csv", "name\nroad\nbig tree\nsky\n", Classes(NAMES, ())),
        ("digits.txt", "0 0 0 0\n128 0 0 1\n", Classes(("0", "1"), ((0, 0, 0), (128, 0, 0)))),
        ("commas.txt", "screen, door\nroad 3\n", Classes(("screen, door", "road 3"), ())),
        ("to_id.json", {"sky": 2, "road": 0, "big tree": 1}, Classes(NAMES, ())),
        ("classes.json", {"classes": list(NAMES)}, Classes(NAMES, ())),
        ("both.yaml", f"names: [road, big tree, sky]\ncolors: {json.dumps(COLORS)}\n", BOTH),
    ],
)
def test_every_form_is_read(tmp_path: Path, name: str, text: object, expected: Classes) -> None:
    assert read_class_file(written(tmp_path, text, name)) == expected


def test_an_id_that_is_left_out_stands_for_no_class(tmp_path: Path) -> None:
    path = written(tmp_path, [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}], "coco.json")
    assert read_class_file(path).names == ("unused 0", "person", "unused 2", "car")
    path = written(tmp_path, "id,name,r,g,b\n1,void,0,0,0\n3,car,1,0,1\n", "coco.csv")
    # No class has the colour of an unused id: a black pixel is of class 1.
    assert read_class_file(path) == Classes(
        ("unused 0", "void", "unused 2", "car"), ((2, 0, 1), (0, 0, 0), (2, 0, 1), (1, 0, 1))
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "a.txt has no classes"),
        ("a.txt", "1 2 3 road\nsky\n", "line 2: this class has no colour"),
        ("a.txt", "1 2 300 road\n", "line 1: .* is not a colour"),
        ("a.json", "[1, 2]", "entry 1: 1 is no class"),
        ("a.json", "[[", "not valid JSON"),
        ("a.json", '{"names": ["a", "b"], "colors": [[1, 2, 3]]}', "2 names and 1 colours"),
        ("a.json", '[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]', "has the same id twice"),
        ("a.yaml", "nc: 3\nnames: [a, b]\n", "says nc: 3, but names 2 classes"),
        ("a.yaml", "names: !!python/object:os.system {}\n", "is not valid YAML"),
        ("a.yaml", "just a text\n", "has no list of classes"),
        ("a.txt", "1 2 3 \x07\n", "is not a name"),
        ("a.csv", "road,7\nsky,2\n", "line 1: 'road,7' is neither a name nor a name and a colour"),
        ("a.csv", "sky,0.0,0.5,1.0\n", "line 1: .* is neither a name"),
        ("a.csv", "id,name\n0,screen, door\n", "line 2: has 3 columns, and the first line has 2"),
        ("a.csv", "id,name\nx,door\n", "line 2: 'x' is not an id"),
        ("a.csv", "id,name\n1,door\n1,wall\n", "has the same id twice"),
        ("a.yaml", "names: [yes, no]\n", "entry 1: True is no class"),
        ("a.json", '{"void": -1, "road": 0}', "class 'void': -1 is not an id"),
        ("a.yaml", "speed: 3\n", "speed: 3 is not a colour"),
        ("a.yaml", "nc: 3\nepochs: 80\n", "nc: 3 is not a colour"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"`classes`: .*{said}"):
        read_class_file(written(tmp_path, text, name))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read"):
        read_class_file(tmp_path / "none.txt")


def test_the_file_says_how_many_labels_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRIES, "c.json")
    assert class_labels(path) == LabelSpec(3, names=NAMES, palette=COLORS)
    # 255 means unknown: that class is added, in a colour that no other one has.
    assert class_labels(path, has_dontcare=True) == LabelSpec(
        3, has_dontcare=True, names=(*NAMES, "unknown"), palette=(*COLORS, (0, 0, 0))
    )


def test_the_last_class_may_be_that_of_unknown_pixels(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRIES, "c.json")
    expected = LabelSpec(2, has_dontcare=True, names=NAMES, palette=COLORS)
    assert class_labels(path, 2, has_dontcare=True) == expected
    void = class_labels(path, ignore_id=2)
    assert (void.num_labels, void.names, void.unknown_id, void.ignore_id) == (2, NAMES, 2, 2)
    with pytest.raises(ConfigError, match="has 3 classes, but `num_labels` is 5"):
        class_labels(path, 5)


def test_a_void_class_in_the_middle_gives_its_name_to_unknown_pixels(tmp_path: Path) -> None:
    spec = class_labels(written(tmp_path, ENTRIES, "c.json"), ignore_id=0)
    assert (spec.num_labels, spec.names, spec.palette[-1]) == (3, (*NAMES, "road"), COLORS[0])
