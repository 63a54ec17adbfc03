"""What is measured: the graphs of an artifact, and the baselines that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import parse_graph_choice
from spade_deploy.engines.tensorrt.open import has_engines
from spade_deploy.errors import ConfigError
from spade_deploy.fields import from_json, to_json
from spade_deploy.spec import Backend, GraphChoice, GraphKind, Precision


class Kind(StrEnum):
    """What a candidate is: a graph, a bound, the reference, or one of the baselines, which all run the trained module.

    A baseline is what a careful user gets without this package, each in the precision that its name says.
    """

    GRAPH = "graph"
    """A graph of the artifact."""

    EAGER = "eager"
    """PyTorch in float32: spectral norm removed by PyTorch's own function, channels last."""

    EAGER_BF16 = "eager-bf16"
    """The same, weights and activations in bfloat16."""

    COMPILE = "compile"
    """EAGER through torch.compile."""

    COMPILE_BF16 = "compile-bf16"
    """EAGER_BF16 through torch.compile."""

    PLAIN = "plain"
    """A plain ONNX export in ONNX Runtime."""

    PLAIN_INT8 = "plain-int8"
    """The plain export after `onnxruntime.quantization.quantize_static` with its defaults, in ONNX Runtime."""

    OPENVINO = "openvino"
    """The plain export in OpenVINO at its own precision, which is bf16 where the CPU has it."""

    OPENVINO_F32 = "openvino-f32"
    """The plain export in OpenVINO, held to float32."""

    OPENVINO_INT8 = "openvino-int8"
    """The plain export after `nncf.quantize` with its defaults, in OpenVINO."""

    NCNN = "ncnn"
    """The trained module, traced and converted by pnnx, in ncnn: float32 with Winograd convolutions."""

    REFERENCE = "reference"
    """The untouched module in PyTorch, float32. It is never timed: the PSNR of the others refers to its images."""

    BOUND = "bound"
    """An ONNX file with inputs of fixed shapes, run on random numbers.

    It makes no image, so its images are not judged: it says how fast a part of the work alone would be.
    """

    GEMM = "gemm"
    """A product of two large matrices in PyTorch, in the candidate's precision. It makes no image: its fastest run says
    how many operations a second this CPU does at most."""


BASELINES = {
    Kind.EAGER: "PyTorch eager",
    Kind.EAGER_BF16: "PyTorch eager, bf16",
    Kind.COMPILE: "torch.compile",
    Kind.COMPILE_BF16: "torch.compile, bf16",
    Kind.PLAIN: "plain export, ONNX Runtime",
    Kind.PLAIN_INT8: "plain export, ONNX Runtime int8",
    Kind.OPENVINO: "plain export, OpenVINO default",
    Kind.OPENVINO_F32: "plain export, OpenVINO f32",
    Kind.OPENVINO_INT8: "plain export, OpenVINO int8 (NNCF)",
    Kind.NCNN: "ncnn",
}
_PRECISIONS = {
    Kind.EAGER_BF16: Precision.BF16,
    Kind.COMPILE_BF16: Precision.BF16,
    Kind.PLAIN_INT8: Precision.INT8,
    Kind.OPENVINO_INT8: Precision.INT8,
}
GEMM_SIDE = 2048
"""Rows and columns of the matrices of a GEMM: a product takes 17 GFLOP."""
ALL_BASELINES = "all"


@dataclass(frozen=True)
class Candidate:
    """One thing that is measured, in a process of its own."""

    kind: Kind
    """A graph of the artifact, a baseline or a bound."""

    name: str
    """Its name in tables: 'fp16 lookup', 'PyTorch eager'."""

    precision: Precision = Precision.FP32
    """The precision that is asked for. OpenVINO's default is its own choice: the entry of the result says what ran."""

    graph: GraphChoice | None = None
    """Which graph of the artifact it is; None for a baseline or a bound."""

    onnx: Path | None = None
    """The file of a bound; None for all others."""

    backend: str | None = None
    """What runs the graph; None for what the plan says."""

    @property
    def is_baseline(self) -> bool:
        return self.kind in BASELINES

    @property
    def makes_images(self) -> bool:
        return self.kind not in (Kind.BOUND, Kind.GEMM)

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> Candidate:
        return from_json(cls, value, "candidate")


def choose_candidates(
    artifact: Artifact,
    precisions: Sequence[Precision] = (),
    graphs: Sequence[GraphChoice | str] = (),
    baselines: Sequence[str] = (),
    backend: Backend | str = Backend.AUTO,
) -> tuple[Candidate, ...]:
    """The candidates that were asked for, baselines first, in the order given.

    precisions, graphs: those of the artifact's graphs to measure; every one that exists if empty. graphs may hold
    `auto`, which stands for the runtime's own choice. baselines: names of `BASELINES`, or 'all'. backend: with
    TensorRT, graphs without an engine are left out unless they are asked for. Raises ConfigError for an unknown
    baseline, ArtifactError for a graph that does not exist.
    """
    found = _graphs(artifact, precisions, graphs)
    if backend == Backend.TENSORRT and not precisions and not graphs:
        found = [one for one in found if has_engines(artifact, one.precision, GraphKind(str(one.graph)))]
    chosen = list(dict.fromkeys([*_baselines(baselines), *found]))
    if not chosen:
        raise ConfigError(
            f"{artifact.path}: there is nothing to measure",
            hint="leave `precisions` and `graphs` out; engines are made by `spade build`",
        )
    return tuple(chosen)


def _baselines(names: Sequence[str]) -> list[Candidate]:
    kinds: list[Kind] = []
    for name in names:
        if name == ALL_BASELINES:
            kinds += BASELINES
        elif name in list(BASELINES):
            kinds.append(Kind(name))
        else:
            raise ConfigError(f"`baselines`: {name!r} is not one of {', '.join(BASELINES)} or {ALL_BASELINES}")
    return [Candidate(kind, BASELINES[kind], _PRECISIONS.get(kind, Precision.FP32)) for kind in kinds]


def _graphs(
    artifact: Artifact, precisions: Sequence[Precision], graphs: Sequence[GraphChoice | str]
) -> list[Candidate]:
    wanted = [parse_graph_choice(str(graph)) for graph in graphs]
    there = [(graph.precision, GraphChoice(graph.kind)) for graph in artifact.manifest.graphs]
    asked: Sequence[Precision | None] = precisions or (None,)
    for one in asked:
        # This raises and lists the existing graphs: a graph that was asked for is never left out in silence.
        for kind in [GraphKind(choice) for choice in wanted if choice != GraphChoice.AUTO] or [GraphKind.DENSE]:
            artifact.graph(None if one is None else one.exported, kind)
    found: list[Candidate] = []
    for precision in precisions or dict.fromkeys(precision for precision, _ in there):
        own = [choice for found_precision, choice in there if found_precision is precision.exported]
        for choice in wanted or own:
            if choice == GraphChoice.AUTO or choice in own:
                found.append(Candidate(Kind.GRAPH, f"{precision} {choice}", precision, choice))
    return found
