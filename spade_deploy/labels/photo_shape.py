"""The size that a generator is trained at, chosen by the shape of the photos."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import Size, photo_size

USUAL_PIXELS = 256 * 256
"""The pixels of an image in the paper's experiments, which a chosen size is near."""
LOOKED_AT = 100
"""Of so many photos, evenly spaced, the headers are read."""

_MOST_PIXELS = 1.25  # times the pixels that are aimed at
_PIXELS_MATTER = 0.1  # how much the number of pixels counts against the shape


@dataclass(frozen=True)
class PhotoShape:
    """The shape of a data set's photos."""

    height: int
    """The median of their heights in pixels."""
    width: int
    """The median of their widths."""
    are_alike: bool
    """Whether all have nearly the same ratio of width to height."""

    def size_for(self, stride: int, least: int) -> Size:
        """(height, width), multiples of `stride` from `least` on, of nearly this shape and the paper's pixels.

        Photos of fewer pixels are not enlarged.
        """
        wanted = min(USUAL_PIXELS, self.height * self.width)
        ratio = self.width / self.height
        sides = range(least, max(least, 4 * math.isqrt(USUAL_PIXELS)) + 1, stride)
        sizes = [(height, width) for height in sides for width in sides]
        allowed = [size for size in sizes if size[0] * size[1] <= _MOST_PIXELS * wanted] or [(least, least)]

        def badness(size: Size) -> float:
            shape = abs(math.log(size[1] / size[0] / ratio))
            return shape + _PIXELS_MATTER * abs(math.log(size[0] * size[1] / wanted))

        return min(allowed, key=badness)

    @property
    def described(self) -> str:
        """For people: 'the photos are 480 x 640'."""
        many = "the photos are" if self.are_alike else "the photos have several shapes, in the middle"
        return f"{many} {self.height} x {self.width}"


def shape_of(photos: Sequence[Path]) -> PhotoShape | None:
    """The shape of these photos, by the headers of some; None if no header can be read."""
    count = min(len(photos), LOOKED_AT)
    sizes = []
    for index in range(count):
        try:
            sizes.append(photo_size(photos[index * len(photos) // count]))
        except LabelMapError:  # it is reported when it is used
            continue
    if not sizes:
        return None
    ratios = [width / height for height, width in sizes]
    middle = sorted(range(len(sizes)), key=lambda n: ratios[n])[len(sizes) // 2]
    height = round(statistics.median(size[0] for size in sizes))
    are_alike = max(ratios) <= 1.05 * min(ratios)
    width = round(statistics.median(size[1] for size in sizes)) if are_alike else round(height * ratios[middle])
    return PhotoShape(height, width, are_alike)
