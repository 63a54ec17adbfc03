"""How a student is built: as its teacher, with the widths that are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.settings import as_typed
from spade_deploy.spec import GeneratorSpec, least_base
from spade_deploy.training.distillation.request import DistillRequest


def student_spec(asked: DistillRequest, teacher: GeneratorSpec, size: Size) -> GeneratorSpec:
    """The student's network: its teacher's, narrower, for images of `size`. Raises ConfigError for other widths."""
    asked = _with_bounds(asked, teacher)
    if asked.base_channels is None:
        raise ConfigError(
            "it is not said how wide the student is to be",
            hint=f"give `base_channels` N, at most {teacher.base_channels}, or `mac_budget`, such as 20G",
        )
    widths: dict[str, Any] = {"base_channels": asked.base_channels}
    if teacher.has("hidden_channels"):
        narrowed = max(1, round(teacher.hidden_channels * asked.base_channels / teacher.base_channels))
        widths["hidden_channels"] = narrowed if asked.hidden_channels is None else asked.hidden_channels
    elif asked.hidden_channels is not None:
        raise ConfigError(
            f"`hidden_channels` {asked.hidden_channels}: {teacher.architecture} has none", hint="leave it out"
        )
    check_widths(teacher, **widths)
    if not teacher.is_dynamic and size != (teacher.height, teacher.width):
        raise ConfigError(
            f"`size`: the teacher makes {teacher.height} x {teacher.width} only (its style vector fixes the size)",
            hint="leave `size` out",
        )
    levels = {"level_channels": asked.level_channels, "level_hidden": asked.level_hidden}
    spec = replace(teacher, **{**widths, **levels}, height=size[0], width=size[1])
    for name in levels:
        own, most = (one.widths if name == "level_channels" else one.hidden_widths for one in (spec, teacher))
        if any(width > limit for width, limit in zip(own, most, strict=True)):
            raise ConfigError(
                f"`{name}` {as_typed(own)}: a student is not wider than its teacher, whose levels have"
                f" {as_typed(most)}",
                hint="give less",
            )
    return spec


def check_widths(teacher: GeneratorSpec, **widths: int | None) -> None:
    """Raise ConfigError for a width that is larger than the teacher's; None is not given."""
    for name, width in widths.items():
        if width is not None and width > getattr(teacher, name):
            raise ConfigError(
                f"`{name}` {width}: a student is not wider than its teacher, which has {getattr(teacher, name)}",
                hint="give less",
            )


def _with_bounds(asked: DistillRequest, teacher: GeneratorSpec) -> DistillRequest:
    """The request with the base and hidden channels that follow from the widths of levels, where those are given."""
    for name in ("level_channels", "level_hidden"):
        if getattr(asked, name) is not None and not teacher.has(name):
            raise ConfigError(
                f"`{name}`: {teacher.architecture} has no levels whose widths can be chosen one by one, as spade has",
                hint="give `base_channels` N",
            )
    if asked.level_channels is not None and asked.base_channels is None:
        asked = replace(asked, base_channels=least_base(asked.level_channels, teacher.upsampling))
    if asked.level_hidden is not None and asked.hidden_channels is None:
        asked = replace(asked, hidden_channels=max(asked.level_hidden))
    return asked
