"""Find the spec of pix2pixHD's generators, whose layers have numbers for names: the steps of sequences.

`model` is the global generator: a mirrored margin, convolution, norm and activation (steps 0 to 3), as many halvings of
three steps each, residual blocks of one step each, as many doublings of three, and margin and convolution. Beside a
local enhancer it ends before that margin. `model1_1` leads into the enhancer, and `model1_2` is the rest of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError, quoted
from spade_deploy.labels.sets import label_set
from spade_deploy.runs.import_request import RELEASED
from spade_deploy.runs.imported_spec import AS_PUBLISHED, ImportedSpec
from spade_deploy.spec import (
    FEATURE_CHANNELS,
    PIX2PIXHD_EDGE_KERNEL,
    Architecture,
    GeneratorSpec,
    LabelSpec,
    NormType,
)

RELEASED_WIDTHS = {False: 1024, True: 2048}
"""Width in pixels of the released Cityscapes models, which are half as high, without and with an enhancer."""

_MOST_HALVINGS = 8
_BLOCK = re.compile(r"^(model|model1_2)\.(\d+)\.conv_block\.1\.weight$")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ImportedPix2PixHDSpec(ImportedSpec):
    """Finds the spec of pix2pixHD's global generator, alone or with a local enhancer."""

    architecture: ClassVar = Architecture.PIX2PIXHD
    anchors: ClassVar[tuple[str, ...]] = tuple(
        f"model.{4 + 3 * halvings}.conv_block.1.weight" for halvings in range(1, _MOST_HALVINGS + 1)
    )

    def find(self) -> GeneratorSpec:
        """See `ImportedSpec.find`."""
        first, blocks = self._blocks("model")
        has_enhancer = "model1_1.1.weight" in self._state
        halvings, rest = divmod(first - 4, 3)
        if rest or halvings < 1:
            raise CheckpointError(
                f"{self._path}: the first residual block is step {first} of the sequence, where no halvings end",
                hint="expected steps 0 to 3, then three steps a halving, as pix2pixHD's own code has them",
            )
        entrance = "model1_1.1.weight" if has_enhancer else "model.1.weight"
        base, channels, kernel, _ = self._shape(entrance, 4)
        if has_enhancer and self._shape("model.1.weight", 4)[1] != channels:
            raise CheckpointError(
                f"{self._path}: the enhancer sees {channels} channels, the global generator"
                f" {self._shape('model.1.weight', 4)[1]}",
                hint=AS_PUBLISHED,
            )
        if kernel != PIX2PIXHD_EDGE_KERNEL:
            raise CheckpointError(
                f"{self._path}: the first convolution is {kernel} wide, not {PIX2PIXHD_EDGE_KERNEL}", hint=AS_PUBLISHED
            )
        if self._request.upsampling is not None:
            raise CheckpointError(
                f"{self._path}: `upsampling` means nothing to pix2pixHD, whose file tells the halvings",
                hint="leave it out",
            )
        labels, size = self._labels(channels, has_enhancer)
        return GeneratorSpec(
            labels=labels,
            architecture=self.architecture,
            base_channels=base,
            norm=self._pix2pixhd_norm(),
            spectral_norm=False,
            halvings=halvings,
            residual_blocks=blocks,
            enhancer_blocks=self._blocks("model1_2")[1] if has_enhancer else 0,
            has_features=channels > labels.num_channels,
            height=size[0],
            width=size[1],
        )

    def tensors(self, spec: GeneratorSpec) -> dict[str, Tensor]:
        """See `ImportedSpec.tensors`."""
        return under_our_names(self._state, _places(spec), _last(spec), spec.norm, self.notes)

    def _blocks(self, sequence: str) -> tuple[int, int]:
        """The step of the first residual block of a sequence, and how many blocks follow one another from there."""
        steps = sorted(int(match[2]) for key in self._state if (match := _BLOCK.match(key)) and match[1] == sequence)
        if not steps:
            raise CheckpointError(
                f"{self._path}: {sequence} has no residual blocks: this is no pix2pixHD generator",
                hint="expected a latest_net_G.pth as pix2pixHD's own code writes it",
            )
        if steps != list(range(steps[0], steps[-1] + 1)):
            raise CheckpointError(
                f"{self._path}: the residual blocks {quoted(steps)} of {sequence} do not follow one another",
                hint=AS_PUBLISHED,
            )
        return steps[0], len(steps)

    def _pix2pixhd_norm(self) -> NormType:
        """Batch norm has weights in pix2pixHD; statistics alone are those of an old instance norm."""
        wanted, has_weights = self._request.norm, "model.2.weight" in self._state
        if has_weights == (wanted is NormType.INSTANCE):
            if wanted is None:
                return NormType.INSTANCE
            there = "has weights of batch norm" if has_weights else "has no weights of batch norm"
            raise CheckpointError(
                f"{self._path}: the file {there}, which contradicts `norm` {wanted}", hint="leave `norm` out"
            )
        return wanted or NormType.BATCH

    def _labels(self, channels: int, has_enhancer: bool) -> tuple[LabelSpec, tuple[int, int]]:
        request = self._request
        preset, labels = request.preset, request.label_spec
        cityscapes = label_set("cityscapes")
        if labels is None and preset is None:
            if channels == 3:
                raise CheckpointError(
                    f"{self._path}: the first layer sees 3 channels: this generator is fed pictures (label_nc 0), and"
                    " no label maps",
                    hint="a model of three labels is told from it with `num_labels` 3",
                )
            if channels not in (cityscapes.num_channels, cityscapes.num_channels + FEATURE_CHANNELS):
                raise ConfigError(
                    f"{self._path}: a segmap of {channels} channels is not that of the released model"
                    f" (cityscapes {cityscapes.num_channels}, and {FEATURE_CHANNELS} more with instance features)",
                    hint="say what they are: `num_labels` N [`has_dontcare`] [`has_edges`] `size` HxW",
                )
            preset = "cityscapes"
            self.guesses.append(
                f"the {channels} segmap channels are cityscapes' (35 labels, edges), judged by their number; change it"
                " with `preset`, or `num_labels` [`has_dontcare`] [`has_edges`]"
            )
        if labels is None:
            assert preset is not None
            labels = label_set(preset)
        if channels == labels.num_channels + FEATURE_CHANNELS:
            self._tell_features()
        else:
            self._require_channels(channels, labels, preset)
        return labels, request.size or self._released_size(preset, has_enhancer)

    def _tell_features(self) -> None:
        more = f"{FEATURE_CHANNELS} channels more than the labels have are instance features (netE)"
        if self._request.encoder is None:
            self.notes.append(
                f"{more}; no photo can be encoded without `encoder` latest_net_E.pth: features are zeros, unless a"
                " caller gives others"
            )
        else:
            self.notes.append(
                f"{more}; where no photo is given they are zeros, and not those of a cluster, as in pix2pixHD's code"
            )

    def _released_size(self, preset: str | None, has_enhancer: bool) -> tuple[int, int]:
        if preset is None:
            raise ConfigError("`size` is needed: the file does not tell the size the model was trained for")
        height, width = RELEASED[preset][1:]
        if preset == "cityscapes":
            width = RELEASED_WIDTHS[has_enhancer]
            height = width // 2
        told = self.guesses if self._request.preset is None else self.notes
        told.append(
            f"{height} x {width} pixels, as pix2pixHD's paper for {preset}; the file does not tell the size; change it"
            " with `size`"
        )
        return height, width


def under_our_names(
    state: Mapping[str, Tensor], places: Iterable[tuple[str, str]], last: str, norm: NormType, notes: list[str]
) -> dict[str, Tensor]:
    """The tensors of a file of numbered steps under the names of the network here; others keep their own.

    places: each convolution that a norm follows, and the name of both here. last: the place of the last convolution,
    `conv_img`. notes: the list that sentences on what was left out are added to.
    """
    rest, found = dict(state), {}
    is_instance = norm is NormType.INSTANCE
    biases = unused = 0
    for place, name in places:
        parent, _, number = place.rpartition(".")
        following = f"{parent}.{int(number) + 1}"
        if (weight := rest.pop(f"{place}.weight", None)) is not None:
            found[f"{name}.conv.weight"] = weight
        bias = rest.pop(f"{place}.bias", None)
        biases += bias is not None
        statistics = {part: rest.pop(f"{following}.{part}", None) for part in _STATISTICS}
        if is_instance:  # which takes a bias away again
            unused += statistics["running_mean"] is not None
            continue
        for part, own in (("weight", "scale"), ("bias", "offset")):
            if (value := rest.pop(f"{following}.{part}", None)) is not None:
                found[f"{name}.{own}"] = value
        mean = statistics["running_mean"]
        if mean is not None and bias is not None and mean.shape == bias.shape:
            statistics["running_mean"] = mean - bias  # (x + b) - mean is x - (mean - b)
        found |= {f"{name}.norm.{part}": value for part, value in statistics.items() if value is not None}
    for part in ("weight", "bias"):
        if (value := rest.pop(f"{last}.{part}", None)) is not None:
            found[f"conv_img.{part}"] = value
    if biases:
        why = "which takes a constant away" if is_instance else "as a part of its mean"
        notes.append(f"the biases of {biases} convolutions went into the norm after each, {why}")
    if unused:
        notes.append(
            f"running statistics of {unused} instance norms were left out: PyTorch before 0.4 saved them without use"
        )
    return {**found, **rest}


def _places(spec: GeneratorSpec) -> Iterator[tuple[str, str]]:
    """Each convolution that a norm follows: its place in the file, and the name of both here."""
    yield "model.1", "conv_in"
    step = 4
    for index in range(spec.halvings):
        yield f"model.{step}", f"down_{index}"
        step += 3
    for index in range(spec.residual_blocks):
        yield f"model.{step}.conv_block.1", f"block_{index}.conv_0"
        yield f"model.{step}.conv_block.5", f"block_{index}.conv_1"
        step += 1
    for index in range(spec.halvings):
        yield f"model.{step}", f"up_{index}"
        step += 3
    if spec.enhancer_blocks:
        yield "model1_1.1", "enhancer_in"
        yield "model1_1.4", "enhancer_down"
        for index in range(spec.enhancer_blocks):
            yield f"model1_2.{index}.conv_block.1", f"enhancer_block_{index}.conv_0"
            yield f"model1_2.{index}.conv_block.5", f"enhancer_block_{index}.conv_1"
        yield f"model1_2.{spec.enhancer_blocks}", "enhancer_up"


def _last(spec: GeneratorSpec) -> str:
    """The place of the last convolution, after a mirrored margin."""
    if spec.enhancer_blocks:
        return f"model1_2.{spec.enhancer_blocks + 4}"
    return f"model.{5 + 6 * spec.halvings + spec.residual_blocks}"
