"""The shapes that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import of_type
from spade_deploy.spec.sizes import is_number

Extent = tuple[int, int, int]
"""Batch, height, width."""


@dataclass(frozen=True)
class ShapeProfile:
    """Batch, height and width that an engine takes: from one extent to another, tuned for a third."""

    least: Extent
    """The smallest batch, height and width."""

    best: Extent
    """The batch, height and width that the engine is tuned for."""

    most: Extent
    """The largest batch, height and width."""

    def __post_init__(self) -> None:
        for axis, (low, middle, high) in enumerate(zip(self.least, self.best, self.most, strict=True)):
            if not 1 <= low <= middle <= high:
                what = ("batch", "height", "width")[axis]
                raise ConfigError(f"`profile`: {what} {low}, {middle}, {high} of {self} do not rise from 1 on")

    @classmethod
    def parse(cls, text: str) -> ShapeProfile:
        """'1x256x256:4x256x256:16x512x512', or one extent for all three. Raises ConfigError."""
        parts = [part.split("x") for part in text.lower().split(":")]
        if len(parts) not in (1, 3) or any(
            len(part) != 3 or not all(is_number(number) for number in part) for part in parts
        ):
            raise ConfigError(
                f"`profile`: {quoted(text)} is not MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH",
                hint="`profile` 1x256x256:4x256x256:16x512x512, or `profile` 1x256x256 for a single shape",
            )
        extents = [(int(batch), int(height), int(width)) for batch, height, width in parts]
        return cls(*(extents if len(extents) == 3 else extents * 3))

    def to_json(self) -> str:
        return str(self)

    @classmethod
    def from_json(cls, value: Any) -> ShapeProfile:
        """Read a profile from JSON. Raises ConfigError unless it is a text that `parse` reads."""
        return cls.parse(of_type(value, str, "profile"))

    def contains(self, batch: int, height: int, width: int) -> bool:
        sizes = zip(self.least, (batch, height, width), self.most, strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def __str__(self) -> str:
        return ":".join("x".join(map(str, extent)) for extent in (self.least, self.best, self.most))
