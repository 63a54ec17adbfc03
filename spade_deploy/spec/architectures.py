"""What each architecture has: its norms, the fields of a spec that it does not use, and what its paper fixes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spade_deploy.spec.choices import Architecture, NormType

PIX2PIXHD_HALVINGS = 4
"""How often the published global generator halves the segmap before its residual blocks."""
PIX2PIXHD_BLOCKS = 9
"""How many residual blocks the published global generator has, all at its coarsest resolution."""
PIX2PIXHD_EDGE_KERNEL = 7
"""The kernel size of the global generator's first and last convolution."""
FEATURE_CHANNELS = 3
"""How many numbers a pixel the published encoder of instance features (netE) gives its generator."""

CRN_WIDTHS = (16, 16, 16, 16, 16, 8, 8, 2)
"""Feature maps of the published refinement modules at 4, 8, ... 512 rows, in base channels: 1024 to 128 for a base of
64."""

SIMS_WIDTHS = (1, 2, 4, 8, 8, 8, 8, 8)
"""Channels of the features that SIMS's encoder makes of its canvas, finest first, in base channels."""

OASIS_WIDTHS = (16, 16, 16, 8, 4, 2, 1)
"""Channels before and after each residual block of OASIS, in base channels."""
OASIS_NOISE = 64
"""The length of the noise vector that OASIS was published with."""

NORMS: Mapping[Architecture, tuple[NormType, ...]] = MappingProxyType(
    {
        Architecture.SPADE: (NormType.SYNC_BATCH, NormType.BATCH, NormType.INSTANCE),
        Architecture.PIX2PIXHD: (NormType.INSTANCE, NormType.SYNC_BATCH, NormType.BATCH),
        Architecture.CRN: (NormType.LAYER,),
        Architecture.SIMS: (NormType.LAYER,),
        Architecture.CLADE: (NormType.SYNC_BATCH, NormType.BATCH, NormType.INSTANCE),
        Architecture.OASIS: (NormType.SYNC_BATCH, NormType.BATCH, NormType.INSTANCE),
    }
)
"""The normalisations that each architecture can be built with, its paper's first."""

_OF_PIX2PIXHD = ("halvings", "residual_blocks", "enhancer_blocks", "has_features")
_OF_LEVELS = ("level_channels", "level_hidden")
_NOT_OF_CASCADES = ("hidden_channels", "kernel_size", "z_dim", "has_positions", *_OF_LEVELS, *_OF_PIX2PIXHD)

FOREIGN: Mapping[Architecture, tuple[str, ...]] = MappingProxyType(
    {
        Architecture.SPADE: ("has_positions", *_OF_PIX2PIXHD),
        Architecture.PIX2PIXHD: (
            "hidden_channels",
            "kernel_size",
            "upsampling",
            "z_dim",
            "has_positions",
            *_OF_LEVELS,
        ),
        Architecture.CRN: _NOT_OF_CASCADES,
        Architecture.SIMS: _NOT_OF_CASCADES,
        Architecture.CLADE: ("hidden_channels", "kernel_size", *_OF_LEVELS, *_OF_PIX2PIXHD),
        Architecture.OASIS: ("upsampling", "has_positions", *_OF_LEVELS, *_OF_PIX2PIXHD),
    }
)
"""The fields that an architecture does not use."""

CASCADES = (Architecture.CRN, Architecture.SIMS)
"""The architectures that make an image by refinement modules, one for each resolution."""

MODULATED = (Architecture.SPADE, Architecture.CLADE, Architecture.OASIS)
"""The architectures of SPADE's residual blocks. The label map modulates their features, and that can be looked up."""
