"""Open image files that somebody else made, so that none of them can exhaust the memory, hang or end the process.

Only regular files are opened. The first bytes decide the format, not the suffix. The size is bounded before anything is
decoded, and every error inside Pillow becomes a LabelMapError that names the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path

from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from spade_deploy.errors import ImageTooLargeError, LabelMapError, SpadeError, reason_of
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
"""The size of an uncompressed image of MAX_PIXELS with four channels of 16 bits."""

_MAX_SCANNED_PIXELS = 20 * MAX_PIXELS  # pixels times scans of a progressive JPEG, which has about ten scans
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each EXIF orientation, how the image is turned upright."""


@dataclass(frozen=True)
class ImageBytes:
    """An image that somebody sent: it is read as a file of these bytes would be."""

    name: str
    """What messages call it."""

    content: bytes = field(repr=False)
    """The bytes of the file."""

    most_pixels: int = MAX_PIXELS
    """The largest number of pixels that is decoded."""

    def __str__(self) -> str:
        return self.name


ImageSource = Path | ImageBytes
"""Where an image is read from."""


@dataclass(frozen=True)
class OpenedImage:
    """An image file that is open, whose size was checked, and that is not decoded yet."""

    path: ImageSource
    """Where it lies."""

    stream: BufferedReader
    """Its bytes."""

    image: ImageFile
    """Pillow's image of it."""

    png: PngFacts | None = None
    """The facts from the chunks of a PNG file; None for other formats."""

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
        """How many images it holds: an animation has more than one."""
        return self.png.frames if self.png else int(getattr(self.image, "n_frames", 1))

    @property
    def orientation(self) -> int:
        """The orientation by EXIF, 2..8, which says how a viewer turns the stored pixels; 1 if there is none."""
        info = self.image.info
        exif, xmp = (self.png.exif, self.png.xmp) if self.png else (b"", b"")
        exif = exif or info.get("exif", b"") or hexadecimal_exif(info.get("Raw profile type exif", ""))
        found = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        if found is None:
            xmp = xmp or info.get("xmp", b"") or info.get("XML:com.adobe.xmp", "")
            text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
            match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', text)
            found = int(match[1]) if match else 1
        return found if found in TURNS else 1

    def require_whole(self) -> None:
        """Raise ValueError where the file is a PNG whose pixels are not those that were written."""
        if self.png:
            png_file.require_whole(self.stream, self.png)

    @property
    def size(self) -> Size:
        """(height, width) as stored."""
        return self.image.height, self.image.width


@contextmanager
def opened(path: ImageSource, what: str) -> Iterator[ImageFile]:
    """Like `opened_image`, but gives only Pillow's image."""
    with opened_image(path, what) as file:
        yield file.image


@contextmanager
def opened_image(path: ImageSource, what: str) -> Iterator[OpenedImage]:
    """Open an image file and check its size; it is not decoded yet. Do nothing but decoding inside the block.

    Every exception of the block becomes a LabelMapError: on damaged data Pillow raises OSError, SyntaxError,
    ValueError, struct.error, zlib.error, EOFError, IndexError, MemoryError and more, and promises no list.
    """
    try:
        with _stream_of(path) as stream:
            plugin = _plugin(stream.read(16), path, what)
            found = stream.seek(0, os.SEEK_END)
            if found > MAX_FILE_BYTES:
                raise LabelMapError(f"{path}: {found:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
            facts = png_file.png_facts(stream) if plugin is PngImagePlugin.PngImageFile else None
            if facts:
                _refuse_large(path, facts.width, facts.height)
            elif plugin is WebPImagePlugin.WebPImageFile:
                _refuse_large(path, *webp_size(stream))  # the decoder allocates the whole canvas at once
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
        raise LabelMapError(f"{path}: the {what} is damaged or cannot be read ({reason_of(error)})") from error


def _stream_of(source: ImageSource) -> BufferedReader:
    if isinstance(source, ImageBytes):
        return BufferedReader(BytesIO(source.content))
    return open_regular(source)


def _first_bytes(stream: BufferedReader, count: int) -> bytes:
    stream.seek(0)
    return stream.read(count)


def _refuse_large(path: ImageSource, width: int, height: int) -> None:
    most = path.most_pixels if isinstance(path, ImageBytes) else MAX_PIXELS
    if width * height > most:
        raise ImageTooLargeError(
            f"{path}: {width} x {height} pixels are more than the {most} that are read",
            hint="resize it, label maps with nearest-neighbour interpolation",
        )


def _plugin(head: bytes, path: ImageSource, what: str) -> type[ImageFile]:
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


def refuse_slow_scans(file: OpenedImage) -> None:
    """Raise ValueError for a JPEG that goes through its pixels more often than any program makes it."""
    if file.image.format != "JPEG" or not file.image.info.get("progressive"):
        return
    place = file.stream.tell()
    scans = jpeg_scans(file.stream)
    file.stream.seek(place)
    if scans > MAX_JPEG_SCANS or scans * file.image.width * file.image.height > _MAX_SCANNED_PIXELS:
        raise ValueError(f"it goes through its pixels {scans} times")
