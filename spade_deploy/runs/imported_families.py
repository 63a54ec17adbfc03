"""Find the specs of SPADE's neighbours: which tensors each of them is known by, and what its shapes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.labels.sets import is_label_set, label_set
from spade_deploy.runs.import_request import RELEASED
from spade_deploy.runs.imported_pix2pixhd import ImportedPix2PixHDSpec
from spade_deploy.runs.imported_spec import AS_PUBLISHED, ImportedSpec
from spade_deploy.spec import OASIS_NOISE, Architecture, GeneratorSpec, LabelSpec

_TABLE = "head_0.norm_0.class_specified_affine.weight"
_EDGES = "head_0.norm_0.inst_conv.weight"
_POSITIONS = "head_0.norm_0.class_specified_affine.dist_conv_w.weight"


class ImportedCladeSpec(ImportedSpec):
    """Finds the spec of CLADE. Its tables tell the classes, and their `inst_conv` the edge channel."""

    architecture: ClassVar = Architecture.CLADE
    anchors: ClassVar[tuple[str, ...]] = (_TABLE,)

    def find(self) -> GeneratorSpec:
        """See `ImportedSpec.find`."""
        spec = super().find()
        classes, has_edges = self._shape(_TABLE, 2)[0], _EDGES in self._state
        labels = spec.labels
        if (labels.num_ids, labels.has_edges) != (classes, has_edges):
            raise CheckpointError(
                f"{self._path}: the file has tables of {classes} classes {_with(has_edges)} edge channel, but these"
                f" labels have {labels.num_ids} ids {_with(labels.has_edges)} one",
                hint="take the preset, or `num_labels`, `has_dontcare` and `has_edges`, that the model was trained"
                " with",
            )
        return spec

    def _modulation(self) -> tuple[int, dict[str, Any]]:
        channels = self._shape(_TABLE, 2)[0] + int(_EDGES in self._state)
        if "fc.weight" in self._state and self._state["fc.weight"].dim() == 4:
            found = self._state["fc.weight"].shape[1]
            if found != channels:
                raise CheckpointError(
                    f"{self._path}: tensor 'fc.weight' takes {found} channels, but the tables"
                    f" {_with(_EDGES in self._state)} edge channel imply {channels}",
                    hint=AS_PUBLISHED,
                )
        return channels, {"has_positions": _POSITIONS in self._state}


class ImportedOasisSpec(ImportedSpec):
    """Finds the spec of OASIS: what its first layer sees beside the labels is the noise.

    Its data sets put unknown pixels on channel 0, and so shift the ids by one. Here they are the last channel, and ids
    stay as they are in files, so `tensors` moves that channel. ADE20K's files hold the shifted ids themselves.
    """

    architecture: ClassVar = Architecture.OASIS
    anchors: ClassVar[tuple[str, ...]] = ("body.0.conv_0.weight_orig", "body.0.conv_0.weight")

    def find(self) -> GeneratorSpec:
        """See `ImportedSpec.find`."""
        is_spectral = self.anchors[0] in self._state
        wide = self._shape(self.anchors[0 if is_spectral else 1], 4)[0]
        hidden, seen, kernel, _ = self._shape("body.0.norm_0.mlp_shared.0.weight", 4)
        first = self._shape("fc.weight", 4)[1]
        if wide % 16 or not wide:
            raise CheckpointError(
                f"{self._path}: body.0 has {wide} channels, which is not 16 times the base channels", hint=AS_PUBLISHED
            )
        if first != seen:
            raise CheckpointError(
                f"{self._path}: tensor 'fc.weight' takes {first} channels, but the modulation {seen}",
                hint=AS_PUBLISHED,
            )
        if self._request.upsampling is not None:
            raise CheckpointError(
                f"{self._path}: `upsampling` means nothing to OASIS, which doubles 5 times", hint="leave it out"
            )
        labels, size = self._labels(seen)
        noise = seen - labels.num_channels
        if noise not in (0, OASIS_NOISE):
            raise CheckpointError(
                f"{self._path}: the first layer sees {seen} channels, of which these labels are {labels.num_channels}:"
                f" {noise} are left for the noise, which has {OASIS_NOISE}, or none",
                hint="take the preset, or `num_labels` and `has_dontcare`, that the model was trained with",
            )
        return GeneratorSpec(
            labels=labels,
            architecture=self.architecture,
            base_channels=wide // 16,
            hidden_channels=hidden,
            kernel_size=kernel,
            norm=self._norm(),
            spectral_norm=is_spectral,
            z_dim=noise or None,
            height=size[0],
            width=size[1],
        )

    def tensors(self, spec: GeneratorSpec) -> dict[str, Tensor]:
        """See `ImportedSpec.tensors`."""
        found = {key.replace(".first_norm.", ".param_free_norm."): value for key, value in self._state.items()}
        if not spec.labels.has_dontcare or is_label_set(spec.labels, "ade20k"):
            return found
        unknown, channels = spec.noise_channels, spec.modulation_channels
        order = [*range(unknown), *range(unknown + 1, channels), unknown]
        for key in [key for key in found if key == "fc.weight" or key.endswith(".mlp_shared.0.weight")]:
            if found[key].dim() == 4 and found[key].shape[1] == channels:  # the check of shapes comes later
                found[key] = found[key][:, order]
        self.notes.append("the channel of unknown pixels, the file's first, is the last one here")
        return found

    def _labels(self, seen: int) -> tuple[LabelSpec, tuple[int, int]]:
        request = self._request
        preset, labels = request.preset, request.label_spec
        if labels is not None and labels.has_edges:
            raise CheckpointError(f"{self._path}: `has_edges`: OASIS sees no edges", hint="leave it out")
        if labels is None and preset is None:
            counts = {oasis_labels(name).num_channels + noise: name for name in RELEASED for noise in (0, OASIS_NOISE)}
            preset = counts.get(seen)
            if preset is None:
                raise ConfigError(
                    f"{self._path}: {seen} channels of noise and labels are none of the released models"
                    f" ({', '.join(f'{name} {count}' for count, name in counts.items() if count > OASIS_NOISE)})",
                    hint="say what they are: `num_labels` N [`has_dontcare`] `size` HxW",
                )
            self.guesses.append(
                f"the labels are {preset}'s, judged by the number of channels, {seen}; change it with `preset`, or"
                " `num_labels` [`has_dontcare`]"
            )
        if preset is None:
            assert labels is not None
            if request.size is None:
                raise ConfigError("`size` is needed: the file does not tell the size the model was trained for")
            return labels, request.size
        _, height, width = RELEASED[preset]
        if request.size is None:
            told = self.guesses if request.preset is None else self.notes
            told.append(
                f"{height} x {width} pixels, as the released {preset} model; the file does not tell the size;"
                " change it with `size`"
            )
        return oasis_labels(preset), request.size or (height, width)


def oasis_labels(preset: str) -> LabelSpec:
    """The labels of a data set as OASIS sees them, without edges."""
    return replace(label_set(preset), has_edges=False)


FAMILIES: tuple[type[ImportedSpec], ...] = (
    ImportedCladeSpec,
    ImportedOasisSpec,
    ImportedPix2PixHDSpec,
    ImportedSpec,
)
"""All generators that can be imported. CLADE has SPADE's anchors as well, and so comes before it."""

ANCHORS = tuple(anchor for family in FAMILIES for anchor in family.anchors)
"""The tensors by which any of them is recognised."""


def family_of(state: Mapping[str, Tensor]) -> type[ImportedSpec]:
    """What finds the spec of a generator with these tensors, one of which is an anchor."""
    return next(family for family in FAMILIES if not set(family.anchors).isdisjoint(state))


def _with(is_there: bool) -> str:
    return "with an" if is_there else "without an"
