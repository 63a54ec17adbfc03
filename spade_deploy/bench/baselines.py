"""How each baseline is loaded and run, inside a worker. Each runs the trained module, at its library's own defaults.

Its input is a one-hot segmap that is ready, in the library's own form, and it stops at the float image in NumPy: the
time for the steps before and after is not counted for baselines.
"""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays
from spade_deploy.bench.candidates import Kind
from spade_deploy.bench.inputs import module_feeds
from spade_deploy.bench.job import Job, read_arrays
from spade_deploy.engines.openvino.library import DEVICE, load_openvino, version_of
from spade_deploy.engines.ort.session import SessionSetup, load_onnxruntime, open_session
from spade_deploy.errors import ConfigError, MissingDependencyError, SpadeError
from spade_deploy.images.image_file import Size
from spade_deploy.spec import GeneratorSpec, Precision


class Baseline:
    """A baseline: its input is the segmap, its output the float image."""

    patterns_s: float | None = None
    graph: str | None = None
    name = ""

    def __init__(self, job: Job) -> None:
        self._spec: GeneratorSpec = job.spec
        self.precision: Precision = job.candidate.precision

    def prepare(self, inputs: Arrays) -> Any:
        """The input of the candidate's own library; `module_feeds` unless it wants another form."""
        return module_feeds(self._spec, inputs)

    def run(self, prepared: Any) -> NDArray[np.float32]:
        raise NotImplementedError

    def image(self, prepared: Any, made: Any) -> NDArray[np.float32]:
        """The image that `run` made."""
        return np.asarray(made, np.float32)

    def answers(self, inputs: Arrays) -> Arrays:
        image = np.asarray(self.run(self.prepare(inputs)))
        pixels = ((image + 1) / 2 * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return {IMAGE: image, PIXELS: pixels}


class TorchBaseline(Baseline):
    """The trained module in PyTorch, in eval mode, as it is or through torch.compile.

    Spectral norm is removed by PyTorch's own function, and the memory format is channels last, with which the eager
    module was faster in both precisions (processor time: 5.4 s against 7.1 s in fp32, 2.1 s against 4.8 s in bf16, on a
    busy CPU with AMX). Bfloat16 is that of weights and activations: autocast took 2.6 s. The reference is the module
    untouched.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        kind = job.candidate.kind
        is_compiled = kind in (Kind.COMPILE, Kind.COMPILE_BF16)
        if is_compiled:
            _require_cpp_compiler()
        import torch

        from spade_deploy.runs.checkpoint import load_generator

        if job.checkpoint is None:
            raise ConfigError("the checkpoint is not known")
        torch.set_num_threads(job.threads)
        module: Any = load_generator(job.checkpoint).module
        self._torch, self._dtype = torch, torch.float32
        self._format = torch.contiguous_format if kind is Kind.REFERENCE else torch.channels_last
        self.name = f"PyTorch {torch.__version__}, {'torch.compile' if is_compiled else 'eager'}"
        if kind is not Kind.REFERENCE:
            remove_spectral_norm(module)
            if self.precision is Precision.BF16:
                self._dtype = torch.bfloat16
                self.name += ", bf16"
            module.to(dtype=self._dtype, memory_format=self._format)
        # Shapes are fixed, since compiled code for one size is faster than code for all sizes.
        self._module = torch.compile(module, dynamic=False) if is_compiled else module

    def prepare(self, inputs: Arrays) -> Any:
        tensors = [self._torch.from_numpy(array) for array in super().prepare(inputs).values()]
        return [
            one.to(dtype=self._dtype, memory_format=self._format if one.dim() == 4 else self._torch.contiguous_format)
            for one in tensors
        ]

    def run(self, prepared: Any) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            image: NDArray[np.float32] = self._module(*prepared).float().contiguous().numpy()
        return image


class OrtBaseline(Baseline):
    """An ONNX file in ONNX Runtime, with its default options: the plain export, or what was quantised from it."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._session = open_session(model_of(job), default_setup(job))
        self.name = f"ONNX Runtime {load_onnxruntime().__version__} CPU"

    def run(self, prepared: Any) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._session.run([IMAGE], prepared)[0]
        return image


class OpenVinoBaseline(Baseline):
    """The plain export in OpenVINO at its defaults, with the shape of its inputs fixed, which makes it faster.

    Only the number of threads is set, and f32 where the candidate asks for it. `precision` is what OpenVINO says that
    it took: its own choice on this CPU.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        openvino = load_openvino()
        self._settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads}
        if job.candidate.kind is Kind.OPENVINO_F32:
            self._settings["INFERENCE_PRECISION_HINT"] = "f32"
        self._core = openvino.Core()
        self._model = self._core.read_model(str(model_of(job)))
        self._shapes: dict[str, list[int]] = {}
        self._compiled: Any = None
        compiled = self._compile(self.prepare(read_arrays(job.cases[0])))
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if job.candidate.kind is Kind.OPENVINO:
            self.precision = {"bf16": Precision.BF16, "f16": Precision.FP16}.get(found, Precision.FP32)
        said = f"int8, the rest {found}" if job.candidate.kind is Kind.OPENVINO_INT8 else found
        self.name = f"OpenVINO {version_of(openvino)} CPU, {said}"

    def run(self, prepared: Any) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._compile(prepared)(prepared, share_inputs=True)[IMAGE]
        return image

    def _compile(self, feeds: Arrays) -> Any:
        """The model compiled for these shapes. One compiled model is kept: a bench has one size."""
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        if shapes != self._shapes:
            self._compiled = None
            self._model.reshape(shapes)
            self._compiled, self._shapes = self._core.compile_model(self._model, DEVICE, self._settings), shapes
        return self._compiled


class NcnnBaseline(Baseline):
    """The module converted by pnnx, in ncnn, with its default options: float32, Winograd for 3 x 3 convolutions.

    A conversion is of one size, and ncnn has no batches: the images of a batch run one after another.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._ncnn: Any = importlib.import_module("ncnn")  # it has no types
        self._folder, self._threads = model_of(job), job.threads
        self._size: Size | None = None
        self._net: Any = None
        self._load(read_arrays(job.cases[0])[LABEL].shape[1:])
        self.name = f"ncnn {self._ncnn.__version__}"

    def prepare(self, inputs: Arrays) -> Any:
        self._load(inputs[LABEL].shape[1:])
        return list(super().prepare(inputs).values())

    def run(self, prepared: Any) -> NDArray[np.float32]:
        images = []
        for one in zip(*prepared, strict=True):
            extractor = self._net.create_extractor()
            for name, array in zip(self._net.input_names(), one, strict=True):
                extractor.input(name, self._ncnn.Mat(array))
            code, image = extractor.extract(self._net.output_names()[0])
            if code != 0:
                raise SpadeError(f"ncnn ends with code {code}")
            images.append(np.array(image))
        return np.stack(images)

    def _load(self, size: Size) -> None:
        if size == self._size:
            return
        self._net = None
        net = self._ncnn.Net()
        net.opt.num_threads = self._threads
        param, weights = ncnn_files(self._folder, size)
        if net.load_param(str(param)) != 0 or net.load_model(str(weights)) != 0:
            raise SpadeError(f"ncnn cannot load {param}")
        self._net, self._size = net, size


def ncnn_files(folder: Path, size: Size) -> tuple[Path, Path]:
    """The two files of a conversion for (height, width)."""
    name = f"ncnn-{size[0]}x{size[1]}"
    return folder / f"{name}.ncnn.param", folder / f"{name}.ncnn.bin"


def remove_spectral_norm(module: Any) -> None:
    """Put the normalised weight in the place of spectral norm, with PyTorch's own function."""
    import torch

    for child in module.modules():
        if hasattr(child, "weight_orig"):
            torch.nn.utils.remove_spectral_norm(child)


def default_setup(job: Job) -> SessionSetup:
    """The setup of baselines and bounds: ONNX Runtime's own defaults."""
    return SessionSetup(job.threads, stops_spinning=False)


def model_of(job: Job) -> Path:
    """The file or folder that was made for a baseline."""
    if job.model is None:
        raise ConfigError(f"{job.candidate.name}: there is no model for it")
    return job.model


def _require_cpp_compiler() -> None:
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in compilers if name):
        raise MissingDependencyError("torch.compile needs a C++ compiler, and there is none", hint="install g++")
