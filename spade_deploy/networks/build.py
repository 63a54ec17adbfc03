"""The registry of architectures: which network a spec asks for.

An architecture is

1. a member of `spec.Architecture`; its norms and the fields that it does not use stand in `spec/architectures.py`;
2. its network in a file of this package, and a line in `NETWORKS`;
3. the module that is exported for it in the file of the same name in `export/`, and a line in `export.build.DEPLOYED`.

`NETWORKS` and `DEPLOYED` have the same keys (`tests/networks/test_build.py`). All other code looks an architecture up
in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from spade_deploy.networks.clade import CladeGenerator
from spade_deploy.networks.crn import CascadedRefinementNetwork
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.instance_encoder import InstanceEncoder, instance_encoder_like
from spade_deploy.networks.oasis import OasisGenerator
from spade_deploy.networks.pix2pixhd import GlobalGenerator
from spade_deploy.networks.sims import SemiParametricGenerator
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.spec import Architecture, GeneratorSpec

Generator = SpadeGenerator | GlobalGenerator | CascadedRefinementNetwork | SemiParametricGenerator
"""segmap N x L x H x W (and SPADE's style vector) -> image N x 3 x H x W in [-1, 1].

Each has its `spec` as an attribute. Its last convolution is `conv_img`; the image is the tanh of that one's output.
"""

Encoder = StyleEncoder | InstanceEncoder
"""What sees a photo: for SPADE's style vector, or for the instance features of pix2pixHD."""

NETWORKS: Mapping[Architecture, Callable[[GeneratorSpec], Generator]] = MappingProxyType(
    {
        Architecture.SPADE: SpadeGenerator,
        Architecture.PIX2PIXHD: GlobalGenerator,
        Architecture.CRN: CascadedRefinementNetwork,
        Architecture.SIMS: SemiParametricGenerator,
        Architecture.CLADE: CladeGenerator,
        Architecture.OASIS: OasisGenerator,
    }
)
"""The network of each architecture."""


def build_generator(spec: GeneratorSpec) -> Generator:
    """The network of a spec with PyTorch's initial weights, in train mode."""
    return NETWORKS[spec.architecture](spec)


def build_encoder(spec: GeneratorSpec, tensors: Mapping[str, Tensor]) -> Encoder:
    """The encoder of a generator that has a style vector or instance features, with PyTorch's initial weights.

    tensors: its state dict, which tells the widths of an encoder of instance features. Raises KeyError where they have
    no such encoder.
    """
    if spec.has_features:
        return instance_encoder_like(spec, tensors)
    assert spec.z_dim is not None
    return StyleEncoder(spec.z_dim, spec.base_channels)


def count_parameters(module: nn.Module) -> int:
    """How many trained numbers a network has: its weights and biases, no statistics."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_of(spec: GeneratorSpec) -> int:
    """`count_parameters` of a generator, from shapes alone: no weights are drawn, no memory is taken."""
    with torch.device("meta"):
        return count_parameters(build_generator(spec))
