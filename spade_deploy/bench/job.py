"""The job file that a worker reads when it starts: one candidate, its files, its inputs."""

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
    """One candidate's work."""

    candidate: Candidate
    """The candidate that the worker runs."""

    artifact: Path
    """The artifact's folder."""

    manifest_sha256: str
    """The digest of the artifact's manifest: another artifact may be exported into the folder meanwhile."""

    spec: GeneratorSpec
    """How the generator is built."""

    backend: str
    """The name of the engine that runs a graph of the artifact."""

    threads: int
    """The number of CPU threads."""

    checkpoint: Path | None
    """The checkpoint that PyTorch baselines and the reference load."""

    model: Path | None
    """What a baseline of another engine loads: an ONNX file, an OpenVINO file, or a folder of ncnn's files."""

    cases: tuple[Path, ...]
    """.npz files of the graph's inputs, batch by batch."""

    golden: tuple[Path, ...]
    """.npz files of the golden inputs, one by one."""

    golden_outputs: Path
    """Where the worker writes its `image` and `pixels` of them, as one .npz file."""

    def write(self, path: Path) -> None:
        write_json(path, to_json(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        return from_json(cls, read_json(path), "job")


def write_arrays(path: Path, arrays: Arrays) -> Path:
    """Write tensors by name as an .npz, which only this bench reads."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes allow_pickle for one of them
    return path


def read_arrays(path: Path) -> Arrays:
    """Read an .npz that `write_arrays` wrote."""
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
