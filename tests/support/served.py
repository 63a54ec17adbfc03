"""Stand-in artifacts behind the HTTP interface: their NumPy twin says what every image has to be."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Z
from spade_deploy.engines.open import open_runtime
from spade_deploy.serving.app import make_app
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.runner import BatchRule
from spade_deploy.spec import GeneratorSpec
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, stand_in_artifact

SPECS = {"plain": PLAIN, "edges": EDGES, "styled": STYLED}


def served_models(folder: Path, rule: BatchRule | None = None) -> dict[str, ServedModel]:
    """One model for each of SPECS."""
    models = {}
    for name, spec in SPECS.items():
        artifact = stand_in_artifact(folder / name, spec)
        models[name] = ServedModel(name, artifact, open_runtime(artifact, backend="cpu"), rule or BatchRule())
    return models


def served_app(folder: Path, token: str = "", **asked: Any) -> Any:
    """The app of these models. asked: fields of `ServeRequest`."""
    return make_app(served_models(folder), ServeRequest(**asked), token)


def png(values: NDArray[Any]) -> bytes:
    """Integers H x W -> the bytes of a greyscale PNG."""
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    """The bytes of an image file -> H x W x 3."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def some_map(spec: GeneratorSpec, seed: int = 0) -> NDArray[np.uint8]:
    """A random label map of the model's size."""
    most = min(spec.labels.num_labels, 255)
    return np.random.default_rng(seed).integers(0, most, (spec.height, spec.width)).astype(np.uint8)


def right_pixels(
    spec: GeneratorSpec,
    label: NDArray[Any],
    instance: NDArray[Any] | None = None,
    style: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """What a stand-in makes of these maps."""
    inputs = {LABEL: label[None].astype(spec.labels.id_type)}
    if spec.labels.has_edges:
        inputs[INSTANCE] = (np.zeros(label.shape) if instance is None else instance)[None].astype(np.int32)
    if spec.z_dim is not None:
        inputs[Z] = (np.zeros(spec.z_dim) if style is None else style)[None].astype(np.float32)
    return np.asarray(expected(spec, inputs)[PIXELS][0])


class ServedProcess:
    """A running `spade serve`."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        stand_in_artifact(folder / "one", PLAIN)
        command = [
            sys.executable,
            "-m",
            "spade_deploy",
            "serve",
            str(folder / "one"),
            "--port",
            "0",
            "--backend",
            "cpu",
        ]
        self.errors = folder / "stderr"
        with self.errors.open("wb") as file:
            self.process = subprocess.Popen([*command, *flags], stdout=file, stderr=file, cwd=folder)
        self.url = self.wait_for(r"http://127\.0\.0\.1:\d+")
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/readyz", timeout=5).close()
                return
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        raise AssertionError(self.errors.read_text())

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    def wait_for(self, pattern: str) -> str:
        """The first match of a pattern in what the server has written; fails after 60 seconds, or when it has ended."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(pattern, self.errors.read_text()):
                return found[0]
            time.sleep(0.05)
        raise AssertionError(self.errors.read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
