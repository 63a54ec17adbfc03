"""The golden tensors of an artifact: what the untouched PyTorch module was fed, and what it answered."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact.manifest import EXPORT_AGAIN, GOLDEN_INPUTS, GOLDEN_OUTPUTS
from spade_deploy.artifact.tensors import Arrays, TensorInfo
from spade_deploy.errors import ArtifactError, quoted, reason_of
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import open_regular

MAX_GOLDEN_BYTES = 1 << 30


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
        with atomic_file(folder / name) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for tensor, array in arrays.items():
                info = zipfile.ZipInfo(f"{tensor}.npy")  # without a time stamp: the same tensors, the same bytes
                info.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(info, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def read_arrays(path: Path, tensors: tuple[TensorInfo, ...]) -> Arrays:
    """Read the tensors of an .npz. Raises ArtifactError.

    np.load is not used: here all sizes are known and bounded before anything is decompressed or allocated.
    """
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            total = sum(info.file_size for info in members.values())
            if total > MAX_GOLDEN_BYTES:
                raise ValueError(f"{total} bytes when unpacked, {MAX_GOLDEN_BYTES} are the most that is read")
            if set(members) != {tensor.name for tensor in tensors}:
                raise ValueError(f"it holds {quoted(sorted(members))}")
            return {tensor.name: _parse_array(archive.read(members[tensor.name])) for tensor in tensors}
    except Exception as error:  # zipfile and the header's parser raise a dozen kinds for damaged bytes
        raise ArtifactError(f"{path} is damaged: {reason_of(error)}", hint=EXPORT_AGAIN) from error


def _parse_array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    data = np.frombuffer(content, dtype, offset=stream.tell())
    return data.reshape(shape, order="F" if is_fortran else "C").copy()  # writable, as PyTorch wants it
