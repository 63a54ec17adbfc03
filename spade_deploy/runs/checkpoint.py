"""Checkpoints: a folder that appears whole or not at all, with the weights as they are trained.

The generator is a safetensors file with the module's state dict unchanged, spectral norm's u and v and batch norm's
statistics included, since the deployed model depends on them. The discriminator, the optimisers and the random state,
which only training needs, are in other files. Nothing is unpickled: files are safetensors, and the optimisers are
loaded with `weights_only`.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError, quoted, reason_of
from spade_deploy.files.atomic import atomic_folder, write_json
from spade_deploy.files.reading import sha256_of
from spade_deploy.networks.build import Encoder, Generator, build_encoder, build_generator, count_parameters
from spade_deploy.networks.sims import bank_of_generator, give_bank
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.bank_file import read_bank, write_bank
from spade_deploy.runs.layout import (
    BANK_FILE,
    CHECKPOINT_JSON,
    DISCRIMINATOR_FILE,
    ENCODER_FILE,
    GENERATOR_FILE,
    OPTIMIZERS_FILE,
)
from spade_deploy.runs.records import CheckpointInfo, read_checkpoint_info
from spade_deploy.runs.tensors import DAMAGED_HINT, check_digest, check_tensors, load_tensors, save_tensors
from spade_deploy.runs.weight_files import load_weights
from spade_deploy.spec import GeneratorSpec
from spade_deploy.version import __version__


@dataclass(frozen=True)
class TrainingState:
    """The state that resuming needs besides the generator."""

    discriminator: Mapping[str, Tensor]
    """The discriminator's state dict."""

    rest: Mapping[str, Any]
    """The optimisers, the random state and the class counts: only plain values and tensors."""


@dataclass(frozen=True)
class Imported:
    """The origin of weights that were not trained here."""

    source: str
    """The name of the imported file, or another text on where they come from."""

    guesses: tuple[str, ...] = ()
    """What the import assumed, one sentence each."""


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator that was loaded, and whose file has the recorded digest."""

    module: Generator
    """The network, on the CPU and in eval mode."""

    spec: GeneratorSpec
    """How it is built."""

    info: CheckpointInfo
    """The content of checkpoint.json."""

    encoder: Encoder | None = None
    """What sees photos, of a VAE or of a generator with instance features; None if the checkpoint has none."""


class Jsonable(Protocol):
    """Settings that can be saved."""

    def to_json(self) -> dict[str, Any]: ...


class Settings(Protocol):
    """The settings of a run, as a checkpoint stores them: `training.config.Setup` is one."""

    @property
    def train(self) -> Jsonable: ...

    @property
    def data(self) -> Jsonable: ...


def save_checkpoint(
    folder: Path,
    generator: Generator,
    *,
    step: int,
    origin: str,
    imported: Imported | None = None,
    setup: Settings | None = None,
    state: TrainingState | None = None,
    encoder: Encoder | None = None,
) -> CheckpointInfo:
    """Write a checkpoint; an existing folder is replaced as a whole. Raises OSError if it cannot be written.

    origin: 'train' or 'import'. imported: the origin of weights that were not trained here. setup and state: those of
    a run, so that it can be resumed.
    """
    with atomic_folder(folder) as temporary:
        try:
            save_tensors(temporary / GENERATOR_FILE, generator.state_dict())
            if encoder is not None:
                save_tensors(temporary / ENCODER_FILE, encoder.state_dict())
            if (bank := bank_of_generator(generator)) is not None:
                write_bank(temporary / BANK_FILE, bank)
            if state is not None:
                save_tensors(temporary / DISCRIMINATOR_FILE, state.discriminator)
                _save_state(temporary / OPTIMIZERS_FILE, dict(state.rest))
        except SafetensorError as error:
            raise _as_os_error(error, folder) from error
        info = CheckpointInfo(
            created_unix_ns=time.time_ns(),
            step=step,
            origin=origin,
            generator=generator.spec,
            generator_sha256=sha256_of(temporary / GENERATOR_FILE),
            parameters=count_parameters(generator),
            discriminator_sha256=sha256_of(temporary / DISCRIMINATOR_FILE) if state is not None else "",
            optimizers_sha256=sha256_of(temporary / OPTIMIZERS_FILE) if state is not None else "",
            encoder_sha256=sha256_of(temporary / ENCODER_FILE) if encoder is not None else "",
            bank_sha256=sha256_of(temporary / BANK_FILE) if bank is not None else "",
            source="" if imported is None else imported.source,
            train=setup.train.to_json() if setup is not None else None,
            data=setup.data.to_json() if setup is not None else None,
            guesses=None if imported is None else list(imported.guesses) or None,
            versions={"spade-deploy": __version__, "torch": str(torch.__version__)},
        )
        write_json(temporary / CHECKPOINT_JSON, info.to_json())
    return info


def load_generator(checkpoint: Path) -> LoadedGenerator:
    """The generator of a checkpoint folder. Raises CheckpointError where anything is damaged or does not fit."""
    info = read_checkpoint_info(checkpoint)
    path = checkpoint / GENERATOR_FILE
    tensors = load_tensors(path, info.generator_sha256)
    module = _build(info.generator, tensors, path)
    module.load_state_dict(tensors)
    if info.generator.has_bank:
        give_bank(module, _load_bank(checkpoint, info))
    return LoadedGenerator(module.eval(), info.generator, info, _load_encoder(checkpoint, info))


def _load_bank(checkpoint: Path, info: CheckpointInfo) -> MemoryBank:
    path = checkpoint / BANK_FILE
    if not info.bank_sha256:
        raise CheckpointError(f"{checkpoint}: names no memory bank, which its generator needs", hint=DAMAGED_HINT)
    check_digest(path, info.bank_sha256)
    try:
        return read_bank(path, info.generator.labels)
    except ConfigError as error:
        raise CheckpointError(error.message, hint=DAMAGED_HINT) from error


def _load_encoder(checkpoint: Path, info: CheckpointInfo) -> Encoder | None:
    spec = info.generator
    if not info.encoder_sha256 or (spec.z_dim is None and not spec.has_features):
        return None
    path = checkpoint / ENCODER_FILE
    tensors = load_tensors(path, info.encoder_sha256)
    try:
        with torch.device("meta"):
            blueprint = build_encoder(spec, tensors)
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error.args[0]!r}", hint=DAMAGED_HINT) from error
    check_tensors(blueprint.state_dict(), tensors, path)
    with _own_random_state():
        encoder = build_encoder(spec, tensors)
    encoder.load_state_dict(tensors)
    return encoder.eval()


def load_training_state(checkpoint: Path) -> TrainingState:
    """Load the state that was saved besides the generator. Raises CheckpointError if it is missing or damaged."""
    info = resumable_info(checkpoint)
    discriminator = load_tensors(checkpoint / DISCRIMINATOR_FILE, info.discriminator_sha256)
    path = checkpoint / OPTIMIZERS_FILE
    check_digest(path, info.optimizers_sha256)
    try:
        rest = load_weights(path, OPTIMIZERS_FILE)
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=DAMAGED_HINT) from error
    if not isinstance(rest, dict):
        raise CheckpointError(f"{path}: holds {type(rest).__name__}, not a dictionary", hint=DAMAGED_HINT)
    facts = rest.get("facts", {})
    if not isinstance(facts, dict) or not _is_plain(facts):
        raise CheckpointError(f"{path}: facts is {quoted(facts)}, not a dictionary of plain values", hint=DAMAGED_HINT)
    return TrainingState(discriminator, rest)


def _is_plain(value: Any) -> bool:
    """Whether a value consists of plain values only, so that it can be compared with ==, unlike a tensor."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def resumable_info(checkpoint: Path) -> CheckpointInfo:
    """The content of checkpoint.json. Raises CheckpointError if training cannot go on from this checkpoint."""
    info = read_checkpoint_info(checkpoint)
    if not info.is_resumable:
        why = "it was imported" if info.origin == "import" else "it has no training state"
        raise CheckpointError(f"{checkpoint}: cannot be resumed, {why}", hint="start a new run with `spade train`")
    return info


def _build(spec: GeneratorSpec, tensors: Mapping[str, Tensor], path: Path) -> Generator:
    """Build the generator of a spec. Shapes are compared first, as a damaged spec could ask for terabytes of memory."""
    try:
        with torch.device("meta"):
            blueprint = build_generator(spec)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no generator can be built from its spec ({reason_of(error)})") from error
    check_tensors(blueprint.state_dict(), tensors, path)
    with _own_random_state():
        return build_generator(spec)


def _own_random_state() -> AbstractContextManager[None]:
    """A block in which initial weights are drawn, and the caller's random state stays as it is."""
    return torch.random.fork_rng(devices=[])


def _save_state(path: Path, state: dict[str, Any]) -> None:
    """Save the training state. Raises OSError with the system's reason; PyTorch itself says only 'unexpected pos'."""
    with path.open("wb") as file:
        told = _ErrorKeepingFile(file)
        try:
            torch.save(state, cast(IO[bytes], told))
            file.flush()
        except Exception as error:
            if told.error is not None:
                raise told.error from None
            if isinstance(error, RuntimeError):  # PyTorch's writer turns an OSError of the file into this
                raise OSError(errno.EIO, reason_of(error), str(path)) from error
            raise


class _ErrorKeepingFile:
    """A file that keeps the OSError of a failed write, since PyTorch replaces it by an error of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _as_os_error(error: SafetensorError, where: Path) -> OSError:
    """The OSError in an error of safetensors, whose text has '(os error 28)' or 'code: 28' for a full disk."""
    code = re.search(r"(?:code: |os error )(\d+)", str(error))
    if code is None:
        return OSError(errno.EIO, reason_of(error), str(where))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(where))
