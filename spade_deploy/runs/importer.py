"""Import released generator files (`latest_net_G.pth`), and the encoders (`latest_net_E.pth`) that NVIDIA's code trains
beside them, as checkpoints of this package.

Such a file is a bare state dict, without any config: `imported_spec.py` and `imported_families.py` find out which
generator it is and how it is built.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError
from spade_deploy.files.locks import locked
from spade_deploy.networks.build import Encoder, Generator, build_generator
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.runs.checkpoint import Imported, save_checkpoint
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.runs.imported_families import ANCHORS, family_of
from spade_deploy.runs.imported_instance_encoder import ANCHOR, read_instance_encoder
from spade_deploy.runs.imported_spec import ImportedSpec
from spade_deploy.runs.layout import checkpoint_folder, new_run
from spade_deploy.runs.state_dicts import (
    ENCODER_HINT,
    check_values,
    choose_part,
    encoder_tensors,
    filled,
    find_parts,
    first_names,
)
from spade_deploy.runs.tensors import require_finite
from spade_deploy.runs.weight_files import load_weights
from spade_deploy.spec import GeneratorSpec

_ENCODER_ANCHOR = "fc_mu.weight"
_DISCRIMINATOR_ANCHORS = ("discriminator_0.model0.0.weight", "scale0_layer0.0.weight", "layer_up_last.weight")


@dataclass(frozen=True)
class ImportedGenerator:
    """A generator that was read from a file."""

    module: Generator
    """The network in eval mode."""

    spec: GeneratorSpec
    """How it is built."""

    notes: tuple[str, ...]
    """What was changed on the way, a sentence each."""

    guesses: tuple[str, ...] = ()
    """A sentence for each fact that had to be guessed; it names the field of the request that decides it."""


def read_generator_file(path: Path, request: ImportRequest) -> ImportedGenerator:
    """Read a released file. Nothing in it is executed (`weights_only`).

    Raises CheckpointError where the file is damaged, not a SPADE generator, or contradicts the request, and
    ConfigError where the request leaves something open that the file cannot tell.
    """
    notes: list[str] = []
    guesses: list[str] = []
    loaded = load_weights(path, "latest_net_G.pth")
    parts = find_parts(loaded, ANCHORS)
    if not parts:
        raise _no_generator(path, loaded)
    state = choose_part(parts, request.part, path, guesses, notes).tensors
    check_values(state, path)
    found = family_of(state)(state, request, path)
    spec = found.find()
    own = found.tensors(spec)
    guesses, notes = [*guesses, *found.guesses], [*notes, *found.notes]
    module = filled(partial(build_generator, spec), own, path, notes, "`upsampling` may be another than assumed")
    return ImportedGenerator(module.eval(), spec, tuple(notes), tuple(guesses))


def read_encoder_file(path: Path, spec: GeneratorSpec, notes: list[str] | None = None) -> Encoder:
    """The encoder (`latest_net_E.pth`), of styles or of instance features, of a generator of `spec`, in eval mode.

    Nothing in the file is executed.

    notes: the list that sentences on what was changed on the way are added to. Raises CheckpointError where the file
    is damaged, no encoder, or the encoder of another generator.
    """
    notes = [] if notes is None else notes
    if spec.has_features:
        return read_instance_encoder(path, spec, notes)
    if spec.z_dim is None or spec.noise_channels:
        raise CheckpointError(
            f"{path}: the generator has no style vector and no instance features, so it cannot use an encoder",
            hint="leave it out",
        )
    state = encoder_tensors(path, _ENCODER_ANCHOR, notes, is_not="not a style encoder", expected="a latest_net_E.pth")
    make = partial(StyleEncoder, spec.z_dim, spec.base_channels)
    with torch.device("meta"):
        wanted = tuple(make().fc_mu.weight.shape)
    found = tuple(state["fc_mu.weight"].shape)
    if found != wanted:
        raise CheckpointError(
            f"{path}: tensor 'fc_mu.weight' is {found}; the encoder of this generator (base channels"
            f" {spec.base_channels}, style vector {spec.z_dim}) has {wanted}",
            hint=ENCODER_HINT,
        )
    return filled(make, state, path, notes, ENCODER_HINT).eval()


def _no_generator(path: Path, loaded: object) -> CheckpointError:
    """The error for a file without a generator; it says what there is instead."""
    if find_parts(loaded, (_ENCODER_ANCHOR,)):
        return CheckpointError(
            f"{path}: this is the VAE's encoder",
            hint="import latest_net_G.pth, which lies beside it, and name this file with `encoder`",
        )
    if any(part.tensors[ANCHOR].shape[1:2] == (3,) for part in find_parts(loaded, (ANCHOR,)) if ANCHOR in part.tensors):
        return CheckpointError(
            f"{path}: this is pix2pixHD's encoder of instance features",
            hint="import latest_net_G.pth, which lies beside it, and name this file with `encoder`",
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
        f"{path}: tensor '{ImportedSpec.anchors[0]}' is missing: this is not a SPADE generator, nor another that can be"
        " imported",
        hint=f"expected a latest_net_G.pth; this file begins with {first_names(loaded)}",
    )


@dataclass(frozen=True)
class ImportResult:
    """A generator that was imported."""

    checkpoint: Path
    """The checkpoint of its run."""

    described: str
    """The spec that was found, in one line."""

    notes: tuple[str, ...]
    """What was changed on the way, a sentence each."""

    guesses: tuple[str, ...]
    """What was guessed, a sentence each."""


def import_checkpoint(file: Path, request: ImportRequest, *, runs_dir: Path, name: str | None = None) -> ImportResult:
    """Make a run of `file`. As the newest one it is what `spade export` takes. Raises as `read_generator_file`."""
    encoder = request.encoder
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
        f"{spec.title}, {spec.labels.num_channels} segmap channels, {spec.height} x {spec.width},"
        f"{f' upsampling {spec.upsampling},' if spec.has('upsampling') else ''}"
        f"{f' {spec.depth},' if spec.depth else ''}"
        f" {spec.norm} norm, {_style(spec, style)}{parameters / 1e6:.2f} M parameters"
    )
    notes = (*found.notes, *(f"the encoder: {note}" for note in of_encoder))
    return ImportResult(folder, described, notes, found.guesses)


def _style(spec: GeneratorSpec, encoder: Encoder | None) -> str:
    if spec.z_dim is None:
        return "" if encoder is None else "an encoder of photos, "
    if spec.noise_channels:
        return f"noise of {spec.noise_channels} numbers, "
    return "style vector, " if encoder is None else "style vector and its encoder, "
