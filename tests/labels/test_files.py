"""Reading label files: what is accepted, what each refusal says, and that damage never escapes as another error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spade_deploy.errors import ConfigError, LabelMapError, NotFoundError, SpadeError
from spade_deploy.images.image_file import image_size, read_photo
from spade_deploy.images.opened import MAX_PIXELS
from spade_deploy.labels.files import (
    colorize,
    duplicate_stems,
    label_dtype,
    list_label_files,
    read_instance_map,
    read_label_map,
    resize_nearest,
    save_pixels,
    synthetic_label_maps,
)
from spade_deploy.labels.palettes import voc_palette
from spade_deploy.spec import LabelSpec

FIVE = LabelSpec(5)
FIVE_OR_UNKNOWN = LabelSpec(5, has_dontcare=True)
IDS = np.array([[0, 1, 2], [3, 4, 0]], np.uint8)


def write(path: Path, array: np.ndarray, mode: str | None = None, **save: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **save)
    return path


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 9) + b"IDAT" + b"no pixels"


def test_greyscale_and_palette_files_hold_ids(tmp_path: Path) -> None:
    grey = write(tmp_path / "grey.png", IDS)
    image = Image.fromarray(IDS)
    image.putpalette([value for n in range(256) for value in (255 - n, n, 7)])
    image.save(tmp_path / "palette.png")
    for path in (grey, tmp_path / "palette.png"):
        found = read_label_map(path, FIVE)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IDS)


def test_one_bit_files_hold_zero_and_one(tmp_path: Path) -> None:
    bits = np.array([[False, True], [True, True]])
    path = write(tmp_path / "bits.png", bits)
    np.testing.assert_array_equal(read_label_map(path, FIVE), bits.astype(np.uint8))
    np.testing.assert_array_equal(read_instance_map(path), bits.astype(np.int32))


def test_sixteen_bit_files_hold_many_ids(tmp_path: Path) -> None:
    many = LabelSpec(1000, has_dontcare=True)
    ids = np.array([[0, 255, 256], [999, 1000, 3]], np.uint16)
    path = write(tmp_path / "many.png", ids)
    found = read_label_map(path, many)
    assert found.dtype == label_dtype(many) == np.int32
    np.testing.assert_array_equal(found, ids)  # 255 is an ordinary id here
    with pytest.raises(LabelMapError, match=r"1000 \(1 pixels\); allowed are 0\.\.998"):
        read_label_map(path, LabelSpec(999))


@pytest.mark.parametrize("ignored", [0, 4, 5, 77])
def test_an_ignored_id_means_unknown_as_255_does(tmp_path: Path, ignored: int) -> None:
    labels = LabelSpec(5, has_dontcare=True, ignore_id=ignored)
    values = np.array([[1, 2, 3], [ignored, 255, 1]], np.uint8)
    path = write(tmp_path / "void.png", values)
    np.testing.assert_array_equal(read_label_map(path, labels), [[1, 2, 3], [5, 5, 1]])
    assert LabelSpec.from_json(labels.to_json()) == labels
    assert "ignore_id" not in LabelSpec(5).to_json()  # so that older versions read models without it
    bad = write(tmp_path / "bad.png", np.array([[90, ignored]], np.uint8))
    with pytest.raises(LabelMapError, match=r"out of range: 90 \(1 pixels\)"):
        read_label_map(bad, labels)
    with pytest.raises(ConfigError, match="`ignore_id` 7 needs `has_dontcare`"):
        LabelSpec(5, ignore_id=7)


def test_255_is_unknown_or_an_error_that_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "unknown.png", np.array([[0, 255], [255, 4]], np.uint8))
    np.testing.assert_array_equal(read_label_map(path, FIVE_OR_UNKNOWN), [[0, 5], [5, 4]])
    with pytest.raises(LabelMapError, match=r"unknown.png: 2 pixels are 255 \(unknown\).*no unknown"):
        read_label_map(path, FIVE)


def test_255_with_256_ids_is_an_ordinary_id(tmp_path: Path) -> None:
    path = write(tmp_path / "full.png", np.array([[0, 255]], np.uint8))
    np.testing.assert_array_equal(read_label_map(path, LabelSpec(256)), [[0, 255]])


def test_ids_out_of_range_are_named_with_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.png", np.array([[0, 9, 9, 7]], np.uint8))
    with pytest.raises(LabelMapError, match=r"bad.png: ids out of range: 7 \(1 pixels\), 9 \(2 pixels\)") as caught:
        read_label_map(path, FIVE_OR_UNKNOWN)
    assert "0..5 and 255 for unknown" in caught.value.message
    assert "check-labels" in (caught.value.hint or "")


def test_bad_ids_are_found_even_where_the_resize_would_miss_them(tmp_path: Path) -> None:
    ids = np.zeros((8, 8), np.uint8)
    ids[0, 0] = 77
    path = write(tmp_path / "bad.png", ids)
    assert 77 not in resize_nearest(ids, (2, 2))
    with pytest.raises(LabelMapError, match="77"):
        read_label_map(path, FIVE, (2, 2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_files_are_refused_with_the_way_out(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "colour.png", IDS, mode)
    with pytest.raises(LabelMapError, match=f"colour image .mode {mode}.") as caught:
        read_label_map(path, FIVE)
    assert "--fix" in (caught.value.hint or "")
    with pytest.raises(LabelMapError, match="instance map is a colour image"):
        read_instance_map(path)


def test_jpeg_is_told_by_content_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "really_a_jpeg.png"
    Image.fromarray(IDS).save(path, format="JPEG")
    with pytest.raises(LabelMapError, match="JPEG"):
        read_label_map(path, FIVE)
    assert read_photo(path).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (b"GIF89a" + bytes(20), "a GIF file"),
        (b"II*\0" + bytes(20), "a TIFF file"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (png_header(100, 100), "damaged"),
        (png_header(20_000, 20_000), f"20000 x 20000 pixels are more than the {MAX_PIXELS}"),
        (png_header(2**31 - 1, 2**31 - 1), "more than"),
    ],
)
def test_what_is_no_readable_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    for read in (lambda p: read_label_map(p, FIVE), read_instance_map, read_photo):
        with pytest.raises(LabelMapError, match=rf"file\.png.*{reason}"):
            read(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(LabelMapError, match="no such file"):
        read_label_map(tmp_path / "none.png", FIVE)
    with pytest.raises(LabelMapError, match="cannot be read"):
        read_label_map(tmp_path, FIVE)
    with pytest.raises(NotFoundError, match="no such folder"):
        list_label_files(tmp_path / "none")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 5, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    assert image_size(path) == (64, 64)
    with pytest.raises(LabelMapError, match="damaged"):
        read_label_map(path, FIVE)


@pytest.mark.parametrize("size", [(5, 9), (30, 7), (13, 13)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_picks_pillows_nearest_pixels(tmp_path: Path, size: tuple[int, int], dtype: type) -> None:
    ids = np.arange(13 * 11).reshape(13, 11).astype(dtype)
    path = write(tmp_path / "ids.png", ids)
    # The reference: Pillow on the file's own 8-bit image.
    expected = np.asarray(Image.fromarray(ids.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(read_label_map(path, LabelSpec(200), size), expected)
    np.testing.assert_array_equal(read_instance_map(path, size), expected)
    other = np.asarray(Image.fromarray(ids.astype(np.uint8)).resize(size[::-1], Image.Resampling.BILINEAR))
    assert size == (13, 13) or (other != expected).any()


def test_instance_ids_of_16_bit_survive(tmp_path: Path) -> None:
    ids = np.array([[0, 26001, 65535]], np.uint16)
    found = read_instance_map(write(tmp_path / "instances.png", ids))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_photos_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "photo.png", np.full((4, 6, 3), 255, np.uint8), mode)
    found = read_photo(path, (2, 3))
    assert (found.shape, found.dtype) == ((2, 3, 3), np.uint8)
    assert (found == 255).all()


def test_a_palette_photo_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).convert("P")
    image.save(tmp_path / "photo.png", transparency=bytes([0, 128] + [255] * 254))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read_photo(tmp_path / "photo.png").shape == (4, 6, 3)
    assert not told


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "deep/er/out.JPEG"])
def test_saved_pixels_come_back(tmp_path: Path, name: str) -> None:
    pixels = np.full((8, 5, 3), (10, 200, 90), np.uint8)
    save_pixels(tmp_path / name, pixels)
    # Measured for JPEG of quality 95 on one flat colour: at most 1 off. PNG is exact.
    assert np.abs(read_photo(tmp_path / name).astype(int) - pixels).max() <= (0 if name.endswith("png") else 2)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_saving_refuses_other_formats_and_reports_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"as \.gif"):
        save_pixels(tmp_path / "out.gif", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(LabelMapError, match="cannot be written"):
        save_pixels(tmp_path / "file" / "out.png", np.zeros((2, 2, 3), np.uint8))


def test_voc_palette_is_the_published_one() -> None:
    palette = voc_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (palette[8], palette[20], palette[255]) == ((64, 0, 0), (0, 64, 128), (224, 224, 192))
    assert len(set(voc_palette(4096))) == 4096


def test_colorize_takes_the_palette_or_vocs() -> None:
    colors = tuple((n, 2 * n, 3 * n) for n in range(5))
    np.testing.assert_array_equal(colorize(IDS, LabelSpec(5, palette=colors))[1, 1], (4, 8, 12))
    assert colorize(IDS[None], FIVE).shape == (1, 2, 3, 3)
    with pytest.raises(LabelMapError, match=r"0\.\.3"):
        colorize(IDS, LabelSpec(4))


def test_listing_is_sorted_and_leaves_out_the_hidden(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", ".a.png", "notes.txt", "c.jpg", "b.bmp"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    files = list_label_files(tmp_path)
    assert [path.name for path in files] == ["a.PNG", "b.bmp", "b.png", "c.jpg"]
    assert duplicate_stems(files) == {"b": [tmp_path / "b.bmp", tmp_path / "b.png"]}


@pytest.mark.parametrize(("labels", "size"), [(LabelSpec(3), (16, 24)), (LabelSpec(182, True), (64, 64))])
def test_synthetic_maps_hold_every_id(labels: LabelSpec, size: tuple[int, int]) -> None:
    ids, instances = synthetic_label_maps(labels, *size, count=2, seed=5)
    assert ids.shape == instances.shape == (2, *size)
    assert (ids.dtype, instances.dtype) == (label_dtype(labels), np.int32)
    assert set(np.unique(ids)) == set(range(labels.num_ids))
    for label_map, instance_map in zip(ids, instances, strict=True):
        for region in np.unique(instance_map):
            assert len(np.unique(label_map[instance_map == region])) == 1
    again, _ = synthetic_label_maps(labels, *size, count=2, seed=5)
    np.testing.assert_array_equal(ids, again)
    assert (synthetic_label_maps(labels, *size, count=2, seed=6)[0] != ids).any()


def test_synthetic_maps_of_few_pixels(tmp_path: Path) -> None:
    ids, _ = synthetic_label_maps(LabelSpec(100), 2, 3, count=1, seed=0)
    assert ids.shape == (1, 2, 3)
    assert ids.max() < 100


def seeds() -> list[bytes]:
    found = []
    rng = np.random.default_rng(0)
    for image in (
        Image.fromarray(rng.integers(0, 5, (12, 9)).astype(np.uint8)),
        Image.fromarray(rng.integers(0, 5, (12, 9)).astype(np.uint16)),
        Image.fromarray(rng.integers(0, 255, (6, 7, 3)).astype(np.uint8)).convert("P"),
        Image.fromarray(rng.integers(0, 255, (6, 7, 3)).astype(np.uint8)),
    ):
        for kind in ("PNG", "BMP", "JPEG", "WEBP") if image.mode == "RGB" else ("PNG",):
            stream = io.BytesIO()
            image.save(stream, format=kind, **({"optimize": True} if kind == "PNG" else {}))
            found.append(stream.getvalue())
    return found


def with_valid_checksums(data: bytes) -> bytes:
    """PNG chunks with their checksums repaired, so that mutations reach the code behind the check."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_give_an_array_or_a_package_error(data: st.DataObject, tmp_path: Path) -> None:
    original = data.draw(st.sampled_from(seeds()))
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    if original[:4] == b"\x89PNG" and data.draw(st.booleans()):
        content = bytearray(with_valid_checksums(bytes(content)))
    path = tmp_path / "fuzz.png"
    path.write_bytes(bytes(content))
    # Recorded: as an error a warning would become a LabelMapError like any other and go unseen.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for read in (lambda p: read_label_map(p, FIVE_OR_UNKNOWN, (4, 4)), read_instance_map, read_photo):
            try:
                assert read(path).size > 0
            except SpadeError as error:
                assert str(path) in error.message  # noqa: PT017  (an array is as good an answer)
    assert not told
