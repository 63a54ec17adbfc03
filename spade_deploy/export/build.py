"""What is exported for each architecture: the module that is recorded, and the names of its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spade_deploy.artifact import Arrays
from spade_deploy.errors import ConfigError
from spade_deploy.export.clade import DeployCladeModel, LookupCladeModel, clade_units
from spade_deploy.export.crn import DeployCascade, crn_stages, crn_units
from spade_deploy.export.dense_model import DenseModel
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.oasis import DeployOasis, LookupOasis
from spade_deploy.export.pix2pixhd import DeployGlobal, pix2pixhd_stages, pix2pixhd_units
from spade_deploy.export.sims import DeploySemiParametric, sims_stages, sims_units
from spade_deploy.export.spade import DeployModel, spade_stages, spade_units
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.build import Generator
from spade_deploy.spec import MODULATED, Architecture, GeneratorSpec, GraphKind

ExportedModel = DenseModel | LookupModel


@dataclass(frozen=True)
class Deployed:
    """What is exported for one architecture."""

    models: Mapping[GraphKind, Callable[..., ExportedModel]]
    """For each kind of graph the module that is recorded. It takes the generator, `fp16`, `keep_fp32` and `dtype`."""

    units: Callable[[GeneratorSpec], list[str]]
    """The names of the parts that have a precision of their own, in the order they run."""

    stages: Callable[[GeneratorSpec], list[str]]
    """The names of the values that the recorded model and the trained generator both compute, in that order."""


DEPLOYED: Mapping[Architecture, Deployed] = MappingProxyType(
    {
        Architecture.SPADE: Deployed(
            {GraphKind.DENSE: DeployModel, GraphKind.LOOKUP: LookupModel}, spade_units, spade_stages
        ),
        Architecture.PIX2PIXHD: Deployed({GraphKind.DENSE: DeployGlobal}, pix2pixhd_units, pix2pixhd_stages),
        Architecture.CRN: Deployed({GraphKind.DENSE: DeployCascade}, crn_units, crn_stages),
        Architecture.SIMS: Deployed({GraphKind.DENSE: DeploySemiParametric}, sims_units, sims_stages),
        Architecture.CLADE: Deployed(
            {GraphKind.DENSE: DeployCladeModel, GraphKind.LOOKUP: LookupCladeModel}, clade_units, spade_stages
        ),
        Architecture.OASIS: Deployed(
            {GraphKind.DENSE: DeployOasis, GraphKind.LOOKUP: LookupOasis}, spade_units, spade_stages
        ),
    }
)
"""What is exported for each architecture of `networks.build.NETWORKS`."""


def build_model(
    generator: Generator,
    kind: GraphKind = GraphKind.DENSE,
    *,
    fp16: bool = False,
    keep_fp32: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> ExportedModel:
    """The module that is recorded; `DenseModel` says what fp16, keep_fp32 and dtype mean.

    Raises ConfigError for a kind that the architecture does not have, ExportError for weights that do not fold.
    """
    require_kind(generator.spec, kind)
    build = DEPLOYED[generator.spec.architecture].models[kind]
    return build(generator, fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)


def model_inputs(model: ExportedModel, inputs: Arrays) -> list[Tensor]:
    """The inputs of `model`, made from a dense graph's inputs by name."""
    kind = GraphKind.LOOKUP if isinstance(model, LookupModel) else GraphKind.DENSE
    bank = model.bank if isinstance(model, DenseModel) else None
    return [torch.from_numpy(array.copy()) for array in graph_inputs(model.spec, kind, inputs, bank).values()]


def require_kind(spec: GeneratorSpec, kind: GraphKind) -> None:
    """Raise ConfigError if an architecture has no graph of that kind."""
    if kind not in spec.graph_kinds:
        raise ConfigError(
            f"a {kind} graph cannot be made of a {spec.architecture} generator: it looks up gamma and beta, which only"
            f" {' and '.join(MODULATED)} have",
            hint="leave it out, and the dense graph is made",
        )


def unit_names(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    return DEPLOYED[spec.architecture].units(spec)


def stage_names(spec: GeneratorSpec) -> list[str]:
    """Values that the recorded model and the trained generator both compute, in the order they are computed."""
    return DEPLOYED[spec.architecture].stages(spec)
