"""NVIDIA's released generator files (`latest_net_G.pth`) into checkpoints of this package, and the style encoders
(`latest_net_E.pth`) that its code trains beside them.

Such a file is a bare state dict: no config. Its tensor shapes tell everything but which labels the channels stand
for, the size it was trained for, and whether it upsamples 'normal' or 'more'; a preset, or flags, tell those.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.label_sets import label_set
from spade_deploy.locks import locked
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Upsampling
from spade_deploy.training.checkpoint import require_finite, save_checkpoint
from spade_deploy.training.encoder import StyleEncoder
from spade_deploy.training.networks import SpadeGenerator

RELEASED = {
    # name: upsampling, height, width
    "coco": (Upsampling.NORMAL, 256, 256),
    "ade20k": (Upsampling.NORMAL, 256, 256),
    "cityscapes": (Upsampling.MORE, 256, 512),
}
"""The presets that NVIDIA released weights for."""

LEGACY_TAR_HINT = (
    "load it once with the PyTorch that wrote it (0.1.10 or older) or with torch.load(FILE, weights_only=False) if you"
    " trust its author, then torch.save(state_dict, 'latest_net_G.pth') writes today's format"
)


@dataclass(frozen=True)
class ImportRequest:
    """What the file cannot tell. With a preset the rest follows from it; a flag that contradicts it is refused.

    labels: what the channels stand for, where there is no preset. size: (height, width) in pixels.
    """

    preset: str | None = None
    labels: LabelSpec | None = None
    upsampling: Upsampling | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in RELEASED:
            raise ConfigError(f"--preset: {self.preset!r} is not one of {', '.join(RELEASED)}")
        if self.preset is not None and self.labels is not None:
            raise ConfigError(f"--num-labels contradicts --preset {self.preset}, which says what the labels are")


@dataclass(frozen=True)
class ImportedGenerator:
    """The generator in eval mode, and what was assumed or changed on the way, one sentence each."""

    module: SpadeGenerator
    spec: GeneratorSpec
    notes: tuple[str, ...]


def read_generator_file(path: Path, request: ImportRequest) -> ImportedGenerator:
    """Read a released file. Nothing in it is executed (`weights_only`).

    Raises CheckpointError where the file is damaged, not a SPADE generator, or contradicts the request, and
    ConfigError where the request leaves something open that the file cannot tell.
    """
    notes: list[str] = []
    loaded = _load_state_dict(path, "latest_net_G.pth")
    if any(key.removeprefix("module.") == "fc_mu.weight" for key in loaded):
        raise CheckpointError(
            f"{path}: this is the VAE's encoder",
            hint="import latest_net_G.pth, which lies beside it, and name this file with --encoder",
        )
    state = _plain_names(loaded, path, notes)
    spec = _infer_spec(state, request, path, notes)
    module = SpadeGenerator(spec)
    _load_into(module, state, path, notes)
    return ImportedGenerator(module.eval(), spec, tuple(notes))


def read_encoder_file(path: Path, spec: GeneratorSpec) -> StyleEncoder:
    """The style encoder (`latest_net_E.pth`) of a generator of `spec`, in eval mode. Nothing in the file is executed.

    Raises CheckpointError where it is damaged or no encoder, or one of another generator.
    """
    if spec.z_dim is None:
        raise CheckpointError(
            f"{path}: the generator has no style vector, so that an encoder means nothing to it", hint="leave it out"
        )
    state = _plain_names(_load_state_dict(path, "latest_net_E.pth"), path, [])
    if "fc_mu.weight" not in state:
        raise CheckpointError(
            f"{path}: tensor 'fc_mu.weight' is missing: this is no style encoder",
            hint=f"expected a latest_net_E.pth; this file begins with {', '.join(list(state)[:3])}",
        )
    encoder = StyleEncoder(spec.z_dim, spec.base_channels)
    hint = "give the latest_net_E.pth that was trained with this generator"
    found, wanted = tuple(state["fc_mu.weight"].shape), tuple(encoder.fc_mu.weight.shape)
    if found != wanted:
        raise CheckpointError(
            f"{path}: tensor 'fc_mu.weight' is {found}; the encoder of this generator (base channels"
            f" {spec.base_channels}, style vector {spec.z_dim}) has {wanted}",
            hint=hint,
        )
    _load_into(encoder, state, path, [], hint=hint)
    return encoder.eval()


def _load_state_dict(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", hint=f"give the path of a {expected}")
    # PyTorch's own files are zip archives or start with a pickled number: neither is a tar.
    if tarfile.is_tarfile(path):
        raise CheckpointError(
            f"{path}: this is PyTorch's legacy tar format, which cannot be read without running code from the file",
            hint=LEGACY_TAR_HINT,
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a PyTorch weight file that can be loaded safely ({reason[:200]})",
            hint="a file that holds more than tensors must be saved again as torch.save(model.state_dict(), FILE)",
        ) from error
    for wrapper in ("state_dict", "netG", "generator", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(key, str) for key in loaded):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state dict of named tensors")
    return loaded


def _plain_names(loaded: dict[str, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
        notes.append("names had DataParallel's prefix 'module.', which was dropped")
    if any(key.startswith("discriminator_0.") for key in loaded):
        raise CheckpointError(
            f"{path}: this is the discriminator", hint="import latest_net_G.pth, which lies beside it"
        )
    state = {}
    for key, value in loaded.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {key!r} is a {type(value).__name__}, not a tensor")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {key!r} holds NaN or infinity")
        state[key] = value
    return state


def _infer_spec(state: dict[str, Tensor], request: ImportRequest, path: Path, notes: list[str]) -> GeneratorSpec:
    def shape_of(key: str, dims: int) -> torch.Size:
        if key not in state or state[key].dim() != dims:
            found = f"has {state[key].dim()} dimensions, not {dims}" if key in state else "is missing"
            raise CheckpointError(
                f"{path}: tensor {key!r} {found}: this is no SPADE generator",
                hint=f"expected a latest_net_G.pth; this file begins with {', '.join(list(state)[:3])}",
            )
        return state[key].shape

    is_spectral = "head_0.conv_0.weight_orig" in state
    wide = shape_of("head_0.conv_0.weight_orig" if is_spectral else "head_0.conv_0.weight", 4)[0]
    hidden, channels, kernel, _ = shape_of("head_0.norm_0.mlp_shared.0.weight", 4)
    if wide % 16:
        raise CheckpointError(f"{path}: head_0 has {wide} channels, which is not 16 times the base channels")
    if "fc.weight" not in state:
        shape_of("fc.weight", 4)
    is_vae = state["fc.weight"].dim() == 2
    labels, upsampling, size = _labels_and_size(channels, state, request, path, notes)
    has_statistics = "head_0.norm_0.param_free_norm.running_mean" in state
    spec = GeneratorSpec(
        labels=labels,
        base_channels=wide // 16,
        hidden_channels=hidden,
        kernel_size=kernel,
        norm=NormType.SYNC_BATCH if has_statistics else NormType.INSTANCE,
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


def _labels_and_size(
    channels: int, state: dict[str, Tensor], request: ImportRequest, path: Path, notes: list[str]
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
        notes.append(f"taken for {preset}, from its {channels} segmap channels (--preset says otherwise)")
    if preset is not None:
        labels = label_set(preset)
        upsampling, height, width = RELEASED[preset]
        size = request.size or (height, width)
        if request.upsampling not in (None, upsampling):
            notes.append(f"upsampling {request.upsampling} as asked; the released {preset} model has {upsampling}")
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


def _load_into(
    module: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    notes: list[str],
    hint: str = "--upsampling may be another than assumed",
) -> None:
    expected = module.state_dict()
    given = dict(state)
    solved = 0
    for key in expected:
        weight = key.removesuffix("_v")
        if key.endswith("weight_v") and key not in given and f"{weight}_orig" in given and f"{weight}_u" in given:
            # Files of PyTorch before 1.0 store u alone; v is what one half of a power iteration makes of it.
            matrix = given[f"{weight}_orig"].float().flatten(1)
            given[key] = functional.normalize(matrix.t() @ given[f"{weight}_u"].float(), dim=0, eps=1e-12)
            solved += 1
        elif key.endswith("num_batches_tracked") and key not in given:
            given[key] = torch.zeros_like(expected[key])
    if solved:
        notes.append(f"the file is older than PyTorch 1.0: weight_v of {solved} layers was computed from weight_u")
    for key in [key for key in given if key.endswith(".weight") and f"{key}_orig" in given]:
        del given[key]  # those old files also carry the normalised weight, as a buffer
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unexpected:
        parts = [f"lacks {missing[0]!r} ({len(missing)} tensors)"] if missing else []
        parts += (
            [f"has {unexpected[0]!r} ({len(unexpected)} tensors), which such a network has not"] if unexpected else []
        )
        raise CheckpointError(f"{path}: {' and '.join(parts)}", hint=hint)
    for key, tensor in expected.items():
        if given[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {key!r} is {tuple(given[key].shape)},"
                f" but the rest of the file implies {tuple(tensor.shape)}"
            )
    if any(given[key].dtype != tensor.dtype for key, tensor in expected.items() if tensor.is_floating_point()):
        notes.append("weights were converted to float32")
    module.load_state_dict({key: given[key].to(tensor.dtype) for key, tensor in expected.items()})


@dataclass(frozen=True)
class ImportResult:
    """Where the import is, what it was taken for, and what was assumed on the way."""

    checkpoint: Path
    described: str
    notes: tuple[str, ...]


def request_from_flags(
    preset: str | None,
    num_labels: int | None,
    *,
    has_dontcare: bool,
    has_edges: bool,
    upsampling: Upsampling | None,
    size: tuple[int, int] | None,
) -> ImportRequest:
    """What was typed, checked. Raises ConfigError for flags that contradict each other."""
    if num_labels is None and (has_dontcare or has_edges):
        raise ConfigError("--dontcare and --edges say what --num-labels leaves open; give that too")
    labels = None
    if num_labels is not None:
        labels = LabelSpec(num_labels, has_dontcare=has_dontcare, has_edges=has_edges)
    return ImportRequest(preset, labels, upsampling, size)


def import_checkpoint(
    file: Path, request: ImportRequest, *, runs_dir: Path, name: str | None = None, encoder: Path | None = None
) -> ImportResult:
    """Make a run of `file`, the newest of all, so that a bare export takes it. Raises as `read_generator_file`.

    encoder: the style encoder's file (`latest_net_E.pth`) of a generator with a style vector.
    """
    found = read_generator_file(file, request)
    require_finite(found.module.state_dict(), file)
    style = read_encoder_file(encoder, found.spec) if encoder is not None else None
    if style is not None and encoder is not None:
        require_finite(style.state_dict(), encoder)
    run = new_run(runs_dir, name, "import")
    folder = checkpoint_folder(run, 0)
    with locked(run, "importing a model into it"):
        save_checkpoint(folder, found.module, step=0, origin="import", source=file.name, encoder=style)
    spec = found.spec
    parameters = sum(parameter.numel() for parameter in found.module.parameters())
    described = (
        f"{spec.labels.num_channels} segmap channels, {spec.height} x {spec.width}, upsampling {spec.upsampling},"
        f" {spec.norm} norm, {_style(spec, style)}{parameters / 1e6:.2f} M parameters"
    )
    return ImportResult(folder, described, found.notes)


def _style(spec: GeneratorSpec, encoder: StyleEncoder | None) -> str:
    if spec.z_dim is None:
        return ""
    return "style vector, " if encoder is None else "style vector and its encoder, "
