"""The residual blocks of SPADE's generator, and of those that have its blocks: names, channels and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from spade_deploy.spec.architectures import OASIS_WIDTHS
from spade_deploy.spec.choices import Upsampling


@dataclass(frozen=True)
class BlockSpec:
    """One residual block of the generator of SPADE, or of one whose modulation is another."""

    name: str
    """Its name in the trained weights, such as `up_0`."""

    in_channels: int
    """Channels of its input."""

    out_channels: int
    """Channels of its output."""

    stride: int
    """Output pixels of the generator per pixel of this block's features."""

    doubles: bool
    """Whether the features are doubled in height and width before the block."""

    @property
    def middle_channels(self) -> int:
        return min(self.in_channels, self.out_channels)

    @property
    def has_shortcut(self) -> bool:
        """Whether the shortcut is learned: it is where the number of channels changes."""
        return self.in_channels != self.out_channels


def spade_blocks(base_channels: int, upsampling: Upsampling) -> tuple[BlockSpec, ...]:
    """Those of SPADE in the order they run; figure 4 of its paper."""
    doubles = [False, True, upsampling is not Upsampling.NORMAL, *[True] * 4]
    names = ["head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3"]
    if upsampling is Upsampling.MOST:
        names, doubles = [*names, "up_4"], [*doubles, True]
    blocks, stride, width = [], 1 << upsampling.doublings, 16 * base_channels
    for name, doubled in zip(names, doubles, strict=True):
        stride = stride // 2 if doubled else stride
        out = width // 2 if name.startswith("up_") else width
        blocks.append(BlockSpec(name, width, out, stride, doubled))
        width = out
    return tuple(blocks)


def oasis_blocks(base_channels: int) -> tuple[BlockSpec, ...]:
    """Those of OASIS in the order they run: each but the first doubles."""
    pairs = list(pairwise(base_channels * width for width in OASIS_WIDTHS))
    last = len(pairs) - 1
    return tuple(
        BlockSpec(f"body.{number}", wide, out, 1 << (last - number), number > 0)
        for number, (wide, out) in enumerate(pairs)
    )
