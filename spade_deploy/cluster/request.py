"""What every command that runs on Ray is asked: which cluster, and how many workers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from spade_deploy.errors import ConfigError
from spade_deploy.settings import check_ranges, setting

ANY = "auto"
"""The address that means: the cluster of RAY_ADDRESS or of this machine, else a new one on this machine."""
GROUP = "Ray"
"""The heading of these options in `--help`."""


@dataclass(frozen=True, kw_only=True)
class RayRequest:
    """Whether a command runs on a Ray cluster, and on how many workers."""

    ray: str | None = setting(
        None,
        help="Use a Ray cluster; without a value, that of RAY_ADDRESS or of this machine.",
        metavar="[ADDRESS]",
        bare=ANY,
        group=GROUP,
    )
    ray_workers: int | None = setting(
        None,
        help="Workers on the cluster; default: as many as it has room for, in training one per GPU or node.",
        least=1,
        group=GROUP,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.ray is None:
            for one in fields(self):
                if (value := getattr(self, one.name)) != one.default:
                    raise ConfigError(f"`{one.name}` {value} is for a Ray cluster", hint="add `ray`, or leave it out")
