"""A memory bank as a file: a part of a checkpoint and of an artifact, the same bytes in both."""

from __future__ import annotations

from pathlib import Path

from spade_deploy.artifact import BANK, Artifact
from spade_deploy.artifact.manifest import EXPORT_AGAIN
from spade_deploy.errors import ArtifactError, ConfigError, reason_of
from spade_deploy.files.array_file import read_array_file, write_array_file
from spade_deploy.retrieval.bank import BANK_TYPES, MemoryBank
from spade_deploy.spec import LabelSpec


def write_bank(path: Path, bank: MemoryBank) -> None:
    """Write a bank; the same bank always gives the same bytes. Raises OSError."""
    write_array_file(path, {name: getattr(bank, name) for name in BANK_TYPES})


def read_bank(path: Path, labels: LabelSpec) -> MemoryBank:
    """Read a bank. Raises ConfigError, which names the file, where it is damaged or of another number of labels."""
    try:
        bank = MemoryBank(**read_array_file(path, list(BANK_TYPES)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    except Exception as error:  # zipfile and the header's parser raise a dozen kinds for damaged bytes
        raise ConfigError(f"{path} is no memory bank that can be read: {reason_of(error)}") from error
    if len(bank.depth) != labels.num_ids:
        raise ConfigError(f"{path}: is a memory bank of {len(bank.depth)} ids, the model has {labels.num_ids}")
    return bank


def bank_of(artifact: Artifact) -> MemoryBank | None:
    """The memory bank of an artifact; None for a model that has none. Raises ArtifactError where it is damaged."""
    spec = artifact.manifest.generator
    if not spec.has_bank:
        return None
    with artifact.vouched(BANK) as path:
        try:
            return read_bank(path, spec.labels)
        except ConfigError as error:
            raise ArtifactError(error.message, hint=EXPORT_AGAIN) from error
