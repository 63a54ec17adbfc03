"""Load weight files that other people's code wrote. Nothing in them is executed.

A file is examined before a library opens it. For a web page or a Git LFS pointer the error says what the file really
is. A file of a few kB whose tensors would take gigabytes is refused before they are made: PyTorch stores tensors
without compression, so that they are about as large as the file.
"""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, quoted, reason_of
from spade_deploy.files.reading import open_regular
from spade_deploy.runs.safetensors_header import read_tensor_count

SAVE_AGAIN = "save it again where it was made, as torch.save(model.state_dict(), FILE)"
LEGACY_TAR_HINT = (
    "load it once with the PyTorch that wrote it (0.1.10 or older) or with torch.load(FILE, weights_only=False) if you"
    " trust its author, then torch.save(state_dict, 'latest_net_G.pth') writes today's format"
)
_AGAIN = "download or copy it again, and compare its size with the original's"
_HEAD_BYTES = 1024
_TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that PyTorch's format before zip begins with
_TORCH_TAR = {"sys_info", "storages", "tensors", "pickle"}
_TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of TensorFlow's index files
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip, and import what is in it"),
    (b"BZh", "a bzip2 archive", "unpack it with bunzip2, and import what is in it"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it with unxz, and import what is in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd, and import what is in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and import what is in it"),
    (b"Rar!", "a rar archive", "unpack it, and import what is in it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "only files of PyTorch can be read"),
    (b"\x93NUMPY", "a NumPy array", "only files of PyTorch can be read"),
    (b"\x89PNG", "a picture", "give the weights' file"),
    (b"\xff\xd8\xff", "a picture", "give the weights' file"),
    (b"%PDF", "a PDF document", "give the weights' file"),
    (b"GGUF", "a GGUF file", "only files of PyTorch can be read"),
)
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,200})")
_CUT_OFF = re.compile(
    "unexpected EOF|PytorchStreamReader|unpickling stack underflow|unpack requires a buffer|record size"
)
_ALIASES = 4
"""How many times the size of the file all tensors together may have, as several names may share the same memory."""
_SLACK_BYTES = 1 << 20


def load_weights(path: Path, expected: str) -> Any:
    """Load a .pth, .pt or .safetensors file on the CPU: tensors in dictionaries, nested as they were saved.

    The content decides the format, not the name. Nothing in the file is executed.
    expected: the file that the user should give, for the hint. Raises CheckpointError.
    """
    head, size = _look_at(path, expected)
    if _is_safetensors(head, size):
        return _load_safetensors(path)
    _refuse_other_kinds(path, head, size, expected)
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path, size)
    loaded = _unpickled(path)
    _check_sizes(path, loaded, size)
    return loaded


def _look_at(path: Path, expected: str) -> tuple[bytes, int]:
    """The first bytes and the size of a regular file."""
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD_BYTES)
            stream.seek(0, 2)
            return head, stream.tell()
    except FileNotFoundError as error:
        what = "is a link to a file that does not exist" if path.is_symlink() else "no such file"
        raise CheckpointError(f"{path}: {what}", hint=f"give the path of a {expected}") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({reason_of(error)})", hint=f"give the path of a {expected}"
        ) from error


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins as safetensors does: eight bytes of length, then JSON."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    read_tensor_count(path)  # its header, bounded and checked
    try:
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # its own error, and KeyError for types that PyTorch lacks
        raise CheckpointError(
            f"{path}: a damaged safetensors file ({_type_error(error) or reason_of(error)})", hint=_AGAIN
        ) from error


def _type_error(error: Exception) -> str:
    return f"it has tensors of the type {quoted(error.args[0])}" if isinstance(error, KeyError) and error.args else ""


def _refuse_other_kinds(path: Path, head: bytes, size: int, expected: str) -> None:
    """Raise CheckpointError, which says what a file is, if it is no weight file of PyTorch's."""
    kind = _other_kind(path, head, size)
    if kind is not None:
        what, hint = kind
        raise CheckpointError(f"{path}: {what}", hint=hint or f"give a {expected}")


def _other_kind(path: Path, head: bytes, size: int) -> tuple[str, str] | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return "is empty", _AGAIN
    if not head.strip(b"\0"):
        return "begins with zeros only: the file was not written completely", _AGAIN
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<!--", b"<?xml")):
        return (
            "is a web page, not a weight file",
            "a browser or wget saved the page of the host, perhaps a login or a warning; download the file itself",
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, which stands for the file",
            "`git lfs pull` in its repository fetches the file itself",
        )
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return f"is {what}, not a weight file", hint
    if head.startswith(b"PK\x03\x04"):
        return None
    if head.startswith(b"PK\x05\x06"):
        return "is an empty zip archive", _AGAIN
    return _other_model(path, head, size) or _other_pickle_or_text(head)


def _other_model(path: Path, head: bytes, size: int) -> tuple[str, str] | None:
    """The kind of a tar archive, a TensorFlow file or an ONNX file, which the first bytes alone do not show."""
    # PyTorch's own files are zip archives or start with a pickled number: neither is a tar.
    if head[257:262] == b"ustar" or (not head.startswith(b"\x80") and tarfile.is_tarfile(path)):
        return _tar_kind(path)
    if re.search(r"\.(data-\d+-of-\d+|ckpt(-\d+)?\.(index|meta))$", path.name) or _ending(path, size) == _TABLE_END:
        return "is a file of a TensorFlow checkpoint", "only files of PyTorch can be read"
    if head[0] == 8 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return (
            "is an ONNX file: a graph, whose weights no longer have the names of the layers",
            "import the .pth that it was exported from",
        )
    return None


def _tar_kind(path: Path) -> tuple[str, str]:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member in (archive.next() for _ in range(8)) if member is not None]
    except (tarfile.TarError, OSError, ValueError):
        names = []
    if {name.removeprefix("./") for name in names} & _TORCH_TAR:
        return (
            "this is PyTorch's legacy tar format, which cannot be read without running code from the file",
            LEGACY_TAR_HINT,
        )
    return f"is a tar archive; it holds {quoted(names)}", "unpack it with tar xf, and import what is in it"


def _ending(path: Path, size: int) -> bytes:
    with open_regular(path) as stream:
        stream.seek(max(0, size - 8))
        return stream.read(8)


def _other_pickle_or_text(head: bytes) -> tuple[str, str] | None:
    if head.startswith(_TORCH_PICKLE):
        return None
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        if _TORCH_PICKLE.startswith(head):
            return "ends after a few bytes", _AGAIN
        return "is a pickle, but not one that torch.save wrote", SAVE_AGAIN
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return f"is a text file, not a weight file; it begins with {quoted(head[:60].decode('utf-8', 'replace'))}", ""
    return f"is not a weight file of PyTorch: it begins with the bytes {head[:8].hex(' ')}", ""


def _check_archive(path: Path, size: int) -> None:
    """Raises CheckpointError unless a zip archive is PyTorch's, whole, not compressed, and no larger inside."""
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is incomplete or damaged: it begins like a file of PyTorch, but does not end like one",
            hint=_AGAIN,
        ) from error
    names = [member.filename for member in members]
    inside = {name.partition("/")[2] for name in names}
    if "data.pkl" not in inside:
        raise CheckpointError(
            f"{path}: is a zip archive, but not one of PyTorch's; it holds {quoted(names[:4])}",
            hint="unpack it, and import the .pth that is in it",
        )
    if "constants.pkl" in inside:
        raise CheckpointError(f"{path}: is a TorchScript program, not a state dict", hint=SAVE_AGAIN)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path}: its parts are compressed, which torch.save never does", hint=SAVE_AGAIN)
    total = sum(member.file_size for member in members)
    if total > size:
        raise CheckpointError(f"{path}: its parts are {total:,} bytes all together, the file {size:,}", hint=_AGAIN)


def _unpickled(path: Path) -> Any:
    try:
        # PyTorch gets the stream and not the path: it would take the path's suffix for the format.
        with open_regular(path) as stream, warnings.catch_warnings(action="ignore"):  # about old pickles
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on damaged bytes
        text = str(error)
        found = _REFUSED_GLOBAL.search(text)
        if found is not None:
            raise CheckpointError(
                f"{path}: holds a Python object of the kind {found[1]}, which cannot be read without running code",
                hint=f"only tensors, numbers and texts are read: {SAVE_AGAIN}",
            ) from error
        if isinstance(error, EOFError) or _CUT_OFF.search(text):
            raise CheckpointError(f"{path}: is incomplete or damaged", hint=_AGAIN) from error
        if "Weights only load failed" in text:
            raise CheckpointError(
                f"{path}: holds what cannot be read without running code", hint=f"only tensors are read: {SAVE_AGAIN}"
            ) from error
        raise CheckpointError(f"{path}: cannot be read as a weight file ({reason_of(error)})", hint=_AGAIN) from error


def _check_sizes(path: Path, loaded: Any, size: int) -> None:
    """Raise CheckpointError for tensors that need far more memory than the file has bytes, such as repeated rows."""
    total, seen, waiting = 0, set[int](), [loaded]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            total += 0 if value.is_meta else value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
    if total > _ALIASES * size + _SLACK_BYTES:
        raise CheckpointError(
            f"{path}: its tensors take {total:,} bytes, the file has {size:,}: they use the same bytes several times",
            hint="it is not a file of trained weights",
        )
