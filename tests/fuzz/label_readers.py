"""Cases of label maps, instance maps, photos and palettes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from spade_deploy.images.image_file import image_size, read_photo
from spade_deploy.labels.files import read_instance_map, read_label_map
from spade_deploy.spec import LabelSpec
from tests.support.stand_in import PLAIN

from .bytes_damage import damage_bytes
from .case import Case
from .corpus import NUM_LABELS
from .image_damage import MOSTLY_IDS, damaged_image, good_png, some_ids
from .json_damage import damage_json
from .png import CHANNELS, GREY, PALETTE, RGB, SIGNATURE, Png, PngError, read_png, write_png

_LABELS = (
    LabelSpec(NUM_LABELS),
    LabelSpec(NUM_LABELS, has_dontcare=True),
    LabelSpec(150, has_dontcare=True),
    LabelSpec(300, has_dontcare=True),
)


def label_map(case: Case) -> None:
    """Read as ids, checked, corrected and inferred; ids that come out are those of a second reading."""
    labels = case.rng.choice(_LABELS)
    most = min(labels.num_ids - 1, 255)
    path = case.write("labels/a.png", damaged_image(case.rng, most, png_share=0.85, kinds=MOSTLY_IDS))
    content = path.read_bytes()
    ids = case.watch.call("read_label_map", read_label_map, path, labels)
    if ids is not None:
        _compare_ids(case, content, ids, labels)
    if case.rng.random() < 0.3:
        size = case.rng.choice(((16, 16), (1, 1), (100, 30)))
        case.watch.call("read_label_map resized", read_label_map, path, labels, size)
    if case.rng.random() < 0.4:
        flags = ["--num-labels", str(labels.num_labels), *(["--dontcare"] if labels.has_dontcare else [])]
        fixing = case.rng.random() < 0.5
        case.watch.command("check-labels", path.parent, *flags, *(["--fix", case.out / "fixed"] if fixing else []))
        for fixed in (case.out / "fixed").rglob("*.png"):
            found = case.watch.call("read_label_map of a fixed file", read_label_map, fixed, labels)
            if found is not None:
                _compare_fixed(case, content, found, labels)
    elif case.rng.random() < 0.4:
        case.watch.command("infer", path.parent, case.out / "photos", "--artifact", case.corpus.plain, "--threads", "1")


def instance_map(case: Case) -> None:
    """Object ids of up to 16 bits."""
    path = case.write(
        "instances/a.png", damaged_image(case.rng, case.rng.choice((5, 255, 40_000)), png_share=0.8, kinds=MOSTLY_IDS)
    )
    values = case.watch.call("read_instance_map", read_instance_map, path)
    if values is not None and path.read_bytes().startswith(SIGNATURE):
        png = _second_reading(case, path.read_bytes())
        if png is not None and png.color_type in (GREY, PALETTE) and not np.array_equal(values, png.samples[..., 0]):
            case.watch.fail("wrong", "instance ids differ from a second reading", _describe(png))
    if case.rng.random() < 0.3:
        labels = case.copy(case.corpus.labels / "0.png", "labels/a.png").parent
        flags = ("--num-labels", str(NUM_LABELS), "--instances", path.parent)
        case.watch.command("check-labels", labels, *flags)


def photo(case: Case) -> None:
    """As RGB pixels; as a style; beside a label map."""
    kinds = case.rng.choice((tuple(CHANNELS), (RGB,)))
    damaged = good_png(case.rng, 255, kinds) if case.rng.random() < 0.3 else damaged_image(case.rng, 255, png_share=0.4)
    path = case.write("images/a.png", damaged)
    size = case.rng.choice((None, None, (16, 16), (200, 1)))
    pixels = case.watch.call("read_photo", read_photo, path, size)
    case.watch.call("image_size", image_size, path)
    if pixels is not None and size is None and path.read_bytes().startswith(SIGNATURE):
        _compare_pixels(case, path.read_bytes(), pixels)
    which = case.rng.random()
    if which < 0.15:
        case.watch.command(
            "infer",
            case.corpus.labels,
            case.out,
            "--artifact",
            case.corpus.styled,
            "--style-image",
            path,
            "--threads",
            "1",
        )
    elif which < 0.4:
        labels = case.copy(case.corpus.labels / "0.png", "labels/a.png").parent
        case.watch.command("check-labels", labels, "--num-labels", str(NUM_LABELS), "--images", path.parent)


def palette(case: Case) -> None:
    """Colours as JSON or lines."""
    rng = case.rng
    colors = [[rng.randrange(256) for _ in range(3)] + ([f"class {n}"] if n else []) for n in range(NUM_LABELS)]
    if rng.random() < 0.5:
        path = case.write("palette.json", damage_json(rng, colors))
    else:
        path = case.write("palette.txt", _damaged_lines(rng, colors))
    labels = case.copy(case.corpus.labels / "0.png", "labels/a.png").parent
    fixing = ["--fix", case.out / "fixed"] if rng.random() < 0.3 else []
    case.watch.command("check-labels", labels, "--num-labels", str(NUM_LABELS), "--palette", path, *fixing)


def _damaged_lines(rng: random.Random, colors: list[list[object]]) -> tuple[bytes, str]:
    text = "\n".join(" ".join(map(str, color)) for color in colors) + "\n"
    odd = {
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "Windows line ends": text.replace("\n", "\r\n").encode(),
        "commas": text.replace(" ", ",").encode(),
        "a huge number": text.encode() + b"9" * 5000 + b" 1 2 x\n",
        "a name in Latin-1": text.encode() + b"1 2 3 \xe9\n",
        "control characters": text.replace("class 1", "\x1b[31mred\x07").encode(),
        "a line of 100,000 letters": text.encode() + b"x" * 100_000 + b"\n",
        "too few": b"1 2\n" + text.encode(),
        "not integers": text.replace("class 2", "1.5").encode() + b"1.5 2 3\n",
        "other digits": "\u0661 \u0662 \u0663 x\n".encode() + text.encode(),
        "out of range": b"256 -1 3 x\n" + text.encode(),
    }
    if rng.random() < 0.4:
        return damage_bytes(rng, text.encode())
    what = rng.choice(list(odd))
    return odd[what], what


def label_folder(case: Case) -> None:
    """Several maps of which some are damaged: the good ones have results, the others are told by name."""
    damaged = 0
    for number in range(4):
        if case.rng.random() < 0.5:
            content, what = damaged_image(case.rng, NUM_LABELS - 1, kinds=MOSTLY_IDS)
            case.write(f"labels/{number}.png", (content, what))
            damaged += 1
        else:
            ids = some_ids(case.rng, NUM_LABELS - 1).clip(0, NUM_LABELS - 1)
            case.write(f"labels/{number}.png", (write_png(ids[..., None], GREY, 8, interlaced=False), "good"))
    good = [path for path in (case.input / "labels").iterdir() if _is_readable(path)]
    out = case.out / "photos"
    code = case.watch.command(
        "infer", case.input / "labels", out, "--artifact", case.corpus.plain, "--threads", "1", "--batch-size", "2"
    )
    made = {path.stem for path in out.glob("*.png")} if out.is_dir() else set()
    if code is not None and made != {path.stem for path in good}:
        case.watch.fail("wrong", "infer: other results than readable maps", f"{made} of {[p.name for p in good]}")
    if code == 0 and len(good) < 4:
        case.watch.fail("wrong", "infer: exit 0 although maps failed", f"{len(good)} of 4 are readable")


def _is_readable(path: Path) -> bool:
    from spade_deploy.errors import SpadeError

    try:
        read_label_map(path, PLAIN.labels)
    except SpadeError:
        return False
    return True


def _second_reading(case: Case, content: bytes) -> Png | None:
    try:
        return read_png(content)
    except PngError as error:
        case.watch.fail("wrong", f"read although {_group(error)}", f"a second reading says: {error}")
        return None


def _group(error: PngError) -> str:
    text = str(error)
    return "".join(letter for letter in text.split(":")[0] if not letter.isdigit())[:60]


def _compare_ids(case: Case, content: bytes, ids: np.ndarray, labels: LabelSpec) -> None:
    if not content.startswith(SIGNATURE):
        return
    png = _second_reading(case, content)
    if png is None or png.color_type not in (GREY, PALETTE):
        return
    expected = _mapped(png.samples[..., 0], labels)
    if expected is None or not np.array_equal(ids, expected):
        case.watch.fail("wrong", f"ids of {_describe(png)} differ from a second reading", f"{np.unique(ids)[:20]}")


def _compare_fixed(case: Case, content: bytes, ids: np.ndarray, labels: LabelSpec) -> None:
    """A corrected copy of a file of ids has the same ids; of greys stored as colours, those greys."""
    if not content.startswith(SIGNATURE):
        return
    try:
        png = read_png(content)
    except PngError as error:
        case.watch.fail("wrong", f"fixed although {_group(error)}", str(error))
        return
    if png.color_type == PALETTE:
        return  # a palette may be read by its colours
    samples = png.samples[..., :1] if png.color_type in (GREY, 4) else png.samples[..., :3]
    if (samples != samples[..., :1]).any():
        return  # colours
    values = samples[..., 0]
    expected = _mapped(values, labels)
    is_mask = set(np.unique(values)) <= {0, 255}
    if not is_mask and (expected is None or not np.array_equal(ids, expected)):
        case.watch.fail(
            "wrong", f"--fix made other ids of {_describe(png)}", f"{np.unique(values)} -> {np.unique(ids)}"
        )


def _mapped(values: np.ndarray, labels: LabelSpec) -> np.ndarray | None:
    """The ids of a file's values by the rule that the docs give; None where a value means nothing."""
    values = values.copy()
    if labels.num_ids <= 255 and labels.has_dontcare:
        values[values == 255] = labels.num_labels
    return values if values.size and values.max() < labels.num_ids else None


def _compare_pixels(case: Case, content: bytes, pixels: np.ndarray) -> None:
    png = _second_reading(case, content)
    if png is None or png.color_type == PALETTE:
        return
    if png.ancillary.get(b"eXIf") or png.ancillary.get(b"iCCP"):
        return
    color = png.samples[..., :3] if png.color_type in (RGB, 6) else np.repeat(png.samples[..., :1], 3, axis=2)
    expected = color * 255.0 / ((1 << png.depth) - 1)
    if pixels.shape != expected.shape or np.abs(pixels - expected).max() > 1.0:
        case.watch.fail("wrong", f"pixels of {_describe(png)} differ from a second reading", f"{pixels.shape}")


def _describe(png: Png) -> str:
    names = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
    return f"{png.depth}-bit {names[png.color_type]}"
