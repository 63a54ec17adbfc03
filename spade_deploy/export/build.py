"""Which module is traced for which architecture and kind of graph, and the names of its parts."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from spade_deploy.artifact import Arrays
from spade_deploy.errors import ConfigError
from spade_deploy.export.crn import DeployCascade, crn_stages, crn_units
from spade_deploy.export.dense_model import DenseModel
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.pix2pixhd import DeployGlobal, pix2pixhd_stages, pix2pixhd_units
from spade_deploy.export.spade import DeployModel, spade_stages, spade_units
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.build import Generator
from spade_deploy.networks.crn import CascadedRefinementNetwork
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind

TracedModel = DenseModel | LookupModel


def build_model(
    generator: Generator,
    kind: GraphKind = GraphKind.DENSE,
    *,
    fp16: bool = False,
    keep_fp32: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> TracedModel:
    """The module that is traced; what fp16, keep_fp32 and dtype mean, see `DenseModel`.

    Raises ConfigError for a kind that the architecture does not have, ExportError for weights that do not fold.
    """
    require_kind(generator.spec, kind)
    if isinstance(generator, SpadeGenerator):
        build = LookupModel if kind is GraphKind.LOOKUP else DeployModel
        return build(generator, fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)
    if isinstance(generator, CascadedRefinementNetwork):
        return DeployCascade(generator, fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)
    return DeployGlobal(generator, fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)


def model_inputs(model: TracedModel, inputs: Arrays) -> list[Tensor]:
    """A dense graph's inputs by name -> what `model` takes."""
    kind = GraphKind.LOOKUP if isinstance(model, LookupModel) else GraphKind.DENSE
    return [torch.from_numpy(array.copy()) for array in graph_inputs(model.spec, kind, inputs).values()]


def require_kind(spec: GeneratorSpec, kind: GraphKind) -> None:
    """Raises ConfigError where there is no such graph of an architecture."""
    if kind not in spec.graph_kinds:
        raise ConfigError(
            f"a {kind} graph cannot be made of a {spec.architecture} generator: it looks up gamma and beta, which"
            f" {Architecture.SPADE} alone has",
            hint="leave it out: the dense graph is made",
        )


def unit_names(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    match spec.architecture:
        case Architecture.SPADE:
            return spade_units(spec)
        case Architecture.PIX2PIXHD:
            return pix2pixhd_units(spec)
        case Architecture.CRN:
            return crn_units(spec)


def stage_names(spec: GeneratorSpec) -> list[str]:
    """Values that the traced model and the trained generator both compute, in the order they are computed."""
    match spec.architecture:
        case Architecture.SPADE:
            return spade_stages(spec)
        case Architecture.PIX2PIXHD:
            return pix2pixhd_stages(spec)
        case Architecture.CRN:
            return crn_stages(spec)
