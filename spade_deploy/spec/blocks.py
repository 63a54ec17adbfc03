"""The residual blocks of SPADE's generator, and of those that have its blocks: names, channels and sizes."""

from __future__ import annotations

from collections.abc import Sequence
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

    hidden_channels: int
    """Channels inside each of its modulations; without a meaning in CLADE."""

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


def usual_widths(base_channels: int, upsampling: Upsampling) -> tuple[int, ...]:
    """The channels of each level of SPADE as in its paper: of the first three blocks, then of each `up_` block."""
    halvings = 5 if upsampling is Upsampling.MOST else 4
    return tuple(16 * base_channels >> level for level in range(halvings + 1))


def least_base(widths: Sequence[int], upsampling: Upsampling) -> int:
    """The smallest even number of base channels for which no level is wider than usual."""
    # With 'most' the last of six levels has half of the base channels.
    units = usual_widths(2, upsampling)
    return 2 * max(-(-width // unit) for width, unit in zip(widths, units, strict=False))


def spade_blocks(widths: Sequence[int], hidden: Sequence[int], upsampling: Upsampling) -> tuple[BlockSpec, ...]:
    """Those of SPADE in the order they run; figure 4 of its paper.

    widths, hidden: the channels of each level and those inside its modulation, as `usual_widths` orders them.
    """
    blocks, stride = [], 1 << upsampling.doublings
    for name, doubled in (("head_0", False), ("G_middle_0", True), ("G_middle_1", upsampling is not Upsampling.NORMAL)):
        stride = stride // 2 if doubled else stride
        blocks.append(BlockSpec(name, widths[0], widths[0], hidden[0], stride, doubled))
    for number, ((wide, out), inside) in enumerate(zip(pairwise(widths), hidden[1:], strict=True)):
        stride //= 2
        blocks.append(BlockSpec(f"up_{number}", wide, out, inside, stride, True))
    return tuple(blocks)


def oasis_blocks(base_channels: int, hidden_channels: int) -> tuple[BlockSpec, ...]:
    """Those of OASIS in the order they run: each but the first doubles."""
    pairs = list(pairwise(base_channels * width for width in OASIS_WIDTHS))
    last = len(pairs) - 1
    return tuple(
        BlockSpec(f"body.{number}", wide, out, hidden_channels, 1 << (last - number), number > 0)
        for number, (wide, out) in enumerate(pairs)
    )
