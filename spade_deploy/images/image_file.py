"""Image files that somebody else made -> their samples as they are stored, or upright RGB photos. NumPy and Pillow.

Files are read as untrusted input: a regular file alone, its format told by the first bytes and not by the suffix, its
size bounded before anything is decoded, and whatever goes wrong inside Pillow becomes a LabelMapError that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from spade_deploy.errors import LabelMapError, SpadeError
from spade_deploy.files.reading import open_regular
from spade_deploy.images import png_file
from spade_deploy.images.headers import (
    MAX_JPEG_SCANS,
    MAX_RLE_BYTES,
    exif_orientation,
    hexadecimal_exif,
    is_run_length_bmp,
    jpeg_scans,
    refuse_slow_jpeg,
    webp_chunks,
    webp_size,
)
from spade_deploy.images.png_file import PngFacts

Size = tuple[int, int]
"""(height, width) in pixels."""

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 512 << 20
"""What an uncompressed image of MAX_PIXELS with four channels of 16 bits needs."""

_MAX_SCANNED_PIXELS = 20 * MAX_PIXELS  # of a progressive JPEG: pixels times scans, of which there are about ten
_INTEGER_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright that has this EXIF orientation."""


@dataclass(frozen=True)
class OpenedImage:
    """A file that is open, bounded and not yet decoded. png: of a PNG file, what its chunks say."""

    path: Path
    stream: BufferedReader
    image: ImageFile
    png: PngFacts | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether the pixels went through lossy compression: a JPEG, or a WebP that is not lossless."""
        if self.image.format != "WEBP":
            return self.image.format == "JPEG"
        place = self.stream.tell()
        self.stream.seek(0)
        chunks = [name for name, _ in webp_chunks(self.stream)]
        self.stream.seek(place)
        return b"VP8 " in chunks

    @property
    def frames(self) -> int:
        return self.png.frames if self.png else int(getattr(self.image, "n_frames", 1))

    @property
    def orientation(self) -> int:
        """EXIF's: how the stored pixels are to be turned for showing, 2..8, or 1 where nothing says so."""
        info = self.image.info
        exif, xmp = (self.png.exif, self.png.xmp) if self.png else (b"", b"")
        exif = exif or info.get("exif", b"") or hexadecimal_exif(info.get("Raw profile type exif", ""))
        found = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        if found is None:
            xmp = xmp or info.get("xmp", b"") or info.get("XML:com.adobe.xmp", "")
            text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
            match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', text)
            found = int(match[1]) if match else 1
        return found if found in _TURNS else 1

    def require_whole(self) -> None:
        """Raise ValueError where the file is a PNG whose pixels are not those that were written."""
        if self.png:
            png_file.require_whole(self.stream, self.png)

    @property
    def size(self) -> Size:
        """(height, width) as stored."""
        return self.image.height, self.image.width


@dataclass(frozen=True)
class Samples:
    """The numbers that an image file holds, not what a viewer makes of them.

    kind: what it is for messages, as 'RGB, 16 bit'. values: H x W, uint8 or int32, None of a colour image.
    colors: H x W x 3, uint8 or uint16, of a colour image alone. transparent: pixels that are not opaque, of a colour
    image. palette: of a palette file, a colour an index. grey_scale: the factor by which a viewer scales the values.
    """

    kind: str
    values: NDArray[Any] | None
    colors: NDArray[Any] | None
    palette: tuple[tuple[int, int, int], ...] = ()
    grey_scale: int = 1
    transparent: int = 0
    is_lossy: bool = False
    is_jpeg: bool = False
    frames: int = 1
    orientation: int = 1


def read_samples(path: Path, what: str) -> Samples:
    """Decode an image file into its own numbers, whatever it is for. Raises LabelMapError."""
    with opened_image(path, what) as file:
        image, png = file.image, file.png
        _refuse_slow_scans(file)
        file.require_whole()
        about: dict[str, Any] = {
            "is_lossy": file.is_lossy,
            "is_jpeg": image.format == "JPEG",
            "frames": file.frames,
            "orientation": file.orientation,
        }
        if image.mode in _INTEGER_MODES and not (png and png.is_wide_color):
            dtype: Any = np.uint8 if image.mode in ("1", "L", "P") else np.int32
            values = np.array(image).astype(dtype, copy=False)
            scale = png.grey_scale if png else 1
            if scale not in (1, 255):  # Pillow has scaled 2 and 4 bits; of 1 bit NumPy gets 0 and 1
                values = values // scale
            flat = (image.getpalette("RGB") or []) if image.mode == "P" else []
            palette = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=False))
            return Samples(image.mode, values, None, palette, scale, **about)
        if png and png.is_wide_color:
            wide = png_file.wide_samples(file.stream, png)
            colors = wide[..., :3] if wide.shape[2] > 2 else wide[..., [0, 0, 0]]
            kind = {png_file.RGB: "RGB", png_file.GREY_ALPHA: "LA"}.get(png.color_type, "RGBA")
            return Samples(f"{kind}, 16 bit", None, colors, transparent=_transparent_wide(wide, png), **about)
        transparent = int((alpha != 255).sum()) if (alpha := _alpha(image)) is not None else 0
        image.info.pop("transparency", None)  # else Pillow warns that RGB has no place for it
        return Samples(image.mode, None, np.array(image.convert("RGB")), transparent=transparent, **about)


def read_photo(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """RGB pixels, H x W x 3 uint8, turned upright as EXIF says; `size` resizes with bicubic.

    Of samples of 16 bits the upper eight are taken. Grey, palette and CMYK are converted. Raises LabelMapError, also
    for a photo with transparent pixels, behind which nobody knows what is, and for an animation.
    """
    with opened_image(path, "photo") as file:
        orientation = file.orientation
        file.require_whole()
        _refuse_unclear_photo(file)
        rgb = _rgb(file)
        if orientation != 1:
            rgb = rgb.transpose(_TURNS[orientation])
        if size is not None:
            rgb = rgb.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return np.array(rgb, dtype=np.uint8)


def check_photo(path: Path) -> int:
    """The EXIF orientation of a photo that can be read; raises LabelMapError where `read_photo` would.

    A JPEG is decoded at an eighth of its size: damage is found all the same.
    """
    with opened_image(path, "photo") as file:
        file.require_whole()
        file.image.draft("RGB", (file.image.width // 8, file.image.height // 8))
        _refuse_unclear_photo(file)
        file.image.load()
        return file.orientation


def photo_size(path: Path) -> Size:
    """(height, width) of a photo when it is upright, as `read_photo` gives it. Raises LabelMapError."""
    with opened_image(path, "photo") as file:
        height, width = file.size
        return (width, height) if file.orientation >= 5 else (height, width)


def size_beside(label: Path, other: Path, *, is_photo: bool) -> str | None:
    """A sentence where a photo (upright) or instance map has another size than its label map. Raises LabelMapError."""
    own, found = image_size(label), photo_size(other) if is_photo else image_size(other)
    if found == own:
        return None
    text = f"{own[1]} x {own[0]} pixels, but its {'photo' if is_photo else 'instance map'} {other.name} has"
    text += f" {found[1]} x {found[0]}"
    if is_photo and found == own[::-1] == image_size(other)[::-1]:
        text += " when it is upright, as its EXIF orientation says; the label map lies over the pixels before that"
    return text


def image_size(path: Path) -> Size:
    """(height, width) from the file's header, as stored. Raises LabelMapError."""
    with opened_image(path, "image") as file:
        return file.size


def _rgb(file: OpenedImage) -> Image.Image:
    image = file.image
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):  # grey of 16 bits; Pillow's conversion would clip it to 255
        return Image.fromarray((np.array(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _refuse_unclear_photo(file: OpenedImage) -> None:
    _refuse_slow_scans(file)
    png = file.png
    if file.frames > 1:
        raise LabelMapError(f"{file.path}: the photo is an animation of {file.frames} images", hint="save one of them")
    if png and png.bit_depth == 16 and png.transparency:
        if png.color_type == png_file.GREY:
            count = int((np.array(file.image) == int.from_bytes(png.transparency[:2], "big")).sum())
        else:
            count = _transparent_wide(png_file.wide_samples(file.stream, png), png)
    else:
        alpha = _alpha(file.image)
        count = 0 if alpha is None else int((alpha != 255).sum())
    if count:
        raise LabelMapError(
            f"{file.path}: {count} of the photo's {file.image.width * file.image.height} pixels are transparent, and"
            " what is behind them is not in the file",
            hint="save it without transparency (alpha), on the background that it should have",
        )


def _alpha(image: ImageFile) -> NDArray[np.uint8] | None:
    """The opacity of every pixel, or None where the file has no transparency at all."""
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return None
    rgba = image.convert("RGBA")
    return np.asarray(rgba.getchannel("A"))


def _transparent_wide(wide: NDArray[np.uint16], png: PngFacts) -> int:
    """How many pixels of a 16-bit colour image are not opaque."""
    if png.color_type in (png_file.GREY_ALPHA, png_file.RGB_ALPHA):
        return int((wide[..., -1] != 65535).sum())
    if len(png.transparency) < 6:
        return 0
    return int((wide == np.frombuffer(png.transparency[:6], ">u2")).all(axis=-1).sum())


@contextmanager
def opened(path: Path, what: str) -> Iterator[ImageFile]:
    """`opened_image` for those that need Pillow's image alone."""
    with opened_image(path, what) as file:
        yield file.image


@contextmanager
def opened_image(path: Path, what: str) -> Iterator[OpenedImage]:
    """An image file that is open, bounded and not yet decoded. Keep the block to decoding.

    Every exception of the block becomes a LabelMapError: on damaged data Pillow raises OSError, SyntaxError,
    ValueError, struct.error, zlib.error, EOFError, IndexError, MemoryError and more, and promises no list.
    """
    try:
        with open_regular(path) as stream:
            plugin = _plugin(stream.read(16), path, what)
            found = os.fstat(stream.fileno()).st_size
            if found > MAX_FILE_BYTES:
                raise LabelMapError(f"{path}: {found:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
            facts = png_file.png_facts(stream) if plugin is PngImagePlugin.PngImageFile else None
            if facts:
                _refuse_large(path, facts.width, facts.height)
            elif plugin is WebPImagePlugin.WebPImageFile:
                _refuse_large(path, *webp_size(stream))  # its decoder takes memory for the whole canvas at once
            elif plugin is JpegImagePlugin.JpegImageFile:
                refuse_slow_jpeg(stream)
            elif is_run_length_bmp(_first_bytes(stream, 34)) and found > MAX_RLE_BYTES:
                raise ValueError(f"run-length compression, and more than {MAX_RLE_BYTES:,} bytes; save it as PNG")
            stream.seek(0)
            # The plugin is called directly: Image.open would emit its decompression bomb warning before our own
            # bound can be checked, and would try formats that have no business here.
            with plugin(stream) as image:
                _refuse_large(path, image.width, image.height)
                yield OpenedImage(path, stream, image, facts)
    except SpadeError:
        raise
    except FileNotFoundError as error:
        raise LabelMapError(f"{path}: there is no such file") from error
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise LabelMapError(f"{path}: the {what} is damaged or cannot be read ({reason})") from error


def _first_bytes(stream: BufferedReader, count: int) -> bytes:
    stream.seek(0)
    return stream.read(count)


def _refuse_slow_scans(file: OpenedImage) -> None:
    """Raise ValueError for a JPEG that goes through its pixels more often than any program makes it."""
    if file.image.format != "JPEG" or not file.image.info.get("progressive"):
        return
    place = file.stream.tell()
    scans = jpeg_scans(file.stream)
    file.stream.seek(place)
    if scans > MAX_JPEG_SCANS or scans * file.image.width * file.image.height > _MAX_SCANNED_PIXELS:
        raise ValueError(f"it goes through its pixels {scans} times")


def _refuse_large(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise LabelMapError(
            f"{path}: {width} x {height} pixels are more than the {MAX_PIXELS} that are read",
            hint="resize it, label maps with nearest-neighbour interpolation",
        )


def _plugin(head: bytes, path: Path, what: str) -> type[ImageFile]:
    if head.startswith(png_file.SIGNATURE):
        return PngImagePlugin.PngImageFile
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if not head:
        raise LabelMapError(f"{path}: the file is empty")
    known = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"GIF8": "GIF"}.get(head[:4])
    found = f"a {known} file" if known else "not an image file"
    allowed = "PNG or BMP" if what != "photo" else "PNG, JPEG, BMP or WebP"
    raise LabelMapError(f"{path}: the {what} is {found}; allowed is {allowed}", hint="save it as PNG")
