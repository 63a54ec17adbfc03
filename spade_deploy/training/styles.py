"""Draw random styles, which depend only on the seed, the purpose and the step."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

STYLE_NOISE, SAMPLE_STYLE, SEARCH_STYLE = 1, 2, 3
"""The purposes of styles: a training step, sample grids, and the search for widths. Each purpose has random numbers of
its own."""


def normal_styles(seed: int, purpose: int, step: int, count: int, length: int) -> Tensor:
    """Standard normal styles, count x length, on the CPU."""
    numbers = torch.Generator().manual_seed(_mixed(seed, purpose, step))
    return torch.randn(count, length, generator=numbers)


def _mixed(seed: int, purpose: int, step: int) -> int:
    """A 63-bit seed made of three numbers; neighbouring steps get unrelated seeds."""
    digest = hashlib.blake2b(f"{seed} {purpose} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
