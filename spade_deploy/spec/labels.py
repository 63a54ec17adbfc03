"""The meaning of the integers in a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.fields import from_json, to_json
from spade_deploy.settings import check_range

Rgb = tuple[int, int, int]

UNKNOWN_VALUE = 255
"""The value that label files use for 'unknown'."""


_LARGEST_VALUE = 65535


@dataclass(frozen=True)
class LabelSpec:
    """What the integers of a label map mean, and what the network makes of them."""

    num_labels: int
    """How many classes there are, 1 to 4096; the ids 0 to num_labels - 1 stand for them."""

    has_dontcare: bool = False
    """Whether unknown pixels, 255 in files, have a channel of their own, with the id `num_labels`."""

    has_edges: bool = False
    """Whether the network's last channel is the edge map of an instance map."""

    names: tuple[str, ...] = ()
    """The name of each id, that of unknown pixels included; or empty."""

    palette: tuple[Rgb, ...] = ()
    """The colour of each id, that of unknown pixels included, RGB in 0..255; or empty."""

    ignore_id: int | None = None
    """The value in label files that means unknown, as 255 does; None if 255 alone does."""

    def __post_init__(self) -> None:
        check_range("num_labels", self.num_labels, 1, 4096)
        if self.ignore_id is not None:
            check_range("ignore_id", self.ignore_id, 0, _LARGEST_VALUE)
            if not self.has_dontcare:
                raise ConfigError(f"`ignore_id` {self.ignore_id} needs `has_dontcare`, the channel of unknown pixels")
        for name, entries in (("names", self.names), ("palette", self.palette)):
            if entries and len(entries) != self.num_ids:
                raise ConfigError(
                    f"label {name}: {len(entries)} entries for {self.num_ids} ids"
                    f" ({self.num_labels} labels{' and dontcare' if self.has_dontcare else ''})"
                )
        for color in self.palette:
            if len(color) != 3 or not all(0 <= part <= 255 for part in color):
                raise ConfigError(f"label palette: {quoted(color)} is not three numbers in 0..255")

    @property
    def num_ids(self) -> int:
        """How many ids the network's input may hold: 0 to num_ids - 1."""
        return self.num_labels + int(self.has_dontcare)

    @property
    def id_type(self) -> str:
        """The type of an array or tensor of ids: 'uint8' where every id fits, else 'int32'."""
        return "uint8" if self.num_ids <= 256 else "int32"

    @property
    def num_channels(self) -> int:
        """Channels of the segmap: ids, then the edge channel."""
        return self.num_ids + int(self.has_edges)

    @property
    def unknown_id(self) -> int | None:
        """The id that 255 in a file becomes, or None where unknown pixels are an error."""
        return self.num_labels if self.has_dontcare else None

    def name_of(self, label_id: int) -> str:
        return self.names[label_id] if self.names else f"label {label_id}"

    @property
    def unknown_values(self) -> frozenset[int]:
        """The values in label files that mean unknown and become `unknown_id`; empty without such an id.

        255 is one only where it is no ordinary id.
        """
        if not self.has_dontcare:
            return frozenset()
        usual = {UNKNOWN_VALUE} if self.num_ids <= UNKNOWN_VALUE else set()
        return frozenset(usual | ({self.ignore_id} if self.ignore_id is not None else set()))

    def to_json(self) -> dict[str, Any]:
        value = to_json(self)
        if self.ignore_id is None:  # so that older versions read the files of models that do not need it
            del value["ignore_id"]
        return value

    @classmethod
    def from_json(cls, value: Any) -> LabelSpec:
        """Read a spec from JSON. Raises ConfigError if a field is missing, unknown or of another type."""
        return from_json(cls, value, "label spec")
