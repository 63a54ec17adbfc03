"""Compute from the spec alone how many trained numbers a generator has. `spade inspect` compares a file with it.

The networks themselves need PyTorch, and `inspect` must run without it; a test compares these formulas with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from spade_deploy.spec.choices import Architecture, NormType
from spade_deploy.spec.generator import (
    PIX2PIXHD_BLOCKS,
    PIX2PIXHD_EDGE_KERNEL,
    PIX2PIXHD_HALVINGS,
    BlockSpec,
    GeneratorSpec,
)


def parameter_count(spec: GeneratorSpec) -> int:
    """Trained numbers of a generator, from its spec alone: the weights and biases of convolutions and norms."""
    return PARAMETER_COUNTS[spec.architecture](spec)


def _spade_count(spec: GeneratorSpec) -> int:
    channels, hidden, kernel = spec.labels.num_channels, spec.hidden_channels, spec.kernel_size

    def convolution(inputs: int, outputs: int, size: int) -> int:
        return inputs * outputs * size * size + outputs

    def spade(features: int) -> int:
        return convolution(channels, hidden, kernel) + 2 * convolution(hidden, features, kernel)

    def residual(block: BlockSpec) -> int:
        inputs, middle, outputs = block.in_channels, block.middle_channels, block.out_channels
        main = convolution(inputs, middle, 3) + convolution(middle, outputs, 3) + spade(inputs) + spade(middle)
        return main + (inputs * outputs + spade(inputs) if block.has_shortcut else 0)

    widest = spec.blocks[0].in_channels
    if spec.z_dim is None:
        first = convolution(channels, widest, 3)
    else:
        first = (spec.z_dim + 1) * widest * spec.latent_height * spec.latent_width
    return first + sum(map(residual, spec.blocks)) + convolution(spec.blocks[-1].out_channels, 3, 3)


def _pix2pixhd_count(spec: GeneratorSpec) -> int:
    base = spec.base_channels
    wide = base << PIX2PIXHD_HALVINGS
    widths = [base << index for index in range(PIX2PIXHD_HALVINGS + 1)]

    def convolution(inputs: int, outputs: int, size: int) -> int:
        # Batch norm has a scale and an offset, instance norm nothing; neither convolution has a bias.
        return inputs * outputs * size * size + (0 if spec.norm is NormType.INSTANCE else 2 * outputs)

    kernel = PIX2PIXHD_EDGE_KERNEL
    ends = convolution(spec.labels.num_channels, base, kernel) + base * 3 * kernel**2 + 3
    down = sum(convolution(narrow, 2 * narrow, 3) for narrow in widths[:-1])
    up = sum(convolution(2 * narrow, narrow, 3) for narrow in widths[:-1])
    return ends + down + 2 * PIX2PIXHD_BLOCKS * convolution(wide, wide, 3) + up


def _crn_count(spec: GeneratorSpec) -> int:
    count, before = 0, 0
    for width in spec.refinement_widths:
        # Two convolutions without a bias, each with a norm that has a scale and an offset.
        count += ((before + spec.labels.num_channels) + width) * width * 9 + 4 * width
        before = width
    return count + 3 * before + 3


PARAMETER_COUNTS: Mapping[Architecture, Callable[[GeneratorSpec], int]] = MappingProxyType(
    {
        Architecture.SPADE: _spade_count,
        Architecture.PIX2PIXHD: _pix2pixhd_count,
        Architecture.CRN: _crn_count,
    }
)
"""How the parameters of each architecture are counted; `networks/build.py` says what else an architecture needs."""
