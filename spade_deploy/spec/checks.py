"""What a generator's spec is refused for, with messages that name the field."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.settings import check_range
from spade_deploy.spec.architectures import CASCADES, FOREIGN, NORMS
from spade_deploy.spec.choices import Architecture
from spade_deploy.spec.sizes import MAX_SIDE

if TYPE_CHECKING:
    from spade_deploy.spec.generator import GeneratorSpec

MAX_BASE_CHANNELS = 1024
"""Sixteen times as many as in the paper: the widest layer then has 16,384 channels, and 9 GB of weights."""

MAX_HIDDEN_CHANNELS = 8192
MAX_STYLE_LENGTH = 65_536


def check_generator(spec: GeneratorSpec) -> None:
    """Raise ConfigError for the first field with a value that no generator of the architecture can have."""
    if not 2 <= spec.base_channels <= MAX_BASE_CHANNELS or spec.base_channels % 2:
        raise ConfigError(
            f"`base_channels`: {quoted(spec.base_channels)} is not an even number in 2..{MAX_BASE_CHANNELS}"
        )
    check_range("hidden_channels", spec.hidden_channels, 1, MAX_HIDDEN_CHANNELS)
    if spec.kernel_size not in (1, 3, 5):
        raise ConfigError(f"`kernel_size`: {quoted(spec.kernel_size)} is not 1, 3 or 5")
    if spec.z_dim is not None:
        check_range("z_dim", spec.z_dim, 1, MAX_STYLE_LENGTH)
    check_range("halvings", spec.halvings, 1, 8)
    check_range("residual_blocks", spec.residual_blocks, 1, 100)
    check_range("enhancer_blocks", spec.enhancer_blocks, 0, 100)
    _check_architecture(spec)
    _check_levels(spec)
    for name, size in (("height", spec.height), ("width", spec.width)):
        if size > MAX_SIDE:
            raise ConfigError(f"`size`: {name} {quoted(size)} is more than {MAX_SIDE} pixels")
        if not spec.takes_side(size):
            how = f"upsampling {spec.upsampling} doubles {spec.upsampling.doublings} times"
            if spec.architecture is Architecture.PIX2PIXHD:
                how = f"{spec.architecture} halves {spec.doublings} times"
            raise ConfigError(f"`size`: {name} {quoted(size)} is not a {spec.side_rule} ({how})")


def default_of(kind: type[GeneratorSpec], name: str) -> Any:
    """The default of a field."""
    return next(field.default for field in fields(kind) if field.name == name)


def _check_architecture(spec: GeneratorSpec) -> None:
    """Raise ConfigError for a field that the architecture does not have."""
    hint = "leave the option out; in Python, `with_architecture` resets what an architecture does not have"
    allowed = NORMS[spec.architecture]
    if spec.norm not in allowed:
        raise ConfigError(
            f"`architecture` {spec.architecture} contradicts `norm` {spec.norm}; it has {', '.join(allowed)}",
            hint=hint,
        )
    for name in FOREIGN[spec.architecture]:
        value = getattr(spec, name)
        if value != default_of(type(spec), name):
            raise ConfigError(
                f"`architecture` {spec.architecture} contradicts {_named(name, value)}; it has no such part",
                hint=hint,
            )
    if spec.architecture in CASCADES and spec.spectral_norm:
        raise ConfigError(
            f"`architecture` {spec.architecture} contradicts `spectral_norm`; its layer norm bounds the features",
            hint=hint,
        )


def _check_levels(spec: GeneratorSpec) -> None:
    """Raise ConfigError for widths of levels that are too many, too wide, or do not descend."""
    most = {"level_channels": spec.usual_widths, "level_hidden": (spec.hidden_channels,) * len(spec.usual_widths)}
    bounds = {"level_channels": "base_channels", "level_hidden": "hidden_channels"}
    for name, limits in most.items():
        widths = getattr(spec, name)
        if widths is None:
            continue
        told = ",".join(map(str, widths))
        if len(widths) != len(limits):
            raise ConfigError(
                f"`{name}` {quoted(told)}: {len(widths)} widths, and there are {len(limits)} levels with upsampling"
                f" {spec.upsampling}",
                hint=f"give {len(limits)} widths, coarsest level first",
            )
        for level, (width, limit) in enumerate(zip(widths, limits, strict=True), 1):
            if not 1 <= width <= limit:
                raise ConfigError(
                    f"`{name}` {quoted(told)}: width {width} of level {level} is not in 1..{limit}, which is what"
                    f" `{bounds[name]}` {getattr(spec, bounds[name])} allows",
                    hint="give less for this level",
                )
    if spec.level_channels is not None and any(one <= other for one, other in pairwise(spec.level_channels)):
        raise ConfigError(
            f"`level_channels` {quoted(','.join(map(str, spec.level_channels)))}: widths that do not descend",
            hint="each level is narrower than the one before it, since its residual block learns a shortcut",
        )


def _named(name: str, value: object) -> str:
    # A request does not ask for the style vector's length, but for one of the two ways of having a style vector.
    return "`vae` or `first_input` noise" if name == "z_dim" else f"`{name}` {value}"
