"""What a worker is told when it starts: one candidate, its files, its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spade_deploy.artifact import Arrays
from spade_deploy.bench.candidates import Candidate
from spade_deploy.fields import from_json, to_json
from spade_deploy.files.atomic import write_json
from spade_deploy.files.reading import open_regular, read_json
from spade_deploy.spec import GeneratorSpec


@dataclass(frozen=True)
class Job:
    """One candidate's work.

    manifest_sha256: of the artifact; another one may be exported into its folder before the worker opens it.
    checkpoint, plain_onnx: what baselines load, where there are any. threads: of the CPU.
    cases: .npz files of the graph's inputs, batch by batch. golden: those of the golden inputs, one by one.
    golden_outputs: where the worker writes its answers to them, `image.npy` and `pixels.npy`.
    """

    candidate: Candidate
    artifact: Path
    manifest_sha256: str
    spec: GeneratorSpec
    backend: str
    threads: int
    checkpoint: Path | None
    plain_onnx: Path | None
    cases: tuple[Path, ...]
    golden: tuple[Path, ...]
    golden_outputs: Path

    def write(self, path: Path) -> None:
        write_json(path, to_json(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        return from_json(cls, read_json(path), "job")


def write_arrays(path: Path, arrays: Arrays) -> Path:
    """Tensors by name as an .npz that only this run reads."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes allow_pickle for one of them
    return path


def read_arrays(path: Path) -> Arrays:
    """The inverse of `write_arrays`."""
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
