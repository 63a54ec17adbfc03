"""Find the spec of a generator whose file is a bare state dict, from the shapes, the request, and guesses.

Here is SPADE's, and what the others share with it (`imported_families.py`). The tensor shapes decide everything but
three facts: which labels the channels stand for, the size that the model was trained for, and whether it upsamples
'normal' or 'more'. A preset or the request decides these; otherwise they are guessed.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError, quoted
from spade_deploy.labels.sets import label_set
from spade_deploy.runs.import_request import RELEASED, ImportRequest
from spade_deploy.runs.state_dicts import first_names
from spade_deploy.spec import Architecture, GeneratorSpec, LabelSpec, NormType, Upsampling, least_base, usual_widths

AS_PUBLISHED = "the file is damaged, or of another network; take the file as it was published"


class ImportedSpec:
    """Finds the spec of `state`, a SPADE generator's tensors under its own names, from the file `path`.

    `find` fills two lists of sentences. notes: what was changed on the way. guesses: facts that neither the file nor
    the request holds. Guesses are saved in the checkpoint and read much later; they name the fields of the request.
    """

    architecture: ClassVar = Architecture.SPADE
    anchors: ClassVar[tuple[str, ...]] = ("head_0.conv_0.weight_orig", "head_0.conv_0.weight")
    """Tensors by which the network is recognised: one of them is in its file."""

    def __init__(self, state: dict[str, Tensor], request: ImportRequest, path: Path) -> None:
        self.notes: list[str] = []
        self.guesses: list[str] = []
        self._state, self._request, self._path = state, request, path

    def find(self) -> GeneratorSpec:
        """The spec. Raises CheckpointError if the file is no such generator or contradicts the request, ConfigError if
        the request has to say something that the file does not hold."""
        state = self._state
        is_spectral = "head_0.conv_0.weight_orig" in state
        wide = self._shape("head_0.conv_0.weight_orig" if is_spectral else "head_0.conv_0.weight", 4)[0]
        channels, modulation = self._modulation()
        widths = self._level_widths(wide, modulation.get("hidden_channels"), "weight_orig" if is_spectral else "weight")
        if (wide % 16 or not wide) and not widths:
            raise CheckpointError(f"{self._path}: head_0 has {wide} channels, which is not 16 times the base channels")
        if "fc.weight" not in state:
            self._shape("fc.weight", 4)
        is_vae = state["fc.weight"].dim() == 2
        labels, upsampling, size = self._labels_and_size(channels)
        spec = GeneratorSpec(
            labels=labels,
            architecture=self.architecture,
            **{"base_channels": wide // 16, **modulation, **widths},
            norm=self._norm(),
            spectral_norm=is_spectral,
            upsampling=upsampling,
            z_dim=self._shape("fc.weight", 2)[1] if is_vae else None,
            height=size[0],
            width=size[1],
        )
        if is_vae and state["fc.weight"].shape[0] != wide * spec.latent_height * spec.latent_width:
            places = state["fc.weight"].shape[0] / wide
            raise CheckpointError(
                f"{self._path}: fc makes a latent of {places:g} places, but size {size[0]}x{size[1]} with upsampling"
                f" {upsampling} has {spec.latent_height} x {spec.latent_width}",
                hint="`size` HEIGHTxWIDTH and `upsampling` say what the model was trained for",
            )
        return spec

    def tensors(self, spec: GeneratorSpec) -> dict[str, Tensor]:
        """The file's tensors under the names, and with the channels, of the network of `spec`, which `find` found."""
        return self._state

    def _modulation(self) -> tuple[int, dict[str, Any]]:
        """The number of the segmap's channels, and the fields of the spec that say how the modulation is built."""
        hidden, channels, kernel, _ = self._shape("head_0.norm_0.mlp_shared.0.weight", 4)
        return channels, {"hidden_channels": hidden, "kernel_size": kernel}

    def _level_widths(self, wide: int, hidden: int | None, weight: str) -> dict[str, Any]:
        """The fields of the spec for levels of other widths than the paper's; empty for its own, or if tensors differ.

        wide, hidden: the widths of the first level. weight: the name of a convolution's weight.
        """
        if hidden is None:
            return {}
        state, channels, inside = self._state, [wide], [hidden]
        number = 0
        while f"up_{number}.conv_0.{weight}" in state:
            shapes = [state.get(f"up_{number}.{name}") for name in (f"conv_0.{weight}", "norm_0.mlp_shared.0.weight")]
            if any(one is None or one.dim() != 4 or not len(one) for one in shapes):
                return {}
            conv, shared = (one.shape for one in shapes if one is not None)
            if conv[1] != channels[-1]:
                return {}
            channels.append(conv[0])
            inside.append(shared[0])
            number += 1
        if number not in (4, 5) or any(one <= other for one, other in pairwise(channels)):
            return {}
        upsampling = Upsampling.MOST if number == 5 else Upsampling.NORMAL
        base = least_base(channels, upsampling)
        is_usual = tuple(channels) == usual_widths(base, upsampling)
        if is_usual and len(set(inside)) == 1:
            return {}
        return {
            "base_channels": base,
            "hidden_channels": max(inside),
            "level_channels": None if is_usual else tuple(channels),
            "level_hidden": None if len(set(inside)) == 1 else tuple(inside),
        }

    def _shape(self, key: str, dims: int) -> torch.Size:
        state = self._state
        if key not in state or state[key].dim() != dims:
            found = f"has {state[key].dim()} dimensions, not {dims}" if key in state else "is missing"
            raise CheckpointError(
                f"{self._path}: tensor {key!r} {found}: this is not a {self.architecture.upper()} generator",
                hint=f"expected a latest_net_G.pth; this file begins with {first_names(state)}",
            )
        return state[key].shape

    def _norm(self) -> NormType:
        """The norm, by the running statistics in the file.

        Instance norm has none, and neither has batch norm whose statistics were not saved. So without them instance
        norm is assumed, and that is a guess unless the request says it.
        """
        wanted = self._request.norm
        statistics = [key for key in self._state if key.endswith(("running_mean", "running_var"))]
        if not statistics:
            if wanted is None:
                self.guesses.append(
                    "instance norm, since the file has no running statistics; a model trained with batch norm and saved"
                    " without them makes other images; change it with `norm`"
                )
            elif wanted is not NormType.INSTANCE:
                raise CheckpointError(
                    f"{self._path}: `norm` {wanted} needs the running statistics of batch norm, and the file has none",
                    hint="save the model's whole state dict, with its buffers; or `norm` instance",
                )
            return NormType.INSTANCE
        if wanted is NormType.INSTANCE:
            raise CheckpointError(
                f"{self._path}: has {quoted(statistics[0])}, statistics of batch norm, which contradicts `norm`"
                " instance",
                hint="leave `norm` out",
            )
        return wanted or NormType.SYNC_BATCH

    def _labels_and_size(self, channels: int) -> tuple[LabelSpec, Upsampling, tuple[int, int]]:
        is_most = any(key.startswith("up_4.") for key in self._state)  # 'most' has one more block
        request = self._request
        preset = request.preset
        own = request.label_spec
        if preset is None and own is None:
            preset = self._guessed_preset(channels)
        if preset is not None:
            labels, upsampling, size = self._by_preset(preset, is_most)
        else:
            assert own is not None
            labels = own
            if request.size is None:
                raise ConfigError("`size` is needed: the file does not tell the size the model was trained for")
            size = request.size
            if request.upsampling is None and not is_most:
                raise ConfigError("`upsampling` is needed: the file does not tell 'normal' from 'more'")
            upsampling = request.upsampling or Upsampling.MOST
        self._require_channels(channels, labels, preset)
        if is_most != (upsampling is Upsampling.MOST):
            raise CheckpointError(
                f"{self._path}: the file has {'a' if is_most else 'no'} block up_4, which contradicts `upsampling`"
                f" {upsampling}"
            )
        return labels, upsampling, size

    def _require_channels(self, channels: int, labels: LabelSpec, preset: str | None) -> None:
        """Raise CheckpointError where the file's first layer sees another segmap than that of the labels."""
        if labels.num_channels != channels:
            raise CheckpointError(
                f"{self._path}: the file has {channels} segmap channels, but {preset or 'these labels'} need"
                f" {labels.num_channels} ({labels.num_labels} labels, dontcare {int(labels.has_dontcare)},"
                f" edges {int(labels.has_edges)})",
                hint="take the preset, or `num_labels`, `has_dontcare` and `has_edges`, that the model was trained"
                " with",
            )

    def _guessed_preset(self, channels: int) -> str:
        """The preset of the released model that has as many channels."""
        by_channels = {label_set(name).num_channels: name for name in RELEASED}
        preset = by_channels.get(channels)
        if preset is None:
            raise ConfigError(
                f"{self._path}: a segmap of {channels} channels matches none of the released models"
                f" ({', '.join(f'{name} {count}' for count, name in by_channels.items())})",
                hint="say what they are: `num_labels` N [`has_dontcare`] [`has_edges`] `size` HxW"
                " `upsampling` normal|more",
            )
        labels = label_set(preset)
        extra = f"{', dontcare' if labels.has_dontcare else ''}{', edges' if labels.has_edges else ''}"
        self.guesses.append(
            f"the {channels} segmap channels are {preset}'s ({labels.num_labels} labels{extra}), judged by their"
            " number; change it with `preset`, or `num_labels` [`has_dontcare`] [`has_edges`]"
        )
        return preset

    def _by_preset(self, preset: str, is_most: bool) -> tuple[LabelSpec, Upsampling, tuple[int, int]]:
        """The facts of a preset, which the request may overrule, with a sentence for each one that is used."""
        request = self._request
        released, height, width = RELEASED[preset]
        upsampling = Upsampling.MOST if is_most else released
        size = request.size or (height, width)
        # If the preset was named such a sentence is a note; if the preset was guessed it is a guess, too.
        told = self.guesses if request.preset is None else self.notes
        if request.upsampling is None and upsampling is not Upsampling.MOST:
            told.append(
                f"upsampling {upsampling}, as in the released {preset} model; the file does not tell normal from more;"
                " change it with `upsampling`"
            )
        elif request.upsampling not in (None, upsampling):
            self.notes.append(f"upsampling {request.upsampling} as asked; the released {preset} model has {upsampling}")
        if request.size is None:
            told.append(
                f"{size[0]} x {size[1]} pixels, as the released {preset} model; the file does not tell the size;"
                " change it with `size`"
            )
        return label_set(preset), request.upsampling or upsampling, size
