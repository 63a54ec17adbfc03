"""How a generator is built: everything that its tensor shapes follow from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from spade_deploy.fields import from_json, to_json
from spade_deploy.settings import setting
from spade_deploy.spec.architectures import (
    CASCADES,
    CRN_WIDTHS,
    FOREIGN,
    MODULATED,
    NORMS,
    OASIS_NOISE,
    PIX2PIXHD_BLOCKS,
    PIX2PIXHD_HALVINGS,
)
from spade_deploy.spec.blocks import BlockSpec, oasis_blocks, spade_blocks, usual_widths
from spade_deploy.spec.checks import check_generator, default_of
from spade_deploy.spec.choices import Architecture, GraphKind, NormType, Upsampling
from spade_deploy.spec.labels import LabelSpec

NETWORK = "Network"
"""The group of the settings that say how networks are built."""

_LEVELS = ("level_channels", "level_hidden")
_LATER = ("has_positions", "halvings", "residual_blocks", "enhancer_blocks", "has_features", *_LEVELS)
"""Fields that the first versions did not have."""


@dataclass(frozen=True)
class GeneratorSpec:
    """How a generator is built: everything that its tensor shapes follow from.

    A field that an architecture does not use must have its default; `with_architecture` resets such fields.
    """

    labels: LabelSpec
    """What the label map's integers mean."""

    architecture: Architecture = setting(
        Architecture.SPADE,
        help="spade, a baseline of its paper (pix2pixhd, crn, sims), clade, or oasis (imports only).",
        group=NETWORK,
        flag="generator",
    )

    base_channels: int = setting(64, help="Width of the generator; the paper has 64.", group=NETWORK)
    """The paper's ngf, an even number; the widest layer of every architecture has sixteen times as many."""

    hidden_channels: int = setting(128, help="Width inside SPADE; the paper has 128.", group=NETWORK)
    """Channels inside SPADE's modulation, the paper's nhidden. No other architecture has them."""

    kernel_size: int = setting(3, help="Kernel size of the convolutions inside SPADE: 1, 3 or 5.", group=NETWORK)

    norm: NormType = setting(NormType.SYNC_BATCH, help="Normalisation inside SPADE.", group=NETWORK)
    """How features are normalised; NORMS says which architecture has what."""

    spectral_norm: bool = setting(True, help="Spectral norm of the convolutions.", group=NETWORK, negatable=True)
    """Whether convolutions are normalised by their largest singular value; not in networks of refinement modules."""

    upsampling: Upsampling = setting(
        Upsampling.NORMAL, help="Number of doublings: normal 5, more 6, most 7.", group=NETWORK
    )
    """How often SPADE and the networks of refinement modules (CRN, SIMS) double their coarsest features.
    The generators of pix2pixHD halve and double as often as `halvings` and `enhancer_blocks` say.
    """

    z_dim: int | None = None
    """The length of SPADE's style vector, 256 in the paper. None: the first layer is fed the label map.

    In OASIS it is the length of the noise, which the first layer and every modulation see beside the label map.
    """

    has_positions: bool = False
    """Whether CLADE's gamma and beta depend on the position of a pixel in its region, too: CLADE-ICPE."""

    halvings: int = PIX2PIXHD_HALVINGS
    """How often the global generator of pix2pixHD halves what it is given before its residual blocks."""

    residual_blocks: int = PIX2PIXHD_BLOCKS
    """How many residual blocks the global generator of pix2pixHD has."""

    enhancer_blocks: int = 0
    """How many residual blocks the local enhancer of pix2pixHD has, 3 in the paper; 0: the global generator is alone.
    With an enhancer the global generator sees the segmap at half its size, and has twice the base channels.
    """

    has_features: bool = False
    """Whether pix2pixHD also sees FEATURE_CHANNELS numbers a pixel: means over instances of what an encoder made."""

    height: int = 256
    """The height in pixels that the model was trained for, a multiple of the stride."""

    width: int = 256
    """The width in pixels that the model was trained for, a multiple of the stride."""

    level_channels: tuple[int, ...] | None = None
    """Channels of each level of SPADE, coarsest first: of the blocks before the `up_` blocks, then of each of those.

    None: 16, 8, 4, 2, 1 times the base channels, and half of the last with upsampling 'most'. Given widths descend, and
    none is wider than that.
    """

    level_hidden: tuple[int, ...] | None = None
    """Channels inside the modulation of each level; None: `hidden_channels`, which is the most a level may have."""

    def __post_init__(self) -> None:
        check_generator(self)

    @property
    def doublings(self) -> int:
        """How often the coarsest features are doubled on the way to the image."""
        if self.architecture is Architecture.PIX2PIXHD:
            return self.halvings + int(self.enhancer_blocks > 0)
        return self.upsampling.doublings

    @property
    def stride(self) -> int:
        """Output pixels per latent pixel, a pixel of the coarsest features: 2^doublings."""
        return 1 << self.doublings

    @property
    def least_side(self) -> int:
        """The least height and width in pixels: a latent pixel, or two where it is padded with its reflection."""
        return 2 * self.stride if self.architecture is Architecture.PIX2PIXHD else self.stride

    def takes_side(self, size: int) -> bool:
        """Whether a height or width in pixels runs, as far as the architecture goes."""
        return size >= self.least_side and size % self.stride == 0

    @property
    def side_rule(self) -> str:
        """The rule of `takes_side` in words: 'multiple of 32'."""
        return f"multiple of {self.stride}" + (f" from {self.least_side} on" if self.least_side > self.stride else "")

    @property
    def latent_height(self) -> int:
        return self.height // self.stride

    @property
    def latent_width(self) -> int:
        return self.width // self.stride

    @property
    def is_dynamic(self) -> bool:
        """Whether the first layer is a convolution of the label map, so that the same weights serve every size.

        With SPADE's style vector they do not: its layer is fully connected.
        """
        return self.z_dim is None or self.architecture is Architecture.OASIS

    @property
    def noise_channels(self) -> int:
        """How many channels of noise the modulation sees before those of the segmap: none but in OASIS."""
        return (self.z_dim or 0) if self.architecture is Architecture.OASIS else 0

    @property
    def modulation_channels(self) -> int:
        """The channels that the modulation sees: the noise, then the segmap."""
        return self.noise_channels + self.labels.num_channels

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """SPADE's residual blocks in the order they run; figure 4 of the paper. CLADE has the same, and OASIS six."""
        if self.architecture not in MODULATED:
            return ()
        if self.architecture is Architecture.OASIS:
            return oasis_blocks(self.base_channels, self.hidden_channels)
        return spade_blocks(self.widths, self.hidden_widths, self.upsampling)

    @property
    def usual_widths(self) -> tuple[int, ...]:
        """The widths of SPADE's levels as its paper builds it, which are the most that `level_channels` may have."""
        return usual_widths(self.base_channels, self.upsampling)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level of SPADE, coarsest first."""
        return self.usual_widths if self.level_channels is None else self.level_channels

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """The channels inside the modulation of each level of SPADE, coarsest first."""
        return self.level_hidden or (self.hidden_channels,) * len(self.usual_widths)

    @property
    def level_text(self) -> str:
        """The widths of each level in words, as far as they were chosen one by one; else empty."""
        chosen = [("channels", self.level_channels), ("hidden", self.level_hidden)]
        return ", ".join(f"{what} by level {'-'.join(map(str, widths))}" for what, widths in chosen if widths)

    @property
    def latent_channels(self) -> int:
        """The channels of the first layer's map, in SPADE's residual blocks."""
        return self.blocks[0].in_channels

    @property
    def refinement_widths(self) -> tuple[int, ...]:
        """Feature maps of each refinement module of CRN and SIMS, coarsest first; empty for another network.

        They are those of the published network with as many doublings: 'more' begins at 4 rows for 256, as it did, and
        'normal' at 8, without its coarsest module.
        """
        if self.architecture not in CASCADES:
            return ()
        first = 1 if self.upsampling is Upsampling.NORMAL else 0
        return tuple(self.base_channels * width for width in CRN_WIDTHS[first : first + self.doublings + 1])

    @property
    def has_bank(self) -> bool:
        """Whether the network completes a canvas that is made of a memory bank: SIMS does."""
        return self.architecture is Architecture.SIMS

    @property
    def title(self) -> str:
        """The architecture in words, with what it may have or not."""
        return f"{self.architecture}{', with positions in regions (ICPE)' if self.has_positions else ''}"

    @property
    def depth(self) -> str | None:
        """How deep pix2pixHD's generator is, in words; None for another one."""
        if self.architecture is not Architecture.PIX2PIXHD:
            return None
        more = f", local enhancer of {self.enhancer_blocks}" if self.enhancer_blocks else ""
        more += ", instance features" if self.has_features else ""
        return f"{self.halvings} halvings, {self.residual_blocks} residual blocks{more}"

    def has(self, field: str) -> bool:
        """Whether a field means something for the architecture: `hidden_channels` does for SPADE alone."""
        return field not in FOREIGN[self.architecture]

    @property
    def graph_kinds(self) -> tuple[GraphKind, ...]:
        """The graphs that can be made of it: without gamma and beta there is nothing that can be looked up."""
        return tuple(GraphKind) if self.architecture in MODULATED else (GraphKind.DENSE,)

    @property
    def window_kernel(self) -> int:
        """The side of the windows of labels in the lookup graph's tables.

        It is that of SPADE's convolutions, and 1 in CLADE: there gamma and beta of a pixel follow from its own label.
        """
        return 1 if self.architecture is Architecture.CLADE else self.kernel_size

    def with_architecture(self, architecture: Architecture) -> GeneratorSpec:
        """Another architecture for the same labels and size, as its own paper builds it; the same one is unchanged.

        Fields that both have keep their values: base_channels, and upsampling if both have it. Fields that the new one
        does not have are reset. The norm becomes that of its paper, and spectral norm is on where the modulation is.
        """
        if architecture is self.architecture:
            return self
        reset = {name: _default(name) for name in ("hidden_channels", "kernel_size", "z_dim", *_LATER)}
        if {Architecture.PIX2PIXHD, Architecture.OASIS} & {architecture, self.architecture}:
            reset["upsampling"] = _default("upsampling")
        if architecture is Architecture.OASIS:
            reset["z_dim"] = OASIS_NOISE
        is_spectral = architecture in MODULATED
        return replace(self, **reset, architecture=architecture, norm=NORMS[architecture][0], spectral_norm=is_spectral)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON. SPADE is not named, so that versions without other architectures can read the file.

        Nor are later fields that have their defaults, for versions without them.
        """
        value = to_json(self)
        for name in _LATER:
            if value[name] == _default(name):
                del value[name]
        if self.architecture is Architecture.SPADE:
            del value["architecture"]
        return value

    @classmethod
    def from_json(cls, value: Any) -> GeneratorSpec:
        """Read a spec from JSON. Raises ConfigError if a field is missing, unknown or of another type."""
        return from_json(cls, value, "generator spec")


def _default(name: str) -> Any:
    return default_of(GeneratorSpec, name)
