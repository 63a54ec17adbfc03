"""ONNX Runtime's execution providers: the options of each, and where the TensorRT provider keeps its engines."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from spade_deploy.artifact import Artifact, Graph
from spade_deploy.engines.cuda.driver import Gpu
from spade_deploy.engines.input_shapes import Shape, tensor_ranges
from spade_deploy.engines.ort.session import CUDA, TENSORRT
from spade_deploy.errors import ConfigError, InputRefusedError, RuntimeUnavailableError
from spade_deploy.files.reading import sha256_of_bytes
from spade_deploy.files.user_cache import user_cache
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision, ShapeProfile

FIRST_WEAKLY_TYPED = (1, 27)
"""From this version of ONNX Runtime on, the TensorRT provider makes weakly typed networks whatever its options are.
This was found in the released libraries of 1.20 to 1.31.1: until 1.26 a network is strongly typed if no precision flag
is set."""


class ConvSearch(StrEnum):
    """How cuDNN chooses an algorithm for a convolution: by trying all at every new shape, or by its own estimate."""

    EXHAUSTIVE = "EXHAUSTIVE"
    HEURISTIC = "HEURISTIC"


@dataclass(frozen=True)
class GpuOptions:
    """How a session runs on a GPU."""

    device: int = 0
    """The GPU's number."""
    conv_search: ConvSearch | None = None
    """How cuDNN looks for algorithms. None lets it try all where the size is fixed, and trusts its estimate where it is
    not (see `provider_options`)."""
    cuda_graph: bool = False
    """Whether a shape's kernels are replayed as one launch. It is an option of the CUDA provider and dense graphs."""
    channels_last: bool | None = None
    """Whether convolutions run with channels last. It is an option of the CUDA provider. None takes it in half
    precision (see `provider_options`)."""
    profile: ShapeProfile | None = None
    """What the TensorRT provider builds its engine for when the session is opened. With None it builds at the first
    run, and again for shapes beyond those seen so far."""
    cache_folder: Path | None = None
    """Where the TensorRT provider keeps its engines. None is a folder in the user's cache."""

    def __post_init__(self) -> None:
        if self.device < 0:
            raise ConfigError(f"`device`: {self.device} is not the number of a GPU, 0 or more")

    def check(self, provider: str, kind: GraphKind) -> None:
        """Raise ConfigError for an option that this provider or graph would ignore."""
        if self.cuda_graph and provider != CUDA:
            raise ConfigError(f"`cuda_graph`: {provider} has none", hint=f"only {CUDA} replays CUDA graphs")
        if self.cuda_graph and kind is GraphKind.LOOKUP:
            raise ConfigError(
                "`cuda_graph`: the tables of a lookup graph have another size for every map, and nothing is replayed",
                hint="take the dense graph (`graph`), or no CUDA graphs",
            )
        if self.channels_last and provider != CUDA:
            raise ConfigError(f"`channels_last`: {provider} has no such option", hint=f"it is an option of {CUDA}")
        if provider != TENSORRT and (self.profile is not None or self.cache_folder is not None):
            what = "profile" if self.profile is not None else "cache_folder"
            raise ConfigError(f"`{what}`: {provider} builds no engines", hint=f"it is an option of {TENSORRT}")
        if provider == TENSORRT and self.conv_search is not None:
            raise ConfigError(f"`conv_search`: {provider} searches by itself", hint=f"it is an option of {CUDA}")


def provider_options(
    provider: str, artifact: Artifact, graph: Graph, gpu: Gpu | None, options: GpuOptions, runtime_version: str
) -> dict[str, str]:
    """The options of an execution provider, by the names that the provider gives them.

    gpu: needed by the TensorRT provider, whose engines belong to one card. runtime_version: ONNX Runtime's.

    CUDA. An exhaustive search times every algorithm of every convolution, again at every new shape. That is right for
    a size that never changes; a service with many sizes would wait for seconds. With the largest workspace, cuDNN
    may use the fast half-precision kernels. TF32 rounds a float32 product to 10 bits, which a float32 graph, held to
    float32's own rounding error, must not do. Channels last is how half precision is fast: on an H200 the dense graph
    of ADE20K's size took 2.37 ms so and 3.21 ms with channels first, and 14.2 against 16.7 ms at batch 8; the lookup
    graph 9.39 against 10.64 ms there (benchmarks/results/gpu-nvidia-h200.json). In float32 it was not measured.

    TensorRT. With none of its precision flags set the provider makes a strongly typed network, so that the graph's own
    types hold; one flag set makes a weakly typed one, and TensorRT chooses. Raises RuntimeUnavailableError for a
    version that makes no strongly typed one, unless the graph is float32.
    """
    if provider == CUDA:
        spec = artifact.manifest.generator
        is_last = graph.precision is Precision.FP16 if options.channels_last is None else options.channels_last
        search = options.conv_search or (ConvSearch.HEURISTIC if spec.is_dynamic else ConvSearch.EXHAUSTIVE)
        return {
            "device_id": str(options.device),
            "cudnn_conv_algo_search": str(search),
            "cudnn_conv_use_max_workspace": "1",
            "use_tf32": "0" if graph.precision is Precision.FP32 else "1",
            "enable_cuda_graph": "1" if options.cuda_graph else "0",
            "prefer_nhwc": "1" if is_last else "0",
        }
    if provider != TENSORRT:
        return {}
    if gpu is None:
        raise ConfigError(f"{provider}: its options need the GPU that its engines are for")
    _require_strong_types(graph, runtime_version)
    folder = str(cache_folder(artifact, options))
    told = {
        "device_id": str(options.device),
        "trt_fp16_enable": "False",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_engine_cache_prefix": f"spade-{cache_key(artifact, graph, gpu, options.profile, runtime_version)[:32]}",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
    }
    if options.profile is not None:
        ranges = tensor_ranges(artifact.manifest.generator, graph.kind, options.profile)
        for which, bound in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, shapes[which]))}" for name, shapes in ranges.items())
            told[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
    return told


def _require_strong_types(graph: Graph, runtime_version: str) -> None:
    major, minor = (int(number) for number in re.findall(r"\d+", runtime_version)[:2])
    if graph.precision is Precision.FP32 or (major, minor) < FIRST_WEAKLY_TYPED:
        return
    raise RuntimeUnavailableError(
        f"the TensorRT provider of ONNX Runtime {runtime_version} does not keep a graph's types: {graph.name} would run"
        " as float32, or in half precision also where that overflows",
        hint="`spade build` makes a TensorRT engine that keeps them; so does the provider of onnxruntime-gpu 1.26",
    )


def cache_key(artifact: Artifact, graph: Graph, gpu: Gpu, profile: ShapeProfile | None, runtime_version: str) -> str:
    """sha256 over all that an engine of the TensorRT provider depends on.

    The provider names its files by the model's node names and the compute capability alone: a graph that was exported
    again, another TensorRT or another card of the same generation would get an engine that is not theirs.
    """
    facts = {
        "onnx_sha256": artifact.manifest.files[graph.file].sha256,
        "onnxruntime": runtime_version,
        "tensorrt": loaded_tensorrt(),
        "gpu": gpu.name,
        "compute_capability": list(gpu.compute_capability),
        "precision": graph.precision,
        "profile": None if profile is None else str(profile),
    }
    return sha256_of_bytes(json.dumps(facts, sort_keys=True).encode())


def loaded_tensorrt() -> str | None:
    """The version of the TensorRT library that this process has loaded, as '101303'; None where none is loaded."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    found = []
    for major in (10, 11):
        try:  # only if the provider has loaded it already; of several it tells the one in use
            library = ctypes.CDLL(f"libnvinfer.so.{major}", mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
            found.append(str(library.getInferLibVersion()))
        except (OSError, AttributeError):
            continue
    return ",".join(found) or None


def cache_folder(artifact: Artifact, options: GpuOptions) -> Path:
    """Where engines of the TensorRT provider are kept. Raises ConfigError for a folder inside the artifact."""
    folder = user_cache("onnxruntime-tensorrt") if options.cache_folder is None else options.cache_folder
    folder = folder.expanduser().absolute()
    if folder.resolve().is_relative_to(artifact.path.resolve()):
        raise ConfigError(
            f"`cache_folder`: {folder} is inside the artifact {artifact.path}, to which no files may be added",
            hint="give a folder elsewhere, or none for the user's own",
        )
    return folder


def check_profile(
    spec: GeneratorSpec, kind: GraphKind, profile: ShapeProfile, inputs: Mapping[str, NDArray[Any]]
) -> None:
    """Raise InputRefusedError for shapes that an engine of this profile does not take."""
    for name, (least, _, most) in tensor_ranges(spec, kind, profile).items():
        shape: Shape = inputs[name].shape
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            found, low, high = ("x".join(map(str, sizes)) for sizes in (shape, least, most))
            raise InputRefusedError(
                f"input {name}: {found} is not within {low} and {high}, which profile {profile} allows",
                hint="open the session with a wider profile, or with none to build for the shapes that come",
            )
