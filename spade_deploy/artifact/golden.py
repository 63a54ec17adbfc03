"""The golden tensors of an artifact: what the untouched PyTorch module was fed, and what it answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spade_deploy.artifact.manifest import EXPORT_AGAIN, GOLDEN_INPUTS, GOLDEN_OUTPUTS
from spade_deploy.artifact.tensors import Arrays, TensorInfo
from spade_deploy.errors import ArtifactError, reason_of
from spade_deploy.files.array_file import read_array_file, write_array_file


@dataclass(frozen=True)
class Golden:
    """Golden tensors, by their names."""

    inputs: Arrays
    """The inputs of the graph, by name."""

    outputs: Arrays
    """The outputs of the untouched PyTorch module for these inputs, by name."""


def write_golden(folder: Path, inputs: Arrays, outputs: Arrays) -> None:
    """Write the golden tensors as .npz; `write_manifest` comes after it."""
    for name, arrays in ((GOLDEN_INPUTS, inputs), (GOLDEN_OUTPUTS, outputs)):
        write_array_file(folder / name, arrays)


def read_arrays(path: Path, tensors: tuple[TensorInfo, ...]) -> Arrays:
    """Read the tensors of an .npz. Raises ArtifactError."""
    try:
        return read_array_file(path, [tensor.name for tensor in tensors])
    except Exception as error:  # zipfile and the header's parser raise a dozen kinds for damaged bytes
        raise ArtifactError(f"{path} is damaged: {reason_of(error)}", hint=EXPORT_AGAIN) from error
