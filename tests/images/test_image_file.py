"""Image files read as their samples are: every kind of PNG against files written bit by bit, and other formats."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import MAX_FILE_BYTES, check_photo, image_size, photo_size, read_photo, read_samples
from spade_deploy.labels.files import read_instance_map, read_label_map
from spade_deploy.labels.fix import FixAction, fix_labels
from spade_deploy.labels.lint import lint_folder
from spade_deploy.labels.lint_file import check_label_file
from spade_deploy.spec import LabelSpec
from tests.support import png_writer
from tests.support.png_writer import GREY, GREY_ALPHA, LEGAL, PALETTE, RGB, RGB_ALPHA, chunk, png

Ids = NDArray[np.int64]
HEIGHT, WIDTH = 11, 13  # of every pass of an interlaced image some pixels, and rows that end inside a byte
KINDS = [(*kind, interlaced, trns) for kind in LEGAL for interlaced in (False, True) for trns in (False, True)]
"""Colour type, bit depth, interlacing, transparency (a tRNS chunk, or of alpha types pixels that are not opaque)."""


def ids_below(count: int) -> Ids:
    """Squares of two pixels, so that no border looks interpolated; every id occurs."""
    squares = np.random.default_rng(count).integers(0, count, 42)
    squares[:count] = np.random.default_rng(0).permutation(count)
    return squares.reshape(6, 7).repeat(2, axis=0).repeat(2, axis=1)[:HEIGHT, :WIDTH]


def colors_of(count: int) -> list[tuple[int, int, int]]:
    """Neither greys nor anybody's label colours."""
    return [(255 - n, (7 * n + 3) % 256, (n * 5) % 256) for n in range(count)]


def label_png(ids: Ids, color_type: int, depth: int, is_interlaced: bool, has_transparency: bool) -> bytes:
    """A file whose samples are the ids: in every colour channel of those types that have several."""
    samples = ids[..., None].repeat(png_writer.CHANNELS[color_type], axis=2)
    if color_type in (GREY_ALPHA, RGB_ALPHA):
        samples[..., -1] = 2**depth - 1
        if has_transparency:
            samples[2, 3, -1] = 0
    tables: dict[int, bytes] = {
        GREY: struct.pack(">H", 1),
        RGB: struct.pack(">HHH", 1, 1, 1),
        PALETTE: bytes([0, 128]),
    }
    return png(
        samples,
        color_type,
        depth,
        is_interlaced=is_interlaced,
        palette=colors_of(2**depth) if color_type == PALETTE else (),
        transparency=tables.get(color_type) if has_transparency else None,
    )


# --- Label maps: the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("color_type", "depth", "is_interlaced", "has_transparency"), KINDS)
def test_every_kind_of_png_is_read_as_its_samples_or_refused(
    tmp_path: Path, color_type: int, depth: int, is_interlaced: bool, has_transparency: bool
) -> None:
    count = min(2**depth, 20)
    ids, labels = ids_below(count), LabelSpec(count)
    path = tmp_path / "a.png"
    path.write_bytes(label_png(ids, color_type, depth, is_interlaced, has_transparency))
    if color_type in (GREY, PALETTE):
        np.testing.assert_array_equal(read_label_map(path, labels), ids)
        np.testing.assert_array_equal(read_instance_map(path), ids)
        assert [found.code for found in check_label_file(path, labels) if found.severity == "error"] == []
    else:
        for read in (lambda: read_label_map(path, labels), lambda: read_instance_map(path)):
            with pytest.raises(LabelMapError, match="colour image"):
                read()


@pytest.mark.parametrize(("color_type", "depth", "is_interlaced", "has_transparency"), KINDS)
def test_a_fixed_copy_has_the_samples_of_every_kind_of_png_or_is_refused(
    tmp_path: Path, color_type: int, depth: int, is_interlaced: bool, has_transparency: bool
) -> None:
    count = min(2**depth, 20)
    ids, labels = ids_below(count), LabelSpec(count)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(label_png(ids, color_type, depth, is_interlaced, has_transparency))
    report = lint_folder(tmp_path / "in", labels)
    (result,) = fix_labels(report, tmp_path / "out", labels)
    if has_transparency and color_type not in (GREY, PALETTE):
        assert [found.code for found in report.findings] == ["transparent"]
        assert result.action is FixAction.REFUSED
        return
    assert (result.action is FixAction.CONVERTED) == (color_type not in (GREY, PALETTE))
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "a.png", labels), ids)


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("color_type", [GREY, RGB, GREY_ALPHA, RGB_ALPHA])
def test_ids_above_255_survive_in_16_bits(tmp_path: Path, color_type: int, is_interlaced: bool) -> None:
    ids, labels = ids_below(20) * 300 % 4096, LabelSpec(4096)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(label_png(ids, color_type, 16, is_interlaced, False))
    (result,) = fix_labels(lint_folder(tmp_path / "in", labels), tmp_path / "out", labels)
    assert result.target is not None
    np.testing.assert_array_equal(read_label_map(result.target, labels), ids)


@pytest.mark.parametrize("factor", [1, 257])
def test_colours_of_16_bits_are_the_palettes_as_they_are_or_times_257(tmp_path: Path, factor: int) -> None:
    labels = LabelSpec(20, palette=tuple(colors_of(20)))
    ids = ids_below(20)
    (tmp_path / "in").mkdir()
    samples = np.array(colors_of(20))[ids] * factor
    (tmp_path / "in" / "a.png").write_bytes(png(samples, RGB, 16))
    (result,) = fix_labels(lint_folder(tmp_path / "in", labels), tmp_path / "out", labels)
    assert result.target is not None
    np.testing.assert_array_equal(read_label_map(result.target, labels), ids)


def test_colours_that_need_16_bits_are_no_label_map(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    samples = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3))
    (tmp_path / "in" / "a.png").write_bytes(png(samples, RGB, 16))
    report = lint_folder(tmp_path / "in", LabelSpec(20))
    assert [(found.code, found.fixable) for found in report.findings] == [("rgb", False)]
    (result,) = fix_labels(report, tmp_path / "out", LabelSpec(20))
    assert result.action is FixAction.REFUSED


def test_few_bits_are_a_warning_where_the_scaled_values_are_ids_too(tmp_path: Path) -> None:
    """A PNG optimiser makes 1 bit of a grey file that holds 0 and 255 alone, and 2 bits of 0, 85, 170, 255."""
    path = tmp_path / "a.png"
    path.write_bytes(label_png(ids_below(2), GREY, 1, False, False))
    assert [found.code for found in check_label_file(path, LabelSpec(20, has_dontcare=True))] == ["depth"]
    assert [found.code for found in check_label_file(path, LabelSpec(20))] == []
    path.write_bytes(label_png(ids_below(4), GREY, 2, False, False))
    assert [found.code for found in check_label_file(path, LabelSpec(182, has_dontcare=True))] == ["depth"]


# --- Label maps: other formats ---------------------------------------------------------------------------------------


def bmp(indices: Ids, bits: int, palette: list[tuple[int, int, int]]) -> bytes:
    """A BMP file with a palette, bit by bit."""
    stride = -(-WIDTH * bits // 32) * 4
    rows = b""
    for row in indices[::-1]:
        packed = bytes(png_writer._packed(row.tolist(), bits))
        rows += packed + bytes(stride - len(packed))
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette)
    start = 14 + 40 + len(table)
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 0, len(rows), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + table + rows


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("kind", ["colours", "greys", "inverse"])
def test_bmp_files_are_read_by_index(tmp_path: Path, bits: int, kind: str) -> None:
    count = min(2**bits, 20)
    ids, labels = ids_below(count), LabelSpec(count)
    ramp = [(n * 255 // (2**bits - 1),) * 3 for n in range(2**bits)]
    palette = {"colours": colors_of(2**bits), "greys": ramp, "inverse": ramp[::-1]}[kind]
    path = tmp_path / "a.bmp"
    path.write_bytes(bmp(ids, bits, palette))
    greys = {palette[index][0] for index in np.unique(ids)}
    # Greys that are ids as well leave two readings; then the file is refused, and else it is read by index.
    moved = kind != "colours" and greys <= set(range(count)) and any(palette[n][0] != n for n in np.unique(ids))
    if moved:
        with pytest.raises(LabelMapError, match="palette is of greys"):
            read_label_map(path, labels)
    else:
        np.testing.assert_array_equal(read_label_map(path, labels), ids)
    np.testing.assert_array_equal(read_instance_map(path), ids)


@pytest.mark.parametrize(
    ("mode", "suffix", "options", "reason"),
    [
        ("L", ".tif", {}, "a TIFF file"),
        ("I;16", ".tif", {}, "a TIFF file"),
        ("I;16B", ".tif", {}, "a TIFF file"),
        ("I", ".tif", {}, "a TIFF file"),
        ("F", ".tif", {}, "a TIFF file"),
        ("CMYK", ".tif", {}, "a TIFF file"),
        ("P", ".tif", {}, "a TIFF file"),
        ("1", ".tif", {}, "a TIFF file"),
        ("L", ".gif", {}, "a GIF file"),
        ("P", ".gif", {}, "a GIF file"),
        ("L", ".jpg", {}, "JPEG"),
        ("CMYK", ".jpg", {}, "JPEG"),
        ("RGB", ".webp", {"lossless": True}, "colour image"),
        ("RGB", ".webp", {"lossless": False}, "lossy compression"),
        ("RGB", ".bmp", {}, "colour image"),
    ],
)
def test_other_formats_are_refused_and_say_what_they_are(
    tmp_path: Path, mode: str, suffix: str, options: dict[str, Any], reason: str
) -> None:
    ids = ids_below(5).astype(np.uint8)
    image = Image.fromarray(ids)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (WIDTH, HEIGHT), ids.astype(">u2").tobytes())
    elif mode == "I;16":
        image = Image.fromarray(ids.astype(np.uint16))
    elif mode != "L":
        image = image.convert(mode)
    image.save(tmp_path / f"a{suffix}", **options)
    for read in (lambda path: read_label_map(path, LabelSpec(5)), read_instance_map):
        with pytest.raises(LabelMapError, match=reason):
            read(tmp_path / f"a{suffix}")
    report = lint_folder(tmp_path, LabelSpec(5))
    assert len(report.errors) == 1
    if suffix != ".webp" or not options["lossless"]:
        (result,) = fix_labels(report, tmp_path / "out", LabelSpec(5))
        assert (result.action is FixAction.CONVERTED) == (suffix == ".bmp")


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8), n, np.uint8)).convert("RGB") for n in (0, 90, 180)]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {}))
    for read in (lambda p: read_label_map(p, LabelSpec(5)), read_instance_map, read_photo, check_photo):
        with pytest.raises(LabelMapError, match="animation of 3 images"):
            read(path)
    assert [found.code for found in check_label_file(path, LabelSpec(5))] == ["animation"]


# --- Photos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("color_type", "depth"), LEGAL)
def test_photos_of_every_kind_of_png_have_the_right_colours(
    tmp_path: Path, color_type: int, depth: int, is_interlaced: bool
) -> None:
    samples = np.random.default_rng(depth).integers(0, 2**depth, (HEIGHT, WIDTH, png_writer.CHANNELS[color_type]))
    if color_type in (GREY_ALPHA, RGB_ALPHA):
        samples[..., -1] = 2**depth - 1
    table = colors_of(2**depth) if color_type == PALETTE else []
    path = tmp_path / "a.png"
    path.write_bytes(png(samples, color_type, depth, is_interlaced=is_interlaced, palette=table))
    if color_type == PALETTE:
        expected = np.array(table)[samples[..., 0]]
    else:
        channels = [0, 1, 2] if color_type in (RGB, RGB_ALPHA) else [0, 0, 0]
        expected = samples[..., channels] >> 8 if depth == 16 else samples[..., channels] * 255 // (2**depth - 1)
    np.testing.assert_array_equal(read_photo(path), expected)
    assert check_photo(path) == 1


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("color_type", [GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA])
def test_photos_with_transparent_pixels_are_refused_and_opaque_ones_are_not(
    tmp_path: Path, color_type: int, depth: int
) -> None:
    if color_type == PALETTE and depth == 16:
        return
    path = tmp_path / "a.png"
    path.write_bytes(label_png(ids_below(20), color_type, depth, False, has_transparency=True))
    for read in (read_photo, check_photo):
        with pytest.raises(LabelMapError, match=r"a\.png: \d+ of the photo's 143 pixels are transparent"):
            read(path)
    ids = ids_below(20)
    ids[ids < 2] = 2  # the colour that is transparent does not occur
    transparency = color_type in (GREY, RGB, PALETTE)
    path.write_bytes(label_png(ids, color_type, depth, False, has_transparency=transparency))
    assert read_photo(path).shape == (HEIGHT, WIDTH, 3)


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def oriented(path: Path, pixels: NDArray[np.uint8], orientation: int, how: str) -> Path:
    if how in ("eXIf before", "eXIf after", "XMP"):
        body = chunk(b"eXIf", exif(orientation, ">"))
        if how == "XMP":
            text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
            body = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
        place = "after" if how == "eXIf after" else "before"
        path.write_bytes(png(pixels.astype(np.int64), RGB, 8, **{place: body}))
        return path
    options: dict[str, Any] = {"lossless": True} if how == "WEBP" else {"quality": 100, "subsampling": 0}
    Image.fromarray(pixels).save(path, how, exif=b"Exif\0\0" + exif(orientation), **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["JPEG", "WEBP", "eXIf before", "eXIf after", "XMP"])
def test_photos_are_turned_upright(tmp_path: Path, how: str, orientation: int) -> None:
    rows, columns = np.mgrid[:16, :24]
    pixels = np.stack([rows * 8, columns * 8, np.full_like(rows, 40)], axis=-1).astype(np.uint8)
    path = oriented(tmp_path / "a", pixels, orientation, how)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_photo(path)
    np.testing.assert_array_equal(found, upright)
    assert (found.shape == (24, 16, 3)) == (orientation >= 5)
    assert photo_size(path) == found.shape[:2]
    assert image_size(path) == (16, 24)
    assert check_photo(path) == orientation


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_label_and_instance_maps_that_are_to_be_turned_are_refused(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(ids_below(5)[..., None], GREY, 8, after=chunk(b"eXIf", exif(orientation))))
    if orientation == 1:
        np.testing.assert_array_equal(read_label_map(path, LabelSpec(5)), ids_below(5))
        return
    for read in (lambda: read_label_map(path, LabelSpec(5)), lambda: read_instance_map(path)):
        with pytest.raises(LabelMapError, match=f"EXIF orientation {orientation}"):
            read()
    assert [found.code for found in check_label_file(path, LabelSpec(5))] == ["exif"]


@pytest.mark.parametrize("damage", [b"", b"II", b"nonsense", b"II*\0\xff\xff\xff\xff", exif(99), exif(6)[:20]])
def test_exif_that_says_nothing_is_no_orientation(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.zeros((4, 6, 3), np.int64), RGB, 8, before=chunk(b"eXIf", damage)))
    assert read_photo(path).shape == (4, 6, 3)


@pytest.mark.parametrize("size", [(5, 7), (40, 33), (11, 40)])
def test_photos_are_resized_bicubically(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3))
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels, RGB, 8))
    image = Image.fromarray(pixels.astype(np.uint8))
    filters = {name: np.asarray(image.resize(size[::-1], getattr(Image.Resampling, name)))
               for name in ("NEAREST", "BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")}  # fmt: skip
    found = read_photo(path, size)
    assert [name for name, pixels in filters.items() if (pixels == found).all()] == ["BICUBIC"]


def test_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    # Measured: at most 2 of 255 from the lossy compression.
    assert np.abs(read_photo(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 3


# --- What is no file, too large, or made to take the memory ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling link", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "none")
    reason = "no such file" if kind == "dangling link" else f"is a {kind}, not a regular file"
    for read in (lambda p: read_label_map(p, LabelSpec(5)), read_instance_map, read_photo, check_photo):
        with pytest.raises(LabelMapError, match=reason):
            read(path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.zeros((4, 6, 1), np.int64), GREY, 8))
    with path.open("ab") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(LabelMapError, match="bytes are more than"):
        read_photo(path)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bombs() -> dict[str, bytes]:
    plain = np.zeros((4, 6, 1), np.int64)
    packed = zlib.compress(bytes(100 << 20), 9)
    header = struct.pack(">IIBBBBB", 8000, 8000, 16, RGB, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    jpeg = _saved(Image.new("RGB", (16, 16)), "JPEG")
    scans = _saved(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    rle = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0)
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0" * 2
    return {
        "zTXt": png(plain, GREY, 8, before=chunk(b"zTXt", b"Comment\0\0" + packed)),
        "iTXt": png(plain, GREY, 8, after=chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed)),
        "iCCP": png(plain, GREY, 8, before=chunk(b"iCCP", b"profile\0\0" + packed)),
        "IDAT of 16 bits": start + chunk(b"IDAT", packed) + chunk(b"IEND", b""),
        "IDAT after the image": png(plain, GREY, 8, after=chunk(b"IDAT", packed)),
        "a million chunks": png(plain, GREY, 8, before=chunk(b"tEXt", b"a\0b") * 1_000_000),
        "a large chunk": png(plain, GREY, 8, before=chunk(b"prVt", bytes(40 << 20))),
        "JPEG fill bytes": jpeg[:2] + b"\xff" * 50_000_000 + jpeg[2:],
        "JPEG escaped bytes": jpeg[:2] + b"\xff\0" * 25_000_000 + jpeg[2:],
        "JPEG restart markers": jpeg[:2] + b"\xff\xd0" * 25_000_000 + jpeg[2:],
        "JPEG segments": jpeg[:2] + b"\xff\xe5\0\2" * 10_000_000 + jpeg[2:],
        "JPEG scans": scans[:-2] + scans[scans.rindex(b"\xff\xda") : -2] * 300 + scans[-2:],
        "a BMP of runs": rle + bytes(2000) + b"\1\0" * 20_000_000,
        "a WebP canvas": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "a TIFF strip": b"II*\0" + struct.pack("<IHHHII", 8, 1, 279, 4, 1, 2**31),
        "a GIF frame": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
        "a PNG of 2^31": start[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)),
    }  # fmt: skip


def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """Each in one process that may take 700 MB of addresses above what it has; the readers answer, none is killed."""
    for name, content in bombs().items():
        (tmp_path / f"{name}.png").write_bytes(content)
    program = """
import resource, sys
from contextlib import suppress
from pathlib import Path
from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import read_photo
from spade_deploy.labels.lint_file import check_label_file
from spade_deploy.labels.files import read_label_map
from spade_deploy.spec import LabelSpec
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (
        lambda p: read_label_map(p, LabelSpec(5)),
        read_photo,
        lambda p: list(check_label_file(p, LabelSpec(5))),
    ):
        try:
            read(path)
        except LabelMapError as error:
            assert "MemoryError" not in error.message and len(error.message) < 400, error.message
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def seeds() -> list[bytes]:
    """Files of every format that is read, with metadata."""
    rng = np.random.default_rng(0)
    found = [
        label_png(ids_below(2), color_type, depth, interlaced, True)
        for color_type, depth in LEGAL
        for interlaced in (False, True)
    ]
    image = Image.fromarray(rng.integers(0, 256, (16, 24, 3)).astype(np.uint8))
    for kind in ("JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        found.append(_saved(image, kind, **({"exif": b"Exif\0\0" + exif(6)} if kind in ("JPEG", "WEBP") else {})))
    found.append(png(ids_below(5)[..., None], GREY, 8, before=chunk(b"eXIf", exif(3)), after=chunk(b"tEXt", b"a\0b")))
    return found


def with_valid_checksums(data: bytes) -> bytes:
    """PNG chunks with their checksums repaired, so that damage reaches the code behind the check."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        out += data[at : at + 4] + (body := data[at + 4 : at + 8 + length]) + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


@pytest.mark.filterwarnings("error")
def test_damaged_files_give_an_answer_or_a_package_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "a.png"
    for content in seeds():
        for number in range(25):
            damaged = bytearray(content)
            for _ in range(int(rng.integers(1, 6))):
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            data = bytes(damaged[: int(rng.integers(len(damaged)))] if number % 3 == 0 else damaged)
            path.write_bytes(with_valid_checksums(data) if content[:4] == b"\x89PNG" and number % 2 else data)
            for read in (
                lambda p: read_label_map(p, LabelSpec(5)),
                read_instance_map,
                read_photo,
                check_photo,
                photo_size,
                lambda p: list(check_label_file(p, LabelSpec(5, has_dontcare=True))),
            ):
                try:
                    read(path)
                except LabelMapError as error:
                    assert str(path) in error.message  # noqa: PT017  (an answer is as good)


def small_map() -> tuple[NDArray[np.int64], bytes]:
    samples = np.random.default_rng(0).integers(0, 6, (24, 20, 1)).repeat(2, axis=0)
    return samples, png(samples, GREY, 8)


def test_no_flipped_bit_of_the_pixels_gives_other_ids(tmp_path: Path) -> None:
    """Pillow alone reads one flip of eight as other ids: it looks at no checksum once the rows are full."""
    samples, content = small_map()
    path = tmp_path / "map.png"
    first, last = content.index(b"IDAT") + 4, content.index(b"IEND") - 4
    for bit in range(8 * first, 8 * last, 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with suppress(LabelMapError):
            np.testing.assert_array_equal(read_samples(path, "label map").values, samples[..., 0])


@pytest.mark.parametrize("rows", [1, 24, 47])
def test_rows_that_are_missing_are_refused(tmp_path: Path, rows: int) -> None:
    """A whole stream of too few rows: Pillow fills the others with id 0."""
    samples, content = small_map()
    few = png(samples[:rows], GREY, 8)
    header, start = content[: content.index(b"IDAT") - 4], few.index(b"IDAT") - 4
    path = tmp_path / "map.png"
    path.write_bytes(header + few[start:])
    with Image.open(path) as image:
        assert np.asarray(image)[-1].tolist() == [0] * 20
    for read in (lambda: read_samples(path, "label map"), lambda: read_photo(path), lambda: check_photo(path)):
        with pytest.raises(LabelMapError, match="its pixels end early"):
            read()
