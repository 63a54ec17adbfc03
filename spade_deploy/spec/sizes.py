"""How large an image and a batch may be, and how a size is written."""

from __future__ import annotations

from spade_deploy.errors import ConfigError, quoted

MAX_SIDE = 8192
"""The largest height and width in pixels, of models, label maps and photos; the paper's largest is 512."""

MAX_BATCH = 4096
"""The most images that a network computes at once."""

_MAX_DIGITS = 9


def parse_size(text: str) -> tuple[int, int]:
    """'256x512' -> (height, width) in pixels; '256' is square. Raises ConfigError."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(is_number(part) and int(part) > 0 for part in parts):
        raise ConfigError(f"`size`: {quoted(text)} is not HEIGHTxWIDTH in pixels, such as 256x512")
    return int(parts[0]), int(parts[-1])


def is_number(text: str) -> bool:
    """Whether `text` is a whole number of at most nine plain digits."""
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
