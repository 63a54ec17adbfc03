"""How each kind of candidate is imported, loaded and run, inside a worker.

Only `run` is timed. Graphs of the artifact take label ids and make pixels, as in `spade infer`. Baselines get a one-hot
segmap that is ready, and stop at the float image: the time for the steps before and after is not counted for them.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, PIXELS, Arrays, Artifact, Z
from spade_deploy.bench.candidates import Kind
from spade_deploy.bench.inputs import make_segmap
from spade_deploy.bench.job import Job
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino.library import load_openvino, version_of
from spade_deploy.engines.ort.session import SessionSetup, load_onnxruntime, open_session
from spade_deploy.errors import ArtifactError, ConfigError, MissingDependencyError
from spade_deploy.spec import Backend, GeneratorSpec

IMPORTS = {
    Kind.GRAPH: "onnxruntime",
    Kind.EAGER: "torch",
    Kind.COMPILE: "torch",
    Kind.PLAIN: "onnxruntime",
    Kind.OPENVINO: "openvino",
    Kind.BOUND: "onnxruntime",
}
SEGMAP = "segmap"


class Runner(Protocol):
    """A candidate that is loaded.

    patterns_s, graph: the seconds for finding patterns and the graph of the last run, if the candidate has them.
    """

    name: str

    @property
    def patterns_s(self) -> float | None: ...

    @property
    def graph(self) -> str | None: ...

    def prepare(self, inputs: Arrays) -> Any:
        """Turn inputs into the argument of `run`; this is not timed."""

    def run(self, prepared: Any) -> Any:
        """Run the candidate once; this is timed."""

    def answers(self, inputs: Arrays) -> Arrays:
        """The `image` and `pixels` of these inputs, to be compared with the golden outputs."""


def import_libraries(job: Job) -> None:
    """Import what `load` needs. Raises MissingDependencyError with what installs it."""
    kind = job.candidate.kind
    name = "openvino" if kind is Kind.GRAPH and job.backend == Backend.OPENVINO else IMPORTS[kind]
    if name == "openvino":
        load_openvino()
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        extra = {"torch": "'spade-deploy[export]'", "onnxruntime": "'spade-deploy[cpu]'"}.get(name, name)
        raise MissingDependencyError(f"{name} cannot be imported: {error}", hint=f"pip install {extra}") from error


def load(job: Job) -> Runner:
    """Load the candidate of a job, ready to run."""
    kind = job.candidate.kind
    if kind is Kind.GRAPH:
        return _GraphRunner(job)
    if kind in (Kind.EAGER, Kind.COMPILE):
        return _TorchRunner(job)
    if kind is Kind.PLAIN:
        return _PlainRunner(job)
    if kind is Kind.OPENVINO:
        return _OpenVinoRunner(job)
    return _BoundRunner(job)


class _GraphRunner:
    """A graph of the artifact in the product's own runtime."""

    def __init__(self, job: Job) -> None:
        artifact, candidate = Artifact.open(job.artifact), job.candidate
        if artifact.manifest.to_json()["manifest_sha256"] != job.manifest_sha256:
            raise ArtifactError(
                f"{artifact.path}: another artifact was exported there while this one was measured",
                hint="the same command measures the new one",
            )
        choice = candidate.graph or GraphChoice.AUTO
        self._runtime = open_runtime(artifact, candidate.precision, job.backend, job.threads, choice)
        self.name = self._runtime.name

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

    def answers(self, inputs: Arrays) -> Arrays:
        return self._runtime.run(inputs)


class _Baseline:
    """A baseline: its input is the segmap, its output the float image."""

    patterns_s: float | None = None
    graph: str | None = None

    def __init__(self, job: Job) -> None:
        self._spec: GeneratorSpec = job.spec

    def prepare(self, inputs: Arrays) -> Any:
        feeds = {SEGMAP: make_segmap(self._spec, inputs)}
        return {**feeds, Z: inputs[Z]} if Z in inputs else feeds

    def run(self, prepared: Any) -> NDArray[np.float32]:
        raise NotImplementedError

    def answers(self, inputs: Arrays) -> Arrays:
        image = np.asarray(self.run(self.prepare(inputs)))
        pixels = ((image + 1) / 2 * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return {IMAGE: image, PIXELS: pixels}


class _TorchRunner(_Baseline):
    """The untouched module in eval mode, as it is or through torch.compile."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.candidate.kind is Kind.COMPILE:
            _require_cpp_compiler()
        import torch

        from spade_deploy.runs.checkpoint import load_generator

        if job.checkpoint is None:
            raise ConfigError("the checkpoint is not known")
        torch.set_num_threads(job.threads)
        module: Any = load_generator(job.checkpoint).module
        self.name = f"PyTorch {torch.__version__}, eager"
        if job.candidate.kind is Kind.COMPILE:
            # Shapes are fixed, since compiled code for one size is faster than code for all sizes.
            module = torch.compile(module, dynamic=False)
            self.name = f"PyTorch {torch.__version__}, torch.compile"
        self._torch, self._module = torch, module

    def prepare(self, inputs: Arrays) -> Any:
        return [self._torch.from_numpy(array) for array in super().prepare(inputs).values()]

    def run(self, prepared: Any) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            image: NDArray[np.float32] = self._module(*prepared).numpy()
        return image


class _PlainRunner(_Baseline):
    """`torch.onnx.export` of the untouched module in ONNX Runtime, with its default options."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._session = open_session(_plain_file(job), _default_setup(job))
        self.name = f"ONNX Runtime {load_onnxruntime().__version__} CPU"

    def run(self, prepared: Any) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._session.run([IMAGE], prepared)[0]
        return image


class _OpenVinoRunner(_Baseline):
    """The plain export in OpenVINO, in float32, tuned for latency."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        openvino = load_openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job.threads,
        }
        self._model = openvino.Core().compile_model(str(_plain_file(job)), "CPU", settings)
        self.name = f"OpenVINO {version_of(openvino)} CPU, f32, latency hint"

    def run(self, prepared: Any) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._model(prepared)[IMAGE]
        return image


class _BoundRunner:
    """An ONNX file of fixed shapes on random numbers: no image, only a time."""

    patterns_s: float | None = None
    graph: str | None = None

    def __init__(self, job: Job) -> None:
        assert job.candidate.onnx is not None  # a bound is a file
        self._session = open_session(job.candidate.onnx, _default_setup(job))
        self.name = f"ONNX Runtime {load_onnxruntime().__version__} CPU"
        rng = np.random.default_rng(0)
        inputs = self._session.get_inputs()
        self._feeds = {found.name: rng.standard_normal(found.shape, np.float32) for found in inputs}

    def prepare(self, inputs: Arrays) -> Any:
        return self._feeds

    def run(self, prepared: Any) -> Any:
        return self._session.run(None, prepared)

    def answers(self, inputs: Arrays) -> Arrays:
        raise NotImplementedError


def _default_setup(job: Job) -> SessionSetup:
    """The setup of baselines and bounds: ONNX Runtime's own defaults."""
    return SessionSetup(job.threads, stops_spinning=False)


def _plain_file(job: Job) -> Path:
    if job.plain_onnx is None:
        raise ConfigError("there is no plain export")
    return job.plain_onnx


def _require_cpp_compiler() -> None:
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in compilers if name):
        raise MissingDependencyError("torch.compile needs a C++ compiler, and there is none", hint="install g++")
