"""Which module a spec asks for: SPADE, or a baseline of its paper behind the same trainer, exporter and validator."""

from __future__ import annotations

from spade_deploy.networks.crn import CascadedRefinementNetwork
from spade_deploy.networks.pix2pixhd import GlobalGenerator
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.spec import Architecture, GeneratorSpec

Generator = SpadeGenerator | GlobalGenerator | CascadedRefinementNetwork
"""segmap N x L x H x W (and SPADE's style vector) -> image N x 3 x H x W in [-1, 1].

Each has its `spec`, and its last convolution is `conv_img`, whose output the image is the tanh of.
"""


def build_generator(spec: GeneratorSpec) -> Generator:
    """The network of a spec with PyTorch's initial weights, in train mode."""
    match spec.architecture:
        case Architecture.SPADE:
            return SpadeGenerator(spec)
        case Architecture.PIX2PIXHD:
            return GlobalGenerator(spec)
        case Architecture.CRN:
            return CascadedRefinementNetwork(spec)
