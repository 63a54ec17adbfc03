"""Arrays by name in one .npz file, with nothing pickled: the same arrays always give the same bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import quoted
from spade_deploy.files.atomic import atomic_file
from spade_deploy.files.reading import open_regular

MAX_BYTES = 1 << 30
"""The most that all arrays of a file may take when they are unpacked."""


def write_array_file(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as a compressed .npz. Raises OSError, and ValueError for an array of Python objects."""
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # without a time stamp: the same arrays, the same bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def read_array_file(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read an .npz that holds the arrays of these names and nothing else.

    np.load is not used: here all sizes are known and bounded before anything is decompressed or allocated.
    Raises OSError, ValueError, and what zipfile and NumPy's parser of headers raise for damaged bytes.
    """
    with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        total = sum(info.file_size for info in members.values())
        if total > MAX_BYTES:
            raise ValueError(f"{total} bytes when unpacked, {MAX_BYTES} are the most that is read")
        if set(members) != set(names):
            raise ValueError(f"it holds {quoted(sorted(members))}")
        return {name: _parse_array(archive.read(members[name])) for name in names}


def _parse_array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    data = np.frombuffer(content, dtype, offset=stream.tell())
    return data.reshape(shape, order="F" if is_fortran else "C").copy()  # writable, as PyTorch wants it
