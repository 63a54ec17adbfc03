"""What an image of a student costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spade_deploy.lookup.cost import dense_macs, lookup_macs
from spade_deploy.networks.build import parameters_of
from spade_deploy.spec import GeneratorSpec


@dataclass(frozen=True)
class Costs:
    """What an image of a student costs, and how large the student is."""

    lookup_macs: float
    """Multiply-adds of an image by the lookup graph, the mean over the label maps."""
    dense_macs: float
    """Multiply-adds of an image by the dense graph."""
    parameters: int
    """How many trained numbers it has."""


def costs_of(spec: GeneratorSpec, windows: Mapping[int, float]) -> Costs:
    """The costs of a student. windows: the mean number of distinct windows of the label maps at each stride."""
    return Costs(lookup_macs(spec, windows), dense_macs(spec), parameters_of(spec))
