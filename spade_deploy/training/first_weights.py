"""The weights that `train.init` names, for a run whose network may have a style vector where theirs has none."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from torch import Tensor

from spade_deploy.errors import CheckpointError
from spade_deploy.networks.build import Generator
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.layout import SHIPPED
from spade_deploy.runs.shipped import shipped_generator
from spade_deploy.spec import GeneratorSpec

_FIRST_LAYER = "fc."
"""The layer that is fed the style vector, or else the label map."""

_LEFT_TO_SIZE = ("height", "width", "labels", "z_dim")
"""Fields of a spec that change no tensor, or that are told in other words."""


def first_weights(name: str, generator: Generator) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that a generator begins with, and what the user should know, a sentence each.

    name: a shipped model, or a checkpoint. generator: it keeps its own first layer where one of both has a style
    vector and the other has none. Raises CheckpointError where any other tensor is of another shape.
    """
    given = shipped_generator(name) if name in SHIPPED else load_generator(Path(name)).module
    own, tensors = generator.state_dict(), given.state_dict()
    notes: tuple[str, ...] = ()
    if _only_one_has_a_style(given, generator):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_FIRST_LAYER)}
        tensors |= {key: tensor for key, tensor in own.items() if key.startswith(_FIRST_LAYER)}
        which = "this network has a style vector and that of" if given.spec.z_dim is None else "only the network of"
        rest = "has none" if given.spec.z_dim is None else "has a style vector"
        notes = (f"{which} {name} {rest}: the first layer begins with random weights, all others with those of {name}",)
    if any(key not in tensors or tensors[key].shape != own[key].shape for key in own):
        _refuse_other_network(name, given.spec, generator.spec)
    return tensors, notes


def _only_one_has_a_style(one: Generator, other: Generator) -> bool:
    both = type(one) is SpadeGenerator and type(other) is SpadeGenerator
    return both and (one.spec.z_dim is None) != (other.spec.z_dim is None)


def _refuse_other_network(name: str, given: GeneratorSpec, own: GeneratorSpec) -> None:
    """Raise CheckpointError that names the settings of both networks which differ, if any do."""
    names = [field.name for field in fields(GeneratorSpec) if field.name not in _LEFT_TO_SIZE]
    differ = [one for one in names if getattr(given, one) != getattr(own, one)]
    if "architecture" in differ:
        differ = ["architecture"]
    told = [f"`{one}` {getattr(given, one)}, not {getattr(own, one)}" for one in differ]
    if given.labels.num_channels != own.labels.num_channels:
        told.append(f"{given.labels.num_channels} channels of labels, not {own.labels.num_channels}")
    if given.z_dim is not None and own.z_dim is not None and given.z_dim != own.z_dim:
        told.append(f"a style vector of {given.z_dim} numbers, not {own.z_dim}")
    if told:
        raise CheckpointError(
            f"`init`: the network of {name} has {', '.join(told)}",
            hint="give the same network here, or leave `init` out"
            + ("; `spade distill` trains a smaller network from a larger one" if "base_channels" in differ else ""),
        )
