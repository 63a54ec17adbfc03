"""How a discriminator is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spade_deploy.fields import from_json, to_json
from spade_deploy.settings import check_ranges, setting
from spade_deploy.spec.generator import NETWORK


@dataclass(frozen=True)
class DiscriminatorSpec:
    """How the discriminator is built: several patch discriminators, which look at the image at several scales."""

    scales: int = setting(
        2,
        help="Number of patch discriminators, each on an image of half the size.",
        group=NETWORK,
        flag="discriminator-scales",
        least=1,
        most=6,
    )

    layers: int = setting(
        4,
        help="Number of convolutions in each discriminator before its scores.",
        group=NETWORK,
        flag="discriminator-layers",
        least=2,
        most=8,
    )
    """They are 4x4; one more makes the scores. All but one of them halve the image."""

    base_channels: int = setting(
        64,
        help="Width of the discriminator; the paper has 64.",
        group=NETWORK,
        flag="discriminator-channels",
        least=1,
        most=1024,
    )
    """Channels of the first layer; they double up to eight times that."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> DiscriminatorSpec:
        """Read a spec from JSON. Raises ConfigError if a field is unknown or of another type."""
        return from_json(cls, value, "discriminator spec")
