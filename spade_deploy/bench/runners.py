"""How each kind of candidate is imported, loaded and run, inside a worker.

Only `run` is timed. Graphs of the artifact take label ids and make pixels, as in `spade infer`. Baselines get a one-hot
segmap that is ready, and stop at the float image: the time for the steps before and after is not counted for them.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, PIXELS, Arrays, Artifact
from spade_deploy.bench.baselines import (
    NcnnBaseline,
    OpenVinoBaseline,
    OrtBaseline,
    TorchBaseline,
    default_setup,
)
from spade_deploy.bench.candidates import GEMM_SIDE, Candidate, Kind
from spade_deploy.bench.job import Job
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.openvino.library import load_openvino
from spade_deploy.engines.ort.session import load_onnxruntime, open_session
from spade_deploy.errors import ArtifactError, MissingDependencyError
from spade_deploy.spec import Backend, Precision
from spade_deploy.tuning.open import open_runtime

_LIBRARIES = {
    "torch": (Kind.EAGER, Kind.EAGER_BF16, Kind.COMPILE, Kind.COMPILE_BF16, Kind.REFERENCE, Kind.GEMM),
    "onnxruntime": (Kind.PLAIN, Kind.PLAIN_INT8, Kind.BOUND),
    "openvino": (Kind.OPENVINO, Kind.OPENVINO_F32, Kind.OPENVINO_INT8),
    "ncnn": (Kind.NCNN,),
}
_EXTRAS = {"torch": "export", "onnxruntime": "cpu", "ncnn": "peers"}


class Runner(Protocol):
    """A candidate that is loaded.

    patterns_s, graph: the seconds for finding patterns and the graph of the last run, if the candidate has them.
    """

    name: str
    precision: Precision

    @property
    def patterns_s(self) -> float | None: ...

    @property
    def graph(self) -> str | None: ...

    def prepare(self, inputs: Arrays) -> Any:
        """Turn inputs into the argument of `run`; this is not timed."""

    def run(self, prepared: Any) -> Any:
        """Run the candidate once; this is timed."""

    def image(self, prepared: Any, made: Any) -> NDArray[np.float32]:
        """The float image of a run whose result was `made`; this is not timed."""

    def answers(self, inputs: Arrays) -> Arrays:
        """The `image` and `pixels` of these inputs, to be compared with the golden outputs."""


def library_of(candidate: Candidate, backend: str) -> str:
    """The library that runs a candidate. backend: of the graphs whose candidate names none."""
    if candidate.kind is Kind.GRAPH:
        return "openvino" if (candidate.backend or backend) == Backend.OPENVINO else "onnxruntime"
    return next(name for name, kinds in _LIBRARIES.items() if candidate.kind in kinds)


def import_libraries(candidate: Candidate, backend: str) -> None:
    """Import what `load` needs. Raises MissingDependencyError with what installs it.

    TensorRT is imported by `load`, which asks for the driver first. A graph whose engine is chosen by `auto` may run
    without ONNX Runtime, so it is `load` that says then what is missing.
    """
    asked = (candidate.backend or backend) if candidate.kind is Kind.GRAPH else ""
    if asked == Backend.TENSORRT:
        return
    name = library_of(candidate, backend)
    if name == "openvino":
        load_openvino()
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        if asked == Backend.AUTO:
            return
        raise MissingDependencyError(
            f"{name} cannot be imported: {error}", hint=f"pip install 'spade-deploy[{_EXTRAS[name]}]'"
        ) from error


def load(job: Job) -> Runner:
    """Load the candidate of a job, ready to run."""
    candidate = job.candidate
    if candidate.kind is Kind.GRAPH:
        return _GraphRunner(job)
    if candidate.kind is Kind.BOUND:
        return _BoundRunner(job)
    if candidate.kind is Kind.GEMM:
        return _GemmRunner(job)
    baselines = {"torch": TorchBaseline, "onnxruntime": OrtBaseline, "openvino": OpenVinoBaseline, "ncnn": NcnnBaseline}
    made: Runner = baselines[library_of(candidate, job.backend)](job)
    return made


class _GraphRunner:
    """A graph of the artifact in the product's own runtime."""

    def __init__(self, job: Job) -> None:
        artifact, candidate = Artifact.open(job.artifact), job.candidate
        if artifact.manifest.to_json()["manifest_sha256"] != job.manifest_sha256:
            raise ArtifactError(
                f"{artifact.path}: another artifact was exported there while this one was measured",
                hint="the same command measures the new one",
            )
        choice, backend = candidate.graph or GraphChoice.AUTO, candidate.backend or job.backend
        self._runtime = open_runtime(artifact, candidate.precision, backend, job.threads, choice, images=0)
        self.name, self.precision = self._runtime.name, candidate.precision

    @property
    def patterns_s(self) -> float | None:
        return self._runtime.patterns_s

    @property
    def graph(self) -> str | None:
        return str(self._runtime.kind)

    def prepare(self, inputs: Arrays) -> Arrays:
        return inputs

    def run(self, prepared: Arrays) -> Arrays:
        return self._runtime.run(prepared, [PIXELS])

    def image(self, prepared: Any, made: Any) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._runtime.run(prepared, [IMAGE])[IMAGE]  # what is timed makes pixels alone
        return image

    def answers(self, inputs: Arrays) -> Arrays:
        return self._runtime.run(inputs)


class _Bound:
    """A part of the work: no image, only a time."""

    patterns_s: float | None = None
    graph: str | None = None

    def __init__(self, job: Job) -> None:
        self.precision: Precision = job.candidate.precision

    def image(self, prepared: Any, made: Any) -> NDArray[np.float32]:
        raise NotImplementedError

    def answers(self, inputs: Arrays) -> Arrays:
        raise NotImplementedError


class _BoundRunner(_Bound):
    """An ONNX file of fixed shapes on random numbers, in ONNX Runtime."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        assert job.candidate.onnx is not None  # a bound is a file
        self._session = open_session(job.candidate.onnx, default_setup(job))
        self.name = f"ONNX Runtime {load_onnxruntime().__version__} CPU"
        rng = np.random.default_rng(0)
        inputs = self._session.get_inputs()
        self._feeds = {found.name: rng.standard_normal(found.shape, np.float32) for found in inputs}

    def prepare(self, inputs: Arrays) -> Any:
        return self._feeds

    def run(self, prepared: Any) -> Any:
        return self._session.run(None, prepared)


class _GemmRunner(_Bound):
    """The product of two square matrices in PyTorch, in float32 or bfloat16."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import torch

        torch.set_num_threads(job.threads)
        dtype = torch.bfloat16 if self.precision is Precision.BF16 else torch.float32
        self._torch = torch
        self._pair = [torch.randn(GEMM_SIDE, GEMM_SIDE).to(dtype) for _ in range(2)]
        self.name = f"PyTorch {torch.__version__}, {GEMM_SIDE} x {GEMM_SIDE} x {GEMM_SIDE}, {self.precision}"

    def prepare(self, inputs: Arrays) -> Any:
        return self._pair

    def run(self, prepared: Any) -> Any:
        return self._torch.mm(*prepared)
