"""examples/triton_client.py asks a server of the same protocol, and saves the photo of `spade infer`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.inference.infer import infer
from spade_deploy.inference.request import InferRequest
from spade_deploy.spec import Backend, GraphChoice
from tests.packaging.conftest import blocks
from tests.support.kserve import kserve
from tests.support.paths import ROOT
from tests.support.triton import LocalTriton

SCRIPT = ROOT / "examples" / "triton_client.py"


def ask(address: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, address, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_photos_of_files_of_any_size(edges: Artifact, edges_triton: LocalTriton, tmp_path: Path) -> None:
    """A map of another size than the model's, with unknown pixels, as a palette PNG, and an instance map."""
    ids = blocks(1, 7, (48, 80))[0].astype(np.uint8)
    ids[:9, :31] = 255
    label, instance = tmp_path / "labels" / "a.png", tmp_path / "instances" / "a.png"
    colored = Image.fromarray(ids).convert("P")
    colored.putpalette([*range(256)] * 3)
    for path, image in ((label, colored), (instance, Image.fromarray(blocks(1, 9, (48, 80), 1)[0].astype(np.uint8)))):
        path.parent.mkdir()
        image.save(path)
    asked = InferRequest(label.parent, tmp_path / "out", instances=instance.parent, backend=Backend.CPU, threads=1)
    assert not infer(edges, asked).failures
    expected = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    with kserve(edges_triton) as address:
        done = ask(address, "tiny-001-lookup", label, tmp_path / "photo.png", instance)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "photo.png")), expected)
        Image.fromarray(np.full((64, 64), 8, np.uint8)).save(label)
        done = ask(address, "tiny-001", label, tmp_path / "none.png")
    assert done.returncode == 1
    assert done.stderr == f"{label} holds the id 8; the model has 0..7\n"
    assert not (tmp_path / "none.png").exists()


def test_a_style_model_has_its_mean_style(styled: Artifact, styled_triton: LocalTriton, tmp_path: Path) -> None:
    label = tmp_path / "labels" / "a.png"
    label.parent.mkdir()
    Image.fromarray(blocks(1, 300)[0].astype(np.uint16)).save(label)
    asked = InferRequest(label.parent, tmp_path / "out", backend=Backend.CPU, threads=1, graph=GraphChoice.DENSE)
    assert not infer(styled, asked).failures
    with kserve(styled_triton) as address:
        done = ask(address, "styled", label, tmp_path / "photo.png")
        assert done.returncode == 0, done.stderr
    expected = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "photo.png")), expected)
