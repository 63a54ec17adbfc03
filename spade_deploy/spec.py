"""The frozen facts of a model: what its labels mean, how its generator is built, in which precision it runs.

Every dataclass checks itself when it is made, so an object that exists is one that can be built.
`to_json` and `from_json` are exact inverses; both are used by checkpoints and by the artifact's manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from spade_deploy.errors import ConfigError, quoted

Rgb = tuple[int, int, int]
UNKNOWN_VALUE = 255
"""The value that label files use for 'unknown'."""

MAX_SIDE = 8192
"""Height and width in pixels, as of label maps and photos; the paper's largest is 512."""
MAX_BASE_CHANNELS = 1024
"""Sixteen times the paper's: the widest layer has 16,384 channels, and 9 GB of weights."""
MAX_HIDDEN_CHANNELS = 8192
MAX_STYLE_LENGTH = 65_536
_MAX_EXTENT_DIGITS = 9


class Architecture(StrEnum):
    """Which network: SPADE, or one of the baselines that its paper compares it with.

    spade: Park et al. 2019. pix2pixhd: the global generator of Wang et al. 2018. crn: the cascaded refinement network
    of Chen and Koltun 2017.
    """

    SPADE = "spade"
    PIX2PIXHD = "pix2pixhd"
    CRN = "crn"


class NormType(StrEnum):
    """The normalisation of the features, parameter-free but for layer norm, which is the cascaded refinement network's.

    Batch and sync batch differ in training only.
    """

    BATCH = "batch"
    SYNC_BATCH = "sync_batch"
    INSTANCE = "instance"
    LAYER = "layer"


class Upsampling(StrEnum):
    """How often the generator doubles its latent: normal 5, more 6, most 7 times."""

    NORMAL = "normal"
    MORE = "more"
    MOST = "most"

    @property
    def doublings(self) -> int:
        return {"normal": 5, "more": 6, "most": 7}[self.value]


class Precision(StrEnum):
    """The type of a graph's weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class GraphKind(StrEnum):
    """Dense: convolutions of one-hot maps, as trained. Lookup: a table row for each pattern of labels, gathered."""

    DENSE = "dense"
    LOOKUP = "lookup"


class Flavour(StrEnum):
    """Which TensorRT an engine is of: TensorRT itself, or TensorRT for RTX, whose engines are no TensorRT plans."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


Extent = tuple[int, int, int]
"""Batch, height, width."""


@dataclass(frozen=True)
class ShapeProfile:
    """Batch, height and width that an engine takes: least, the one it is tuned for, and most."""

    least: Extent
    best: Extent
    most: Extent

    def __post_init__(self) -> None:
        for axis, (low, middle, high) in enumerate(zip(self.least, self.best, self.most, strict=True)):
            if not 1 <= low <= middle <= high:
                what = ("batch", "height", "width")[axis]
                raise ConfigError(f"--profile: {what} {low}, {middle}, {high} of {self} do not rise from 1 on")

    @classmethod
    def parse(cls, text: str) -> ShapeProfile:
        """'1x256x256:4x256x256:16x512x512', or one extent for all three. Raises ConfigError."""
        parts = [part.split("x") for part in text.lower().split(":")]
        if len(parts) not in (1, 3) or any(
            len(part) != 3 or not all(_is_extent(number) for number in part) for part in parts
        ):
            raise ConfigError(
                f"--profile: {quoted(text)} is not MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH",
                hint="--profile 1x256x256:4x256x256:16x512x512, or --profile 1x256x256 for one shape alone",
            )
        extents = [(int(batch), int(height), int(width)) for batch, height, width in parts]
        return cls(*(extents if len(extents) == 3 else extents * 3))

    def contains(self, batch: int, height: int, width: int) -> bool:
        sizes = zip(self.least, (batch, height, width), self.most, strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def __str__(self) -> str:
        return ":".join("x".join(map(str, extent)) for extent in (self.least, self.best, self.most))


@dataclass(frozen=True)
class RoundingError:
    """What float32 itself costs a model: eager PyTorch in float32 against float64.

    max_abs, mean_abs: of images in [-1, 1]. logit_max, logit_mean: of the logits, the values before tanh, in their
    own scale.
    """

    max_abs: float
    mean_abs: float
    logit_max: float
    logit_mean: float

    def __post_init__(self) -> None:
        for what, mean, largest in (("image", self.mean_abs, self.max_abs), ("logit", self.logit_mean, self.logit_max)):
            if not 0 <= mean <= largest < float("inf"):
                raise ConfigError(f"rounding error: {what} mean {mean} and max {largest} cannot be")


@dataclass(frozen=True)
class LabelSpec:
    """What the integers of a label map mean, and what the network makes of them.

    num_labels: ids 0..num_labels-1 are classes.
    has_dontcare: one more channel, id `num_labels`, for unknown pixels (255 in files).
    has_edges: the network's last channel is the edge map of an instance map.
    names, palette: one entry an id (dontcare included) or empty; RGB 0..255.
    """

    num_labels: int
    has_dontcare: bool = False
    has_edges: bool = False
    names: tuple[str, ...] = ()
    palette: tuple[Rgb, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_labels <= 4096:
            raise ConfigError(f"--num-labels: {quoted(self.num_labels)} is not in 1..4096")
        for flag, entries in (("names", self.names), ("palette", self.palette)):
            if entries and len(entries) != self.num_ids:
                raise ConfigError(
                    f"label {flag}: {len(entries)} entries for {self.num_ids} ids"
                    f" ({self.num_labels} labels{' and dontcare' if self.has_dontcare else ''})"
                )
        for color in self.palette:
            if len(color) != 3 or not all(0 <= part <= 255 for part in color):
                raise ConfigError(f"label palette: {quoted(color)} is not three numbers in 0..255")

    @property
    def num_ids(self) -> int:
        """Ids that the network's input may hold: 0..num_ids-1."""
        return self.num_labels + int(self.has_dontcare)

    @property
    def num_channels(self) -> int:
        """Channels of the segmap: ids, then the edge channel."""
        return self.num_ids + int(self.has_edges)

    @property
    def unknown_id(self) -> int | None:
        """The id that 255 in a file becomes, or None where unknown pixels are an error."""
        return self.num_labels if self.has_dontcare else None

    def name_of(self, label_id: int) -> str:
        return self.names[label_id] if self.names else f"label {label_id}"

    def to_json(self) -> dict[str, Any]:
        return _plain(self)

    @classmethod
    def from_json(cls, value: Any) -> LabelSpec:
        """Raises ConfigError where a field is missing, unknown or of another type."""
        known = _checked_fields(cls, value, "label spec")
        known["names"] = tuple(_typed(known.get("names", []), list, "label spec: names"))
        palette = _typed(known.get("palette", []), list, "label spec: palette")
        known["palette"] = tuple(tuple(_typed(color, list, "label spec: palette")) for color in palette)
        for color in known["palette"]:
            for part in color:
                _typed(part, int, "label spec: palette")
        for name in known["names"]:
            _typed(name, str, "label spec: names")
        return cls(**known)


@dataclass(frozen=True)
class BlockSpec:
    """One residual block. stride: output pixels per pixel of its feature map. doubles: the map is doubled before it."""

    name: str
    in_channels: int
    out_channels: int
    stride: int
    doubles: bool

    @property
    def middle_channels(self) -> int:
        return min(self.in_channels, self.out_channels)

    @property
    def has_shortcut(self) -> bool:
        """Whether the shortcut is learned: it is where the number of channels changes."""
        return self.in_channels != self.out_channels


NORMS: Mapping[Architecture, tuple[NormType, ...]] = MappingProxyType(
    {
        Architecture.SPADE: (NormType.SYNC_BATCH, NormType.BATCH, NormType.INSTANCE),
        Architecture.PIX2PIXHD: (NormType.INSTANCE, NormType.SYNC_BATCH, NormType.BATCH),
        Architecture.CRN: (NormType.LAYER,),
    }
)
"""The normalisations that each architecture can be built with, its paper's first."""

MAX_BATCH = 4096
"""Images that a network computes at once."""

PIX2PIXHD_HALVINGS = 4
"""How often the global generator halves the segmap before its residual blocks."""
PIX2PIXHD_BLOCKS = 9
"""How many residual blocks the global generator has, all at its coarsest resolution."""
PIX2PIXHD_EDGE_KERNEL = 7
"""The kernel size of the global generator's first and last convolution."""

CRN_WIDTHS = (16, 16, 16, 16, 16, 8, 8, 2)
"""Feature maps of the published refinement modules at 4, 8, ... 512 rows, in base channels: 1024 to 128 for a base of
64."""


@dataclass(frozen=True)
class GeneratorSpec:
    """How a generator is built; everything that its tensor shapes follow from.

    base_channels: the paper's ngf (64); every architecture's widest layer has sixteen times as many.
    hidden_channels, kernel_size: of the convolutions inside SPADE (nhidden, 128; 1, 3 or 5); no other architecture's.
    norm: one of NORMS. spectral_norm: of the convolutions; the cascaded refinement network has none.
    upsampling: how often SPADE and the cascaded refinement network double their coarsest features. The global
    generator of pix2pixHD halves and doubles four times.
    z_dim: length of SPADE's style vector (256), None without; the baselines have none.
    height, width: the size the model was trained for in pixels, multiples of the stride.
    A field that means nothing for an architecture has to be at its default; `with_architecture` puts it there.
    """

    labels: LabelSpec
    architecture: Architecture = Architecture.SPADE
    base_channels: int = 64
    hidden_channels: int = 128
    kernel_size: int = 3
    norm: NormType = NormType.SYNC_BATCH
    spectral_norm: bool = True
    upsampling: Upsampling = Upsampling.NORMAL
    z_dim: int | None = None
    height: int = 256
    width: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.base_channels <= MAX_BASE_CHANNELS or self.base_channels % 2:
            raise ConfigError(
                f"--base-channels: {quoted(self.base_channels)} is not an even number in 2..{MAX_BASE_CHANNELS}"
            )
        if not 1 <= self.hidden_channels <= MAX_HIDDEN_CHANNELS:
            raise ConfigError(f"--hidden-channels: {quoted(self.hidden_channels)} is not in 1..{MAX_HIDDEN_CHANNELS}")
        if self.kernel_size not in (1, 3, 5):
            raise ConfigError(f"--kernel-size: {quoted(self.kernel_size)} is not 1, 3 or 5")
        if self.z_dim is not None and not 1 <= self.z_dim <= MAX_STYLE_LENGTH:
            raise ConfigError(f"z_dim: {quoted(self.z_dim)} is not in 1..{MAX_STYLE_LENGTH}")
        self._check_architecture()
        for name, size in (("height", self.height), ("width", self.width)):
            if size > MAX_SIDE:
                raise ConfigError(f"--size: {name} {quoted(size)} is more than {MAX_SIDE} pixels")
            if not self.takes_side(size):
                how = f"upsampling {self.upsampling} doubles {self.upsampling.doublings} times"
                if self.architecture is Architecture.PIX2PIXHD:
                    how = f"{self.architecture} halves {PIX2PIXHD_HALVINGS} times"
                raise ConfigError(f"--size: {name} {quoted(size)} is not a {self.side_rule} ({how})")

    def _check_architecture(self) -> None:
        """Refuses by flag what the architecture does not have."""
        hint = "leave the option out; in Python, `with_architecture` resets what an architecture does not have"
        allowed = NORMS[self.architecture]
        if self.norm not in allowed:
            raise ConfigError(
                f"--generator {self.architecture} contradicts --norm {self.norm}; it has {', '.join(allowed)}",
                hint=hint,
            )
        for name in _FOREIGN[self.architecture]:
            value = getattr(self, name)
            if value != _default(name):
                raise ConfigError(
                    f"--generator {self.architecture} contradicts {_flag(name, value)}; it has nothing of the kind",
                    hint=hint,
                )
        if self.architecture is Architecture.CRN and self.spectral_norm:
            raise ConfigError(
                f"--generator {self.architecture} contradicts --spectral-norm; its layer norm bounds the features",
                hint=hint,
            )

    @property
    def doublings(self) -> int:
        """How often the coarsest features are doubled on the way to the image."""
        return PIX2PIXHD_HALVINGS if self.architecture is Architecture.PIX2PIXHD else self.upsampling.doublings

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
        """What `takes_side` asks for, in words: 'multiple of 32'."""
        return f"multiple of {self.stride}" + (f" from {self.least_side} on" if self.least_side > self.stride else "")

    @property
    def latent_height(self) -> int:
        return self.height // self.stride

    @property
    def latent_width(self) -> int:
        return self.width // self.stride

    @property
    def is_dynamic(self) -> bool:
        """Whether one set of weights serves every size: not with a style vector, whose layer is fully connected."""
        return self.z_dim is None

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """SPADE's residual blocks in the order they run; figure 4 of the paper. None in another architecture."""
        if self.architecture is not Architecture.SPADE:
            return ()
        upsampling = self.upsampling
        doubles = [False, True, upsampling is not Upsampling.NORMAL, *[True] * 4]
        names = ["head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3"]
        if upsampling is Upsampling.MOST:
            names, doubles = [*names, "up_4"], [*doubles, True]
        blocks, stride, width = [], self.stride, 16 * self.base_channels
        for name, doubled in zip(names, doubles, strict=True):
            stride = stride // 2 if doubled else stride
            out = width // 2 if name.startswith("up_") else width
            blocks.append(BlockSpec(name, width, out, stride, doubled))
            width = out
        return tuple(blocks)

    @property
    def refinement_widths(self) -> tuple[int, ...]:
        """Feature maps of each module of the cascaded refinement network, coarsest first; empty for another one.

        They are those of the published network with as many doublings: 'more' begins at 4 rows for 256, as it did, and
        'normal' at 8, without its coarsest module.
        """
        if self.architecture is not Architecture.CRN:
            return ()
        first = 1 if self.upsampling is Upsampling.NORMAL else 0
        return tuple(self.base_channels * width for width in CRN_WIDTHS[first : first + self.doublings + 1])

    def has(self, field: str) -> bool:
        """Whether a field means something for the architecture: `hidden_channels` does for SPADE alone."""
        return field not in _FOREIGN[self.architecture]

    @property
    def graph_kinds(self) -> tuple[GraphKind, ...]:
        """The graphs that can be made of it: gamma and beta, what the lookup graph looks up, are SPADE's alone."""
        return tuple(GraphKind) if self.architecture is Architecture.SPADE else (GraphKind.DENSE,)

    def with_labels(self, labels: LabelSpec) -> GeneratorSpec:
        return replace(self, labels=labels)

    def with_architecture(self, architecture: Architecture) -> GeneratorSpec:
        """Another architecture for the same labels and size, as its own paper builds it; the same one is unchanged.

        What the two share stays: base_channels, and upsampling where both have it. What the new one does not have is
        reset, the norm is its paper's, and spectral norm is SPADE's alone until it is asked for.
        """
        if architecture is self.architecture:
            return self
        reset = {name: _default(name) for name in ("hidden_channels", "kernel_size", "z_dim")}
        if Architecture.PIX2PIXHD in (architecture, self.architecture):
            reset["upsampling"] = _default("upsampling")
        is_spade = architecture is Architecture.SPADE
        return replace(self, **reset, architecture=architecture, norm=NORMS[architecture][0], spectral_norm=is_spade)

    def to_json(self) -> dict[str, Any]:
        """SPADE goes without saying: versions before the other architectures read what it is written in."""
        plain = _plain(self)
        if self.architecture is Architecture.SPADE:
            del plain["architecture"]
        return plain

    @classmethod
    def from_json(cls, value: Any) -> GeneratorSpec:
        """Raises ConfigError where a field is missing, unknown or of another type."""
        known = _checked_fields(cls, value, "generator spec")
        known["labels"] = LabelSpec.from_json(known["labels"])
        for name, kind in (("architecture", Architecture), ("norm", NormType), ("upsampling", Upsampling)):
            if name in known:
                try:
                    known[name] = kind(known[name])
                except ValueError as error:
                    allowed = ", ".join(kind)
                    raise ConfigError(
                        f"generator spec: {name} {quoted(known[name])} is not one of {allowed}"
                    ) from error
        return cls(**known)


@dataclass(frozen=True)
class DiscriminatorSpec:
    """How the discriminator is built.

    scales: how many patch discriminators, each on an image half as large as the one before.
    layers: 4x4 convolutions of each but the last, which makes the scores; all but one of them halve the image.
    base_channels: channels of the first layer; they double up to eight times that.
    """

    scales: int = 2
    layers: int = 4
    base_channels: int = 64

    def __post_init__(self) -> None:
        _check_range("--discriminator-scales", self.scales, 1, 6)
        _check_range("--discriminator-layers", self.layers, 2, 8)
        _check_range("--discriminator-channels", self.base_channels, 1, 1024)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> DiscriminatorSpec:
        """Raises ConfigError where a field is unknown or of another type."""
        return cls(**_checked_fields(cls, value, "discriminator spec"))


_FOREIGN: Mapping[Architecture, tuple[str, ...]] = MappingProxyType(
    {
        Architecture.SPADE: (),
        Architecture.PIX2PIXHD: ("hidden_channels", "kernel_size", "upsampling", "z_dim"),
        Architecture.CRN: ("hidden_channels", "kernel_size", "z_dim"),
    }
)
"""Fields that mean nothing for an architecture."""


def _default(name: str) -> Any:
    return next(field.default for field in fields(GeneratorSpec) if field.name == name)


def _flag(name: str, value: object) -> str:
    # The style vector's length has no flag: these ask for one.
    return "--vae or --first-input noise" if name == "z_dim" else f"--{name.replace('_', '-')} {value}"


def parse_size(text: str) -> tuple[int, int]:
    """'256x512' -> (height, width) in pixels; '256' is square. Raises ConfigError."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(_is_extent(part) and int(part) > 0 for part in parts):
        raise ConfigError(f"--size: {quoted(text)} is not HEIGHTxWIDTH in pixels, such as 256x512")
    return int(parts[0]), int(parts[-1])


def _check_range(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{flag}: {quoted(value)} is not in {low}..{high}")


def _is_extent(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_EXTENT_DIGITS


def _plain(spec: LabelSpec | GeneratorSpec) -> dict[str, Any]:
    # Through JSON, so that tuples are lists and enums strings, as a reader of the file will see them.
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return plain


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "bool": bool,
    "int | None": (int, type(None)),
}


def _checked_fields(cls: type, given: Any, what: str) -> dict[str, Any]:
    value: dict[str, Any] = dict(_typed(given, dict, what))
    types = {field.name: str(field.type) for field in fields(cls)}
    unknown = sorted(set(value) - set(types))
    if unknown:
        raise ConfigError(f"{what}: unknown field {quoted(unknown[0])}; known are {', '.join(types)}")
    missing = next((name for name in ("num_labels", "labels") if name in types and name not in value), None)
    if missing:
        raise ConfigError(f"{what}: field {missing!r} is missing")
    for name, entry in value.items():
        kind = _FIELD_TYPES.get(types[name])
        if kind is not None:
            _typed(entry, kind, f"{what}: {name}")
    return value


def _typed(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    is_bool_for_int = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or is_bool_for_int:
        raise ConfigError(f"{what}: {quoted(value)} is of type {type(value).__name__}")
    return value
