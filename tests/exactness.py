"""What the tests of the two deployed models share: the variants, the trained module as reference, and its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spade_deploy.artifact import INSTANCE, LABEL, Z
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Upsampling
from spade_deploy.training.architectures import Generator, build_generator
from spade_deploy.training.networks import make_segmap

VARIANTS: dict[str, dict[str, Any]] = {
    "normal, dontcare and edges": {},
    "no edges, no dontcare, batch norm": {"labels": LabelSpec(5), "norm": NormType.BATCH},
    "more, wide": {"upsampling": Upsampling.MORE, "height": 64, "width": 128},
    "most, kernel 1": {"upsampling": Upsampling.MOST, "height": 128, "width": 128, "kernel_size": 1},
    "kernel 5, no spectral norm": {"kernel_size": 5, "spectral_norm": False},
    "instance norm": {"norm": NormType.INSTANCE},
    "style vector": {"z_dim": 16},
}


def reference(generator: Generator, label: Any, instance: Any, z: Any) -> torch.Tensor:
    """The image N x 3 x H x W of the trained module, in its own precision."""
    dtype = generator.conv_img.weight.dtype
    with torch.no_grad():
        segmap = make_segmap(label, instance, generator.spec.labels).to(dtype)
        image: torch.Tensor = generator(segmap, None if z is None else z.to(dtype))
    return image


def in_float64(generator: Generator) -> Generator:
    wide = build_generator(generator.spec).double()
    wide.load_state_dict(generator.state_dict())
    return wide.eval()


def named_inputs(spec: GeneratorSpec, label: Any, instance: Any, z: Any) -> dict[str, Any]:
    """The dense graph's inputs by name, as arrays."""
    found = {LABEL: label.numpy()}
    if spec.labels.has_edges:
        found[INSTANCE] = instance.numpy()
    if spec.z_dim is not None:
        found[Z] = z.numpy()
    return found


@dataclass(frozen=True)
class Errors:
    """Of an image, and of eager float32, against the float64 reference: how many times eager's error it has.

    max_ratio and mean_ratio have a floor of a unit in the last place: a saturated image has no error at all.
    """

    max_ratio: float
    mean_ratio: float


def errors(image: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> Errors:
    own, plain = (image.double() - exact).abs(), (eager.double() - exact).abs()
    return Errors(float(own.max() / (plain.max() + 5e-8)), float(own.mean() / (plain.mean() + 5e-9)))
