"""Read image files that somebody else made: their samples as they are stored, or upright RGB photos.

`opened` bounds what is read; every error is a LabelMapError that names the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from spade_deploy.errors import LabelMapError
from spade_deploy.images import png_file
from spade_deploy.images.opened import (
    TURNS,
    ImageBytes,
    ImageSource,
    OpenedImage,
    Size,
    opened_image,
    refuse_slow_scans,
)
from spade_deploy.images.png_file import PngFacts

__all__ = [
    "ImageBytes",
    "ImageSource",
    "Samples",
    "Size",
    "check_photo",
    "image_size",
    "photo_size",
    "read_photo",
    "read_samples",
    "size_beside",
]

_INTEGER_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True)
class Samples:
    """The numbers that an image file holds, not what a viewer makes of them."""

    kind: str
    """The kind of pixels, for messages: 'RGB, 16 bit'."""

    values: NDArray[Any] | None
    """H x W, uint8 or int32; None for a colour image."""

    colors: NDArray[Any] | None
    """H x W x 3, uint8 or uint16; None if it is no colour image."""

    palette: tuple[tuple[int, int, int], ...] = ()
    """The colour of each index; empty for a file without a palette."""

    grey_scale: int = 1
    """The factor by which a viewer multiplies the values."""

    transparent: int = 0
    """How many pixels of a colour image are not opaque."""

    is_lossy: bool = False
    """Whether the pixels went through lossy compression."""

    is_jpeg: bool = False
    """Whether it is a JPEG."""

    frames: int = 1
    """How many images it holds: an animation has more than one."""

    orientation: int = 1
    """The orientation by EXIF, which says how a viewer turns the pixels; 1 leaves them as they are."""


def read_samples(path: ImageSource, what: str) -> Samples:
    """Decode an image file into its own numbers. what: the kind of file, for messages. Raises LabelMapError."""
    with opened_image(path, what) as file:
        image, png = file.image, file.png
        refuse_slow_scans(file)
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


def read_photo(path: ImageSource, size: Size | None = None) -> NDArray[np.uint8]:
    """RGB pixels, H x W x 3 uint8, turned upright as EXIF says; `size` resizes with bicubic.

    Of samples of 16 bits the upper eight are taken. Grey, palette and CMYK are converted. Raises LabelMapError, also
    for an animation and for a photo with transparent pixels, as their colour is not known.
    """
    with opened_image(path, "photo") as file:
        orientation = file.orientation
        file.require_whole()
        _refuse_unclear_photo(file)
        rgb = _rgb(file)
        if orientation != 1:
            rgb = rgb.transpose(TURNS[orientation])
        if size is not None:
            rgb = rgb.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return np.array(rgb, dtype=np.uint8)


def check_photo(path: Path) -> int:
    """The EXIF orientation of a photo that can be read; raises LabelMapError where `read_photo` would.

    A JPEG is decoded at an eighth of its size, which is faster and finds damage all the same.
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
    """A sentence if a photo (upright) or instance map has another size than its label map, else None.

    Raises LabelMapError.
    """
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
    refuse_slow_scans(file)
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
            " the file does not say what is behind them",
            hint="save it without transparency (alpha), on the background that it should have",
        )


def _alpha(image: ImageFile) -> NDArray[np.uint8] | None:
    """The opacity of every pixel; None if the file has no transparency at all."""
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
