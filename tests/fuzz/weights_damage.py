"""Damage of weight files: PyTorch's zip and legacy pickles, safetensors, .npz."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bytes_damage import damage_bytes
from .json_damage import damage_json

State = dict[str, Any]


def damaged_pth(rng: random.Random, state: State) -> tuple[bytes, str]:
    """A .pth of `state`, damaged in its values, its pickle, its zip or its bytes."""
    kind = rng.choice(
        ("values", "values", "values", "zip", "zip", "pickle", "bytes", "bytes", "legacy", "other", "bomb")
    )
    if kind == "values":
        state, what = _odd_values(rng, state)
        return _saved(state, legacy=rng.random() < 0.2), what
    if kind == "zip":
        return _damaged_zip(rng, _saved(state))
    if kind == "pickle":
        return _damaged_pickle(rng, _saved(state))
    if kind == "bytes":
        content, what = damage_bytes(rng, _saved(state))
        return content, what
    if kind == "legacy":
        content, what = damage_bytes(rng, _saved(state, legacy=True))
        return content, f"legacy: {what}"
    if kind == "bomb":
        return _bomb(rng, state)
    return _something_else(rng)


def _saved(state: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _odd_values(rng: random.Random, state: State) -> tuple[State, str]:
    state = dict(state)
    key = rng.choice(list(state))
    tensor: Tensor = state[key]
    change = rng.choice(list(_VALUES))
    if change == "renamed":
        names = (
            "",
            "module." + key,
            key.upper(),
            key + ".x",
            "../" + key,
            "\x1b[31m",
            "名" * 500,
            "x" * 5000,
            7,
            None,
            ("a",),
        )
        state[rng.choice(names)] = state.pop(key)
        return state, f"{key} renamed"
    if change == "prefix":
        prefix = rng.choice(("module.", "netG.", "generator.", "_orig_mod.", "module.module.", "\n", "x." * 200))
        return {prefix + name: value for name, value in state.items()}, f"prefix {prefix[:20]!r}"
    if change == "wrapped":
        for _ in range(rng.choice((1, 2, 30))):
            state = {rng.choice(("state_dict", "netG", "model", "params_ema", "epoch", "generator", "net_G")): state}
        return state, "wrapped"
    if change == "twice":
        state[f"{key}.again"] = tensor
        return state, f"{key} twice"
    if change == "gone":
        del state[key]
        return state, f"{key} is missing"
    try:
        state[key] = _VALUES[change](rng, tensor)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return state, f"{key} stays, it cannot be {change} ({type(error).__name__})"
    return state, f"{key} is {change}"


def _float8(rng: random.Random, tensor: Tensor) -> Tensor:
    return tensor.float().to(rng.choice((torch.float8_e4m3fn, torch.float8_e5m2)))


def _expanded(rng: random.Random, tensor: Tensor) -> Tensor:
    shape = rng.choice(((1 << 31,), (1 << 16, 1 << 16), (*tensor.shape, 1 << 20), (1 << 40,)))
    return torch.zeros(1).expand(shape)


def _stretched(_rng: random.Random, tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].reshape([1] * tensor.dim()).expand(tensor.shape)


def _strided(_rng: random.Random, tensor: Tensor) -> Tensor:
    return torch.as_strided(tensor.contiguous().clone(), tensor.shape, [0] * tensor.dim())


_VALUES: dict[str, Callable[[random.Random, Tensor], Any]] = {
    "renamed": lambda rng, t: t,
    "prefix": lambda rng, t: t,
    "wrapped": lambda rng, t: t,
    "twice": lambda rng, t: t,
    "gone": lambda rng, t: t,
    "float8": _float8,
    "float8 e8m0": lambda rng, t: t.float().abs().to(torch.float8_e8m0fnu),
    "half": lambda rng, t: t.half(),
    "bfloat16": lambda rng, t: t.bfloat16(),
    "double": lambda rng, t: t.double(),
    "int8": lambda rng, t: t.to(torch.int8),
    "bool": lambda rng, t: t > 0,
    "complex": lambda rng, t: t.to(torch.complex64) + 1j,
    "sparse": lambda rng, t: t.to_sparse(),
    "csr": lambda rng, t: t.flatten(1).to_sparse_csr(),
    "quantised": lambda rng, t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda rng, t: t.to("meta"),
    "nested": lambda rng, t: torch.nested.nested_tensor([t.flatten(), t.flatten()[:1]]),
    "expanded to terabytes": _expanded,
    "of stride 0": _stretched,
    "of odd strides": _strided,
    "NaN": lambda rng, t: torch.full_like(t, float("nan")),
    "infinite": lambda rng, t: torch.full_like(t, float("inf")) if t.is_floating_point() else t,
    "huge": lambda rng, t: torch.full_like(t, 3e38) if t.is_floating_point() else t + (1 << 40),
    "denormal": lambda rng, t: torch.full_like(t, 1e-42) if t.is_floating_point() else t,
    "negative": lambda rng, t: -t.abs() - 1,
    "zero": lambda rng, t: torch.zeros_like(t),
    "empty": lambda rng, t: t.flatten()[:0],
    "scalar": lambda rng, t: torch.tensor(1.0),
    "transposed": lambda rng, t: t.transpose(0, -1),
    "another shape": lambda rng, t: t.flatten()[: rng.randint(0, t.numel())],
    "of one more axis": lambda rng, t: t[None],
    "of wider channels": lambda rng, t: torch.cat([t, t]),
    "a parameter": lambda rng, t: torch.nn.Parameter(t.float()),
    "a list": lambda rng, t: t.flatten()[:3].tolist(),
    "a number": lambda rng, t: rng.choice((0, 1.5, 10**400, True)),
    "a text": lambda rng, t: rng.choice(("", "x" * 20_000, "\x1b[31m", "\ud800")),
    "none": lambda rng, t: None,
    "a dictionary": lambda rng, t: {"a": t},
    "a tuple": lambda rng, t: (t, t),
    "a size": lambda rng, t: t.shape,
    "a dtype": lambda rng, t: t.dtype,
    "a device": lambda rng, t: torch.device("cuda:3"),
}


def _damaged_zip(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    kind = rng.choice(("member", "member", "gone", "renamed", "longer", "shorter", "deflated", "version", "twice"))
    compression = zipfile.ZIP_STORED
    if kind == "member":
        members[name], what = damage_bytes(rng, members[name])
        what = f"{name}: {what}"
    elif kind == "gone":
        del members[name]
        what = f"{name} is missing"
    elif kind == "renamed":
        new = rng.choice(("../../x", "/tmp/x", "archive/data/999", name + "x", ""))
        members[new] = members.pop(name)
        what = f"{name} is called {new!r}"
    elif kind == "longer":
        members[name] += bytes(1 << 16)
        what = f"{name} is longer"
    elif kind == "shorter":
        members[name] = members[name][: len(members[name]) // 2]
        what = f"{name} is half as long"
    elif kind == "deflated":
        compression, what = zipfile.ZIP_DEFLATED, "deflated"
    elif kind == "version":
        place = next((key for key in members if key.endswith("version")), name)
        members[place] = rng.choice((b"0", b"99", b"", b"x", b"-1", b"3" * 5000))
        what = f"version {members[place][:10]!r}"
    else:
        members[f"{name}x"] = members[name]
        what = f"{name} twice"
    return _zipped(members, compression), what


def _zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name or "/", data)
    return stream.getvalue()


def _damaged_pickle(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The pickle inside the zip becomes another one."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(key for key in members if key.endswith("data.pkl"))
    programs: dict[str, bytes] = {
        "a call of os.system": b"cos\nsystem\n(S'touch " + b"executed" + b"'\ntR.",
        "a call of open": b"\x80\x02c__builtin__\nopen\nX\x08\x00\x00\x00executedX\x01\x00\x00\x00w\x86R.",
        "exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x04pass\x85R.",
        "a getattr": b"cbuiltins\ngetattr\n(cos\nS'system'\ntR.",
        "marks without end": b"(" * 100_000 + b".",
        "nesting": b"]" * 1 + b"]a" * 0 + b"(l" * 50_000 + b".",
        "a memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "a text of 2 GB": b"\x80\x02X\xff\xff\xff\x7f.",
        "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "no end": b"\x80\x02}",
        "nothing": b"",
        "an odd opcode": bytes([0x80, 0x02, rng.randrange(256), rng.randrange(256), 0x2E]),
        "protocol 5": pickle.dumps({"a": [1, 2]}, protocol=5),
        "a set": pickle.dumps({1, 2}, protocol=2),
        "a class": pickle.dumps(random.Random, protocol=2),
        "a numpy array": pickle.dumps(np.zeros(3), protocol=2),
        "an ordered dict of numbers": pickle.dumps({"a": 1, "b": 2}, protocol=2),
    }
    what = rng.choice([*programs, "bytes"])
    if what == "bytes":
        members[name], how = damage_bytes(rng, members[name])
        return _zipped(members), f"pickle: {how}"
    members[name] = programs[what]
    return _zipped(members), f"the pickle is {what}"


def _bomb(rng: random.Random, state: State) -> tuple[bytes, str]:
    """Little on the disk, much in memory."""
    key = max(state, key=lambda name: state[name].numel())
    megabytes = rng.choice((64, 512, 3000))
    if rng.random() < 0.5:
        stretched = {**state, "extra": torch.zeros(1).expand(megabytes << 18)}
        return _saved(stretched), f"an extra tensor of {megabytes} MB and stride 0"
    with zipfile.ZipFile(io.BytesIO(_saved({**state, "extra": torch.zeros(1)}))) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    place = sorted(name for name in members if "/data/" in name)[-1]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            if name == place:
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
                    target.write(data)
                continue
            archive.writestr(name, data)
        info = zipfile.ZipInfo("archive/data/zeros")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w", force_zip64=True) as target:
            for _ in range(min(megabytes, 300)):
                target.write(bytes(1 << 20))
    return stream.getvalue(), f"zeros, {min(megabytes, 300)} MB when inflated, beside {key}"


def _something_else(rng: random.Random) -> tuple[bytes, str]:
    things: dict[str, bytes] = {
        "empty": b"",
        "a web page": b"<!DOCTYPE html><html><body>404 Not Found \x1b[31m</body></html>" * 20,
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "a tar": _tar(),
        "an empty zip": _zipped({}),
        "a zip of a text": _zipped({"readme.txt": b"hello"}),
        "a list": _saved([1, 2, 3]),
        "a tensor": _saved(torch.zeros(3)),
        "nothing at all": _saved({}),
        "a number": _saved(7),
        "text": "weights\n".encode("utf-16"),
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "a TorchScript-like zip": _zipped(
            {
                "a/code/x.py": b"import os",
                "a/constants.pkl": b"\x80\x02}.",
                "a/data.pkl": b"\x80\x02}.",
                "a/version": b"3",
            }
        ),
        "zeros": bytes(1 << 16),
        "noise": rng.randbytes(5000),
        "a pickle": pickle.dumps({"a": 1}),
        "a module": _saved_module(),
        "nesting": _saved(_nested(300)),
        "keys of numbers": _saved({1: torch.zeros(2), 2: torch.zeros(2)}),
    }
    what = rng.choice(list(things))
    return things[what], what


def _saved_module() -> bytes:
    return _saved(torch.nn.Linear(2, 2))


def _nested(depth: int) -> Any:
    value: Any = torch.zeros(1)
    for _ in range(depth):
        value = {"state_dict": value}
    return value


def _tar() -> bytes:
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("tensors"))
    return stream.getvalue()


def damaged_safetensors(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damage of the header field by field, of its length, or of the bytes."""
    kind = rng.choice(("header", "header", "header", "length", "bytes", "data", "cut"))
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    if kind == "header":
        text, what = damage_json(rng, json.loads(header))
        return struct.pack("<Q", len(text)) + text + data, f"header: {what}"
    if kind == "length":
        wrong = rng.choice((0, 1, length - 1, length + 1, len(content), 1 << 31, 1 << 62, (1 << 64) - 1, 100_000_001))
        return struct.pack("<Q", wrong) + content[8:], f"a header of {wrong} bytes"
    if kind == "bytes":
        return damage_bytes(rng, content)
    if kind == "data":
        changed, what = damage_bytes(rng, data, 1)
        return content[: 8 + length] + changed, f"data: {what}"
    cut = rng.randrange(len(content))
    return content[:cut], f"cut to {cut} bytes"


def damaged_npz(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damage of the zip, of an array's header, its type, its shape, or of the bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    kind = rng.choice(("header", "header", "array", "array", "bytes", "member", "gone", "renamed", "bomb", "pickled"))
    if kind == "header":
        members[name], what = _damaged_npy(rng, members[name])
    elif kind == "array":
        array = np.load(io.BytesIO(members[name]))
        arrays: dict[str, Callable[[], Any]] = {
            "of float16": lambda: array.astype(np.float16),
            "of complex": lambda: array.astype(np.complex64),
            "of texts": lambda: array.astype(str).ravel()[:3],
            "big-endian": lambda: array.astype(array.dtype.newbyteorder(">")),
            "of Fortran order": lambda: np.asfortranarray(array),
            "empty": lambda: array[:0],
            "of one image less": lambda: array[:-1],
            "flat": lambda: array.ravel(),
            "NaN": lambda: np.full(array.shape, np.nan).astype(array.dtype) if array.dtype.kind == "f" else array,
            "all 255": lambda: np.full_like(array, 255) if array.dtype.kind in "iu" else array,
            "structured": lambda: np.zeros(3, [("a", "f4"), ("b", "i8")]),
            "of dates": lambda: np.zeros(3, "datetime64[s]"),
            "a scalar": lambda: np.float32(1),
        }
        what = rng.choice(list(arrays))
        with np.errstate(all="ignore"):
            members[name] = _npy(arrays[what]())
    elif kind == "bytes":
        return damage_bytes(rng, content)
    elif kind == "member":
        members[name], what = damage_bytes(rng, members[name])
    elif kind == "gone":
        del members[name]
        what = "missing"
    elif kind == "renamed":
        members[rng.choice(("../x.npy", "x.npy", name.removesuffix(".npy"), "a" * 5000))] = members.pop(name)
        what = "renamed"
    elif kind == "pickled":
        members[name], what = _npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "of Python objects"
    else:
        members[name] += bytes(200 << 20)
        what = "200 MB of zeros longer"
    return _zipped(members, zipfile.ZIP_DEFLATED), f"{name}: {what}"


def _npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=allow_pickle)
    return stream.getvalue()


def _damaged_npy(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    head = content[: content.index(b"\n") + 1]
    old = head.decode("latin-1")
    new = rng.choice(
        (
            old.replace("'shape': (", "'shape': (99999999999, "),
            old.replace("'shape': (", "'shape': (-1, "),
            old.replace("'descr': '", "'descr': '>"),
            old.replace("'descr': '", "'descr': 'O"),
            old.replace("False", "True"),
            old.replace("False", "None"),
            old.replace("{", "{" * 200),
            old.replace("{", "(lambda: 0)() or {"),
            old.replace("'shape'", "'form'"),
            old.replace("(", "(9" + "9" * 4400 + ","),
            old.replace("(", "[" * 200 + "("),
        )
    ).encode("latin-1")
    body = new[10:]
    return new[:8] + struct.pack("<H", len(body) & 0xFFFF) + body + content[len(head) :], f"header {body[:60]!r}"


def with_digest(path: Path, content: bytes) -> str:
    """Write `content` and return its SHA-256, hexadecimal."""
    import hashlib

    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
