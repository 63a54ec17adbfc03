"""Choose and check the height and width that a model runs at."""

from __future__ import annotations

from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.spec import GeneratorSpec


def checked_size(spec: GeneratorSpec, size: Size | None) -> Size:
    """The size to run at: the model's own for None. Raises ConfigError for one that the model cannot run at."""
    own = (spec.height, spec.width)
    if size is None or size == own:
        return own
    if not spec.is_dynamic:
        raise ConfigError(
            f"`size`: this model runs at {own[0]}x{own[1]} only (its style vector fixes the size)",
            hint="leave the flag out",
        )
    for part in size:
        if not spec.takes_side(part):
            raise ConfigError(
                f"`size`: {part} of {size[0]}x{size[1]} is not a {spec.side_rule}, as this model needs",
                hint=f"it was trained at {spec.height}x{spec.width}",
            )
    return size
