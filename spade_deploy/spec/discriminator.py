"""How a discriminator is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import from_json, to_json


@dataclass(frozen=True)
class DiscriminatorSpec:
    """How the discriminator is built: several patch discriminators, which look at the image at several scales."""

    scales: int = 2
    """How many patch discriminators there are, each on an image half as large as the one before; 1 to 6."""

    layers: int = 4
    """The 4x4 convolutions of each, without the last, which makes the scores; 2 to 8. All but one halve the image."""

    base_channels: int = 64
    """Channels of the first layer, 1 to 1024; they double up to eight times that."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("discriminator_scales", self.scales, 1, 6),
            ("discriminator_layers", self.layers, 2, 8),
            ("discriminator_channels", self.base_channels, 1, 1024),
        ):
            if not low <= value <= high:
                raise ConfigError(f"`{name}`: {quoted(value)} is not in {low}..{high}")

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> DiscriminatorSpec:
        """Raises ConfigError where a field is unknown or of another type."""
        return from_json(cls, value, "discriminator spec")
