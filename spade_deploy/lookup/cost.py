"""How many multiply-adds an image costs, by the dense graph and by the lookup graph, from widths and windows alone.

Counted are the products of convolutions and matrices. A sum of table rows has no products and costs nothing here: the
first convolution of the lookup graph, and its hidden rows. Nor do normalisation, modulation and activations count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.spec import Architecture, BlockSpec, GeneratorSpec

TAPS = 9
"""The first convolution, those of a residual block and the last one are 3 x 3, whatever the kernel inside SPADE."""


def mean_windows(spec: GeneratorSpec, label: NDArray[Any], instance: NDArray[Any] | None = None) -> dict[int, float]:
    """The mean number of distinct large windows of a map at each stride, each map for itself.

    label, instance: N x H x W. Widths have no part in it. Raises InputRefusedError as `extract_patterns` does.
    """
    totals: dict[int, float] = {}
    for row in range(len(label)):
        one = slice(row, row + 1)
        tables = extract_patterns(spec, label[one], None if instance is None else instance[one])
        assert tables is not None  # no share was set at which it gives up
        for stride, level in tables.levels.items():
            totals[stride] = totals.get(stride, 0.0) + len(level.patterns) / len(label)
    return totals


def dense_macs(spec: GeneratorSpec) -> float:
    """Multiply-adds of an image of the spec's size by the dense graph: of SPADE's residual blocks, with any modulation.

    Of an edge channel and of CLADE's positions, the few products are not counted.
    """
    pixels = spec.height * spec.width
    total = _shared_macs(spec)
    if spec.is_dynamic:
        total += TAPS * spec.modulation_channels * spec.latent_channels * pixels / spec.stride**2
    for block in spec.blocks:
        own = pixels / block.stride**2
        total += own * _modulation(spec, block, folded=False)
        if spec.architecture is not Architecture.CLADE:
            count = 3 if block.has_shortcut else 2
            total += own * count * spec.kernel_size**2 * spec.modulation_channels * block.hidden_channels
    return total


def lookup_macs(spec: GeneratorSpec, windows: Mapping[int, float]) -> float:
    """Multiply-adds of an image of the spec's size by the lookup graph, one image a run.

    windows: how many distinct large windows there are at each stride, as `mean_windows` finds them.
    """
    total = _shared_macs(spec)
    for block in spec.blocks:
        own = windows[block.stride]
        total += own * _modulation(spec, block, folded=True)
    return total


def _shared_macs(spec: GeneratorSpec) -> float:
    """What both graphs compute for every pixel: the residual blocks' convolutions, and the last one."""
    pixels = spec.height * spec.width
    total = float(TAPS) * spec.blocks[-1].out_channels * 3 * pixels
    if not spec.is_dynamic and spec.z_dim is not None:
        total += spec.z_dim * spec.latent_channels * spec.latent_height * spec.latent_width
    for block in spec.blocks:
        middle = block.middle_channels
        products = TAPS * middle * (block.in_channels + block.out_channels)
        if block.has_shortcut:
            products += block.in_channels * block.out_channels
        total += products * pixels / block.stride**2
    return total


def _norms(block: BlockSpec, *, folded: bool) -> list[tuple[int, int]]:
    """The channels of gamma and of beta of each norm of a block.

    folded: in the lookup graph, beta of the shortcut goes through its convolution beforehand.
    """
    found = [(block.in_channels, block.in_channels), (block.middle_channels, block.middle_channels)]
    if block.has_shortcut:
        found.append((block.in_channels, block.out_channels if folded else block.in_channels))
    return found


def _modulation(spec: GeneratorSpec, block: BlockSpec, *, folded: bool) -> float:
    """Products for gamma and beta of a block, of one pixel or window; CLADE takes them from a table."""
    if spec.architecture is Architecture.CLADE:
        return 0.0
    channels = sum(gamma + beta for gamma, beta in _norms(block, folded=folded))
    return float(spec.kernel_size**2 * block.hidden_channels * channels)
