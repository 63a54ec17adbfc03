"""The reference: the untouched PyTorch module with the exported weights, or its golden outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from spade_deploy.artifact import Arrays, Artifact, Graph
from spade_deploy.errors import ConfigError, MissingDependencyError, NotFoundError
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint
from spade_deploy.validation.request import KnownOutputs, ValidationRequest

if TYPE_CHECKING:
    from spade_deploy.networks.build import Generator


class Reference(Protocol):
    """The trusted outputs that graphs are compared with."""

    name: str
    """Its name for people."""

    def images(self, inputs: Arrays) -> Arrays:
        """`pixels`, `image` and `logits` for a dense graph's inputs. Raises NotFoundError where they are not known."""

    def own_psnr_db(self, inputs: Arrays) -> float | None:
        """The PSNR of its own image in float32 against float64; None where both are equal, or it is not known."""

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        """One sentence that names the first wrong tensor of a graph that failed."""


def open_reference(artifact: Artifact, request: ValidationRequest) -> Reference:
    """The untouched module if PyTorch and the checkpoint are there, else the golden outputs.

    Raises MissingDependencyError or NotFoundError if the request needs more than the golden outputs, ConfigError for a
    checkpoint of other weights.
    """
    needs_torch = request.labels is not None or request.checkpoint is not None
    if importlib.util.find_spec("torch") is None:
        if needs_torch:
            raise MissingDependencyError(
                "PyTorch is not installed: without it the golden inputs alone can be validated",
                hint="leave `labels` and `checkpoint` out, or pip install 'spade-deploy[export]'",
            )
        return _GoldenReference(artifact, "PyTorch is not installed")
    found = find_exported_checkpoint(artifact, request.checkpoint, request.runs_dir)
    if found is not None:
        return _TorchReference(found, artifact, request.known)
    if needs_torch:
        raise NotFoundError(
            f"the checkpoint that {artifact.path} was exported from was not found in {request.runs_dir}",
            hint="give `checkpoint`, or leave `labels` out to validate against the golden outputs",
        )
    return _GoldenReference(
        artifact, f"the checkpoint is not in {request.runs_dir}; `spade validate --checkpoint PATH` says where it is"
    )


def find_exported_checkpoint(artifact: Artifact, checkpoint: Path | None, runs_dir: Path) -> Path | None:
    """The given checkpoint or run, else the one in `runs_dir` whose weights were exported; None if there is none."""
    if checkpoint is not None:
        return resolve_checkpoint(checkpoint, runs_dir)
    digest = artifact.manifest.source.generator_sha256
    return find_checkpoint_by_digest(digest, near=artifact.path, runs_dir=runs_dir)


def load_exported_generator(checkpoint: Path, artifact: Artifact) -> Generator:
    """The untouched module of a checkpoint. Raises ConfigError where its weights are not those that were exported."""
    from spade_deploy.runs.checkpoint import load_generator

    loaded = load_generator(checkpoint)
    expected = artifact.manifest.source.generator_sha256
    if loaded.info.generator_sha256 != expected:
        raise ConfigError(
            f"`checkpoint` {checkpoint}: its weights ({loaded.info.generator_sha256[:16]}...) are not those that"
            f" were exported ({expected[:16]}...)",
            hint="leave `checkpoint` out to validate against the golden outputs",
        )
    return loaded.module


class _GoldenReference:
    """The outputs of the untouched module that were stored at export."""

    def __init__(self, artifact: Artifact, why: str) -> None:
        golden = artifact.golden()
        self._golden = KnownOutputs(artifact.manifest.source.generator_sha256, golden.inputs, golden.outputs)
        self.name = f"golden outputs stored at export ({why})"

    def images(self, inputs: Arrays) -> Arrays:
        found = self._golden.of(inputs)
        if found is None:
            raise NotFoundError("the golden outputs hold no such input")
        return found

    def own_psnr_db(self, inputs: Arrays) -> float | None:
        return None

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        return "install spade-deploy[export]; `spade validate --checkpoint PATH` then tells which tensor diverges first"


class _TorchReference:
    """The untouched PyTorch module with the checkpoint's weights.

    known: outputs that it gave before in this process. Those of other weights are not used.
    """

    def __init__(self, checkpoint: Path, artifact: Artifact, known: KnownOutputs | None) -> None:
        import torch

        self._module = load_exported_generator(checkpoint, artifact)
        is_same = known is not None and known.generator_sha256 == artifact.manifest.source.generator_sha256
        self._known = known if is_same else None
        self.name = f"PyTorch {torch.__version__}, untouched module in eval mode, float32, {checkpoint}"

    def images(self, inputs: Arrays) -> Arrays:
        from spade_deploy.export.pipeline import run_reference

        found = None if self._known is None else self._known.of(inputs)
        return run_reference(self._module, inputs) if found is None else found

    def own_psnr_db(self, inputs: Arrays) -> float | None:
        from spade_deploy.export.pipeline import float32_psnr_db

        return float32_psnr_db(self._module, inputs)

    def diverges_at(self, file: Path, graph: Graph, inputs: Arrays) -> str:
        if importlib.util.find_spec("onnx") is None:
            return "install spade-deploy[export] to learn which tensor diverges first"
        from spade_deploy.validation.divergence import first_divergence

        found = first_divergence(file, graph, self._module, inputs)
        if found is None:
            return "every named tensor is close; the error arises in the last operators, after conv_img, or adds up"
        return (
            f"the first tensor that diverges is {found.tensor}"
            f" (relative error {found.relative_error:.2g}, max {found.max_abs:.2g})"
        )
