"""Weight files of other kinds are called what they are; small files that would take gigabytes are refused; nothing in a
file is run, whoever reads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from spade_deploy import runs
from spade_deploy.errors import CheckpointError
from spade_deploy.runs.checkpoint import TrainingState, load_training_state, save_checkpoint
from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.runs.importer import read_encoder_file, read_generator_file
from spade_deploy.runs.weight_files import load_weights
from spade_deploy.spec import LabelSpec, Upsampling
from spade_deploy.training.perceptual import load_vgg
from tests.support.generators import build_generator

LABELS = LabelSpec(5)
REQUEST = ImportRequest(labels=LABELS, upsampling=Upsampling.NORMAL, size=(32, 32))
SMALL = {"labels": LABELS, "base_channels": 2, "hidden_channels": 4, "height": 32, "width": 32, "training_steps": 1}
PEAK_MB = 900
"""What a process that imports a file of a few MB may take; the import of PyTorch itself takes 250."""


def generator_state() -> dict[str, Any]:
    return dict(build_generator(**SMALL).state_dict())


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def torch_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npy_bytes() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


KINDS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "nothing": (lambda: b"", "is empty", "again"),
    "zeros": (lambda: bytes(5000), "zeros only", "again"),
    "html": (
        lambda: b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning",
        "is a web page",
        "the host",
    ),
    "html with a BOM": (lambda: b"\xef\xbb\xbf<HTML>", "is a web page", "the host"),
    "git-lfs pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "is a Git LFS pointer",
        "git lfs pull",
    ),
    "text": (lambda: b'{"a": 1}', "is a text file", "latest_net_G.pth"),
    "gzip": (lambda: gzip.compress(b"x" * 100), "is a gzip archive", "gunzip"),
    "zip": (lambda: zipped("weights/latest_net_G.pth", "README.md"), "is a zip archive, but not one", "unpack"),
    "npz": (lambda: zipped("conv1_1.w.npy"), "is a zip archive, but not one", "unpack"),
    "empty zip": (lambda: zipped(), "is an empty zip archive", "again"),
    "tar": (lambda: tarred("checkpoints/latest_net_G.pth"), r"is a tar archive; it holds \['checkpoints/", "tar xf"),
    "torch 0.1": (lambda: tarred("sys_info", "storages", "tensors", "pickle"), "legacy tar format", "torch.save"),
    "TorchScript": (lambda: zipped("a/data.pkl", "a/constants.pkl"), "is a TorchScript program", "state_dict"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(range(200)), "is an ONNX file", "exported from"),
    "TensorFlow": (
        lambda: b"\x00\x01" + bytes(range(200)) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "TensorFlow",
        "PyTorch",
    ),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5", "PyTorch"),
    "NumPy": (npy_bytes, "a NumPy array", "PyTorch"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "is a pickle, but not one", "torch.save"),
    "a cut zip": (lambda: torch_bytes(generator_state())[:-200], "is incomplete or damaged", "size"),
    "a cut old file": (
        lambda: torch_bytes(generator_state(), _use_new_zipfile_serialization=False)[:9000],
        "is incomplete or damaged",
        "size",
    ),
    "noise": (lambda: bytes(range(1, 256)), "begins with the bytes 01 02 03", "latest_net_G.pth"),
    "a list": (lambda: torch_bytes([1, 2]), "holds a list, not a state dict", "latest_net_G.pth"),
    "a tensor": (lambda: torch_bytes(torch.zeros(2)), "holds a tensor, not a state dict", "latest_net_G.pth"),
    "a module": (
        lambda: torch_bytes(torch.nn.Linear(1, 1)),
        r"object of the kind torch.nn.modules.linear.Linear",
        "state_dict",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_called_what_they_are(kind: str, tmp_path: Path) -> None:
    make, message, hint = KINDS[kind]
    path = tmp_path / "latest_net_G.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_generator_file(path, REQUEST)
    assert hint in str(caught.value.hint)
    assert len(caught.value.message) < 600
    assert "\x1b" not in caught.value.message
    assert "Weights only" not in caught.value.message


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    (tmp_path / "dangling.pth").symlink_to("nothing")
    for name, message in (
        ("pipe", "is a pipe"),
        ("device", "is a device"),
        ("dangling", "link to a file that does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_generator_file(tmp_path / f"{name}.pth", REQUEST)
        with pytest.raises(CheckpointError, match=message):
            load_vgg(tmp_path / f"{name}.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_generator_file(tmp_path, REQUEST)


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    state = generator_state()
    safetensors.torch.save_file({key: value.clone() for key, value in state.items()}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        found = read_generator_file(tmp_path / name, REQUEST).module.state_dict()
        assert all(torch.equal(value, found[key]) for key, value in state.items())


class TestBombs:
    """Small files that would take gigabytes; each is imported by a process of its own, whose peak is read."""

    def peak_mb(self, path: Path, folder: Path) -> tuple[str, float]:
        """What `spade import` says, and its largest resident memory."""
        program = (
            "import sys, resource\n"
            "from spade_deploy.machine.memory import peak_memory_bytes\n"
            "resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))\n"
            "from spade_deploy.cli import app\n"
            "try:\n    app(sys.argv[1:])\n"
            "except SystemExit as end:\n    print('exit', end.code)\n"
            "print('peak', peak_memory_bytes())\n"
        )
        arguments = ["import", str(path), "--runs", str(folder / "runs"), "--num-labels", "5", "--size", "32"]
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--upsampling", "normal"],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env={**os.environ, "COLUMNS": "500", "OMP_NUM_THREADS": "1"},
        )
        said = done.stdout + done.stderr
        assert "exit 1" in said, said
        return said, float(done.stdout.rsplit("peak", 1)[1]) / 1e6

    def test_a_stride_of_zero(self, tmp_path: Path) -> None:
        state = generator_state()
        state["head_0.conv_0.weight_orig"] = torch.zeros(1).expand(2048, 2048, 3, 48)  # 2.4 GB of one number
        path = tmp_path / "g.pth"
        torch.save(state, path)
        assert path.stat().st_size < 1e6
        said, peak = self.peak_mb(path, tmp_path)
        assert "they use the same bytes several times" in said
        assert peak < PEAK_MB

    def test_a_compressed_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "g.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            source = io.BytesIO(torch_bytes(generator_state()))
            with zipfile.ZipFile(source) as archive:
                for name in archive.namelist():
                    target.writestr(name, archive.read(name))
            with target.open("archive/data/pad", "w", force_zip64=True) as stream:
                for _ in range(1600):
                    stream.write(bytes(1_000_000))
        assert path.stat().st_size < 3e6
        said, peak = self.peak_mb(path, tmp_path)
        assert "its parts are compressed" in said
        assert peak < PEAK_MB

    def test_members_that_overlap(self, tmp_path: Path) -> None:
        """Entries of the directory that all point to the same bytes."""
        path = tmp_path / "g.pth"
        path.write_bytes(torch_bytes({"a": torch.zeros(1000)}))
        with zipfile.ZipFile(path, "a") as archive:
            original = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
            archive.writestr("archive/x", b"1")
            for index in range(50):
                copy = zipfile.ZipInfo(f"archive/data/{index + 1}")
                copy.file_size = copy.compress_size = original.file_size
                copy.CRC, copy.header_offset = original.CRC, original.header_offset
                archive.filelist.append(copy)
        with pytest.raises(CheckpointError, match=r"its parts are 2\d\d,\d+ bytes all together"):
            load_weights(path, "file")

    def test_shared_storages(self, tmp_path: Path) -> None:
        ones = torch.ones(1_000_000)
        torch.save({f"a{index}": ones.view(1000, 1000)[:] for index in range(64)}, tmp_path / "g.pth")
        with pytest.raises(CheckpointError, match="they use the same bytes"):
            load_weights(tmp_path / "g.pth", "file")
        # The counter-test: the same state under two names, as training code saves it.
        twice = {"model": {"a": ones}, "ema": {"a": ones[:]}}
        torch.save(twice, tmp_path / "g.pth")
        assert torch.equal(load_weights(tmp_path / "g.pth", "file")["ema"]["a"], ones)

    def test_an_archive_of_arrays(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "vgg.npz", **{"conv1_1.w": np.zeros(50_000_000, np.float32)})
        with pytest.raises(CheckpointError, match="its arrays are 200,"):
            load_vgg(tmp_path / "vgg.npz")


class _Touches:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.path}'",))


class TestNothingIsRun:
    """A pickle that runs a command, given to each reader of pickles."""

    @pytest.mark.parametrize("is_old", [False, True])
    @pytest.mark.parametrize("reader", ["import", "encoder", "resume", "perceptual"])
    def test_by_no_reader(self, reader: str, is_old: bool, tmp_path: Path) -> None:
        trap = tmp_path / "run"
        state = {"a": torch.zeros(1), "b": _Touches(trap)}
        path = tmp_path / "file.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not is_old)
        # The counter-test: it would have run.
        torch.load(path, weights_only=False)
        assert trap.exists()
        trap.unlink()
        with pytest.raises(CheckpointError, match=r"object of the kind (posix|os|nt)\.system"):
            self.read(reader, path, tmp_path)
        assert not trap.exists()

    def read(self, reader: str, path: Path, folder: Path) -> None:
        if reader == "import":
            read_generator_file(path, REQUEST)
        elif reader == "encoder":
            read_encoder_file(path, build_generator(**{**SMALL, "z_dim": 4}).spec)
        elif reader == "perceptual":
            load_vgg(path)
        else:
            checkpoint = folder / "step_00000001"
            save_checkpoint(
                checkpoint,
                build_generator(**SMALL),
                step=1,
                origin="train",
                state=TrainingState({"a": torch.zeros(1)}, {"step": 1}),
            )
            content = path.read_bytes()
            (checkpoint / runs.OPTIMIZERS_FILE).write_bytes(content)
            described = json.loads((checkpoint / runs.CHECKPOINT_JSON).read_text())
            described["optimizers_sha256"] = hashlib.sha256(content).hexdigest()
            (checkpoint / runs.CHECKPOINT_JSON).write_text(json.dumps(described))
            load_training_state(checkpoint)
