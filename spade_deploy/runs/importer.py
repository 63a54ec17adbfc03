"""NVIDIA's released generator files (`latest_net_G.pth`) into checkpoints of this package, and the style encoders
(`latest_net_E.pth`) that its code trains beside them.

Such a file is a bare state dict: no config. Its tensor shapes tell everything but which labels the channels stand
for, the size it was trained for, and whether it upsamples 'normal' or 'more'; a preset, or flags, tell those. What
neither says is guessed, and said as a guess with the flag that changes it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError, quoted
from spade_deploy.files.locks import locked
from spade_deploy.labels.sets import label_set
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.runs.checkpoint import Imported, save_checkpoint
from spade_deploy.runs.layout import checkpoint_folder, new_run
from spade_deploy.runs.state_dicts import check_values, choose_part, completed, fill, find_parts
from spade_deploy.runs.tensors import require_finite
from spade_deploy.runs.weight_files import load_weights
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Upsampling

RELEASED = {
    # name: upsampling, height, width
    "coco": (Upsampling.NORMAL, 256, 256),
    "ade20k": (Upsampling.NORMAL, 256, 256),
    "cityscapes": (Upsampling.MORE, 256, 512),
}
"""The presets that NVIDIA released weights for."""

_GENERATOR_ANCHORS = ("head_0.conv_0.weight_orig", "head_0.conv_0.weight")
_ENCODER_ANCHORS = ("fc_mu.weight",)
_DISCRIMINATOR_ANCHORS = ("discriminator_0.model0.0.weight",)


@dataclass(frozen=True)
class ImportRequest:
    """What the file cannot tell. With a preset the rest follows from it; a flag that contradicts it is refused.

    labels: what the channels stand for, where there is no preset. size: (height, width) in pixels. norm: where the file
    has no running statistics. part: which network, where the file holds several ('generator_ema').
    """

    preset: str | None = None
    labels: LabelSpec | None = None
    upsampling: Upsampling | None = None
    size: tuple[int, int] | None = None
    norm: NormType | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in RELEASED:
            raise ConfigError(f"--preset: {quoted(self.preset)} is not one of {', '.join(RELEASED)}")
        if self.preset is not None and self.labels is not None:
            raise ConfigError(f"--num-labels contradicts --preset {self.preset}, which says what the labels are")


@dataclass(frozen=True)
class ImportedGenerator:
    """The generator in eval mode.

    guesses: what the file does not tell and nobody said, each with the flag that says it. notes: what was changed on
    the way. One sentence each.
    """

    module: SpadeGenerator
    spec: GeneratorSpec
    notes: tuple[str, ...]
    guesses: tuple[str, ...] = ()


def read_generator_file(path: Path, request: ImportRequest) -> ImportedGenerator:
    """Read a released file. Nothing in it is executed (`weights_only`).

    Raises CheckpointError where the file is damaged, not a SPADE generator, or contradicts the request, and
    ConfigError where the request leaves something open that the file cannot tell.
    """
    notes: list[str] = []
    guesses: list[str] = []
    loaded = load_weights(path, "latest_net_G.pth")
    parts = find_parts(loaded, _GENERATOR_ANCHORS)
    if not parts:
        raise _no_generator(path, loaded)
    state = choose_part(parts, request.part, path, guesses, notes).tensors
    check_values(state, path)
    spec = _infer_spec(state, request, path, guesses, notes)
    module = _with_weights(spec, state, path, notes)
    return ImportedGenerator(module.eval(), spec, tuple(notes), tuple(guesses))


def read_encoder_file(path: Path, spec: GeneratorSpec, notes: list[str] | None = None) -> StyleEncoder:
    """The style encoder (`latest_net_E.pth`) of a generator of `spec`, in eval mode. Nothing in the file is executed.

    notes: takes what was changed on the way. Raises CheckpointError where it is damaged or no encoder, or one of
    another generator.
    """
    notes = [] if notes is None else notes
    if spec.z_dim is None:
        raise CheckpointError(
            f"{path}: the generator has no style vector, so that an encoder means nothing to it", hint="leave it out"
        )
    loaded = load_weights(path, "latest_net_E.pth")
    parts = find_parts(loaded, _ENCODER_ANCHORS)
    if not parts:
        raise CheckpointError(
            f"{path}: tensor 'fc_mu.weight' is missing: this is no style encoder",
            hint=f"expected a latest_net_E.pth; this file begins with {_first_names(loaded)}",
        )
    state = choose_part(parts, None, path, notes, notes).tensors
    check_values(state, path)
    hint = "give the latest_net_E.pth that was trained with this generator"
    with torch.device("meta"):
        blueprint = StyleEncoder(spec.z_dim, spec.base_channels)
    found, wanted = tuple(state["fc_mu.weight"].shape), tuple(blueprint.fc_mu.weight.shape)
    if found != wanted:
        raise CheckpointError(
            f"{path}: tensor 'fc_mu.weight' is {found}; the encoder of this generator (base channels"
            f" {spec.base_channels}, style vector {spec.z_dim}) has {wanted}",
            hint=hint,
        )
    given = completed(blueprint, state, path, notes, hint)
    encoder = StyleEncoder(spec.z_dim, spec.base_channels)
    fill(encoder, given, path, notes)
    return encoder.eval()


def _no_generator(path: Path, loaded: object) -> CheckpointError:
    """What there is instead."""
    if find_parts(loaded, _ENCODER_ANCHORS):
        return CheckpointError(
            f"{path}: this is the VAE's encoder",
            hint="import latest_net_G.pth, which lies beside it, and name this file with --encoder",
        )
    if find_parts(loaded, _DISCRIMINATOR_ANCHORS):
        return CheckpointError(
            f"{path}: this is the discriminator", hint="import latest_net_G.pth, which lies beside it"
        )
    if not isinstance(loaded, dict):
        kind = "a tensor" if isinstance(loaded, Tensor) else f"a {type(loaded).__name__}"
        return CheckpointError(
            f"{path}: holds {kind}, not a state dict of named tensors", hint="give a latest_net_G.pth"
        )
    return CheckpointError(
        f"{path}: tensor '{_GENERATOR_ANCHORS[0]}' is missing: this is no SPADE generator",
        hint=f"expected a latest_net_G.pth; this file begins with {_first_names(loaded)}",
    )


def _first_names(loaded: object) -> str:
    names = list(loaded)[:3] if isinstance(loaded, dict) else []
    return ", ".join(quoted(name) for name in names) or "nothing"


def _infer_spec(
    state: dict[str, Tensor], request: ImportRequest, path: Path, guesses: list[str], notes: list[str]
) -> GeneratorSpec:
    def shape_of(key: str, dims: int) -> torch.Size:
        if key not in state or state[key].dim() != dims:
            found = f"has {state[key].dim()} dimensions, not {dims}" if key in state else "is missing"
            raise CheckpointError(
                f"{path}: tensor {key!r} {found}: this is no SPADE generator",
                hint=f"expected a latest_net_G.pth; this file begins with {_first_names(state)}",
            )
        return state[key].shape

    is_spectral = "head_0.conv_0.weight_orig" in state
    wide = shape_of("head_0.conv_0.weight_orig" if is_spectral else "head_0.conv_0.weight", 4)[0]
    hidden, channels, kernel, _ = shape_of("head_0.norm_0.mlp_shared.0.weight", 4)
    if wide % 16 or not wide:
        raise CheckpointError(f"{path}: head_0 has {wide} channels, which is not 16 times the base channels")
    if "fc.weight" not in state:
        shape_of("fc.weight", 4)
    is_vae = state["fc.weight"].dim() == 2
    labels, upsampling, size = _labels_and_size(channels, state, request, path, guesses, notes)
    spec = GeneratorSpec(
        labels=labels,
        base_channels=wide // 16,
        hidden_channels=hidden,
        kernel_size=kernel,
        norm=_norm(state, request, path, guesses),
        spectral_norm=is_spectral,
        upsampling=upsampling,
        z_dim=shape_of("fc.weight", 2)[1] if is_vae else None,
        height=size[0],
        width=size[1],
    )
    if is_vae and state["fc.weight"].shape[0] != wide * spec.latent_height * spec.latent_width:
        places = state["fc.weight"].shape[0] / wide
        raise CheckpointError(
            f"{path}: fc makes a latent of {places:g} places, but size {size[0]}x{size[1]} with upsampling {upsampling}"
            f" has {spec.latent_height} x {spec.latent_width}",
            hint="--size HEIGHTxWIDTH and --upsampling say what the model was trained for",
        )
    return spec


def _norm(state: dict[str, Tensor], request: ImportRequest, path: Path, guesses: list[str]) -> NormType:
    """Batch norm leaves statistics, instance norm nothing; nor does batch norm whose statistics were not saved."""
    statistics = [key for key in state if key.endswith(("running_mean", "running_var"))]
    if not statistics:
        if request.norm is None:
            guesses.append(
                "instance norm, since the file has no running statistics; a model trained with batch norm and saved"
                " without them makes other images; change it with --norm"
            )
        elif request.norm is not NormType.INSTANCE:
            raise CheckpointError(
                f"{path}: --norm {request.norm} needs the running statistics of batch norm, and the file has none",
                hint="save the model's whole state dict, with its buffers; or --norm instance",
            )
        return NormType.INSTANCE
    if request.norm is NormType.INSTANCE:
        raise CheckpointError(
            f"{path}: has {quoted(statistics[0])}, statistics of batch norm, which contradicts --norm instance",
            hint="leave --norm out",
        )
    return request.norm or NormType.SYNC_BATCH


def _say_what_the_preset_says(
    preset: str,
    request: ImportRequest,
    upsampling: Upsampling,
    size: tuple[int, int],
    guesses: list[str],
    notes: list[str],
) -> None:
    """Of a preset that was named it is a note, of one that was guessed a guess, too."""
    where = guesses if request.preset is None else notes
    if request.upsampling is None and upsampling is not Upsampling.MOST:
        where.append(
            f"upsampling {upsampling}, as in the released {preset} model; the file does not tell normal from more;"
            " change it with --upsampling"
        )
    elif request.upsampling not in (None, upsampling):
        notes.append(f"upsampling {request.upsampling} as asked; the released {preset} model has {upsampling}")
    if request.size is None:
        where.append(
            f"{size[0]} x {size[1]} pixels, as the released {preset} model; the file does not tell the size;"
            " change it with --size"
        )


def _labels_and_size(
    channels: int,
    state: dict[str, Tensor],
    request: ImportRequest,
    path: Path,
    guesses: list[str],
    notes: list[str],
) -> tuple[LabelSpec, Upsampling, tuple[int, int]]:
    is_most = any(key.startswith("up_4.") for key in state)
    preset = request.preset
    if preset is None and request.labels is None:
        by_channels = {label_set(name).num_channels: name for name in RELEASED}
        preset = by_channels.get(channels)
        if preset is None:
            raise ConfigError(
                f"{path}: a segmap of {channels} channels is none of the released models"
                f" ({', '.join(f'{name} {count}' for count, name in by_channels.items())})",
                hint="say what they are: --num-labels N [--dontcare] [--edges] --size HxW --upsampling normal|more",
            )
        labels = label_set(preset)
        extra = f"{', dontcare' if labels.has_dontcare else ''}{', edges' if labels.has_edges else ''}"
        guesses.append(
            f"the {channels} segmap channels are {preset}'s ({labels.num_labels} labels{extra}), since their number is;"
            " change it with --preset, or --num-labels [--dontcare] [--edges]"
        )
    if preset is not None:
        labels = label_set(preset)
        upsampling, height, width = RELEASED[preset]
        size = request.size or (height, width)
        if is_most:
            upsampling = Upsampling.MOST  # the file tells: it has a block more
        _say_what_the_preset_says(preset, request, upsampling, size, guesses, notes)
        upsampling = request.upsampling or upsampling
    else:
        assert request.labels is not None
        labels = request.labels
        if request.size is None:
            raise ConfigError("--size is needed: the file does not tell the size the model was trained for")
        size = request.size
        if request.upsampling is None and not is_most:
            raise ConfigError("--upsampling is needed: the file does not tell 'normal' from 'more'")
        upsampling = request.upsampling or Upsampling.MOST
    if labels.num_channels != channels:
        raise CheckpointError(
            f"{path}: the file has {channels} segmap channels, but {preset or 'these labels'} need"
            f" {labels.num_channels} ({labels.num_labels} labels, dontcare {int(labels.has_dontcare)},"
            f" edges {int(labels.has_edges)})",
            hint="take the preset, or --num-labels, --dontcare and --edges, that the model was trained with",
        )
    if is_most != (upsampling is Upsampling.MOST):
        raise CheckpointError(
            f"{path}: the file has {'a' if is_most else 'no'} block up_4, which contradicts --upsampling {upsampling}"
        )
    return labels, upsampling, size


def _with_weights(spec: GeneratorSpec, state: dict[str, Tensor], path: Path, notes: list[str]) -> SpadeGenerator:
    """Shapes are compared with those of a module without memory before one with memory is built."""
    with torch.device("meta"):
        blueprint = SpadeGenerator(spec)
    given = completed(blueprint, state, path, notes, "--upsampling may be another than assumed")
    module = SpadeGenerator(spec)
    fill(module, given, path, notes)
    return module


@dataclass(frozen=True)
class ImportResult:
    """Where the import is, what it was taken for, and what was assumed on the way."""

    checkpoint: Path
    described: str
    notes: tuple[str, ...]
    guesses: tuple[str, ...]


def request_from_flags(
    preset: str | None,
    num_labels: int | None,
    *,
    has_dontcare: bool,
    has_edges: bool,
    upsampling: Upsampling | None,
    size: tuple[int, int] | None,
    norm: NormType | None = None,
    part: str | None = None,
) -> ImportRequest:
    """What was typed, checked. Raises ConfigError for flags that contradict each other."""
    if num_labels is None and (has_dontcare or has_edges):
        raise ConfigError("--dontcare and --edges say what --num-labels leaves open; give that too")
    labels = None
    if num_labels is not None:
        labels = LabelSpec(num_labels, has_dontcare=has_dontcare, has_edges=has_edges)
    return ImportRequest(preset, labels, upsampling, size, norm, part)


def import_checkpoint(
    file: Path, request: ImportRequest, *, runs_dir: Path, name: str | None = None, encoder: Path | None = None
) -> ImportResult:
    """Make a run of `file`, the newest of all, so that a bare export takes it. Raises as `read_generator_file`.

    encoder: the style encoder's file (`latest_net_E.pth`) of a generator with a style vector.
    """
    found = read_generator_file(file, request)
    require_finite(found.module.state_dict(), file)
    of_encoder: list[str] = []
    style = read_encoder_file(encoder, found.spec, of_encoder) if encoder is not None else None
    if style is not None and encoder is not None:
        require_finite(style.state_dict(), encoder)
    run = new_run(runs_dir, name, "import")
    folder = checkpoint_folder(run, 0)
    try:
        with locked(run, "importing a model into it"):
            save_checkpoint(
                folder,
                found.module,
                step=0,
                origin="import",
                imported=Imported(file.name, tuple(found.guesses)),
                encoder=style,
            )
    except BaseException:  # a full disk, Ctrl-C: a run without a checkpoint is of no use to anybody
        shutil.rmtree(run, ignore_errors=True)
        raise
    spec = found.spec
    parameters = sum(parameter.numel() for parameter in found.module.parameters())
    described = (
        f"{spec.labels.num_channels} segmap channels, {spec.height} x {spec.width}, upsampling {spec.upsampling},"
        f" {spec.norm} norm, {_style(spec, style)}{parameters / 1e6:.2f} M parameters"
    )
    notes = (*found.notes, *(f"the encoder: {note}" for note in of_encoder))
    return ImportResult(folder, described, notes, found.guesses)


def _style(spec: GeneratorSpec, encoder: StyleEncoder | None) -> str:
    if spec.z_dim is None:
        return ""
    return "style vector, " if encoder is None else "style vector and its encoder, "
