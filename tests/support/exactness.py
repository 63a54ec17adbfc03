"""What may differ, and by how much: float32 limits that come from this machine, and the deployed models' variants.

A float32 result is a matter of the processor: another one adds in another order, or multiplies through Winograd's
transform, and is six times as far from the truth. So no limit of float32 is a constant here. `rounding_limit` computes
the reference in float32 in the ways that this machine has, and holds each against float64. In float64 a limit is a
constant: at least twenty times the worst that was measured, relative to the largest value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spade_deploy.artifact import INSTANCE, LABEL, Z
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Upsampling

VARIANTS: dict[str, dict[str, Any]] = {
    "normal, dontcare and edges": {},
    "no edges, no dontcare, batch norm": {"labels": LabelSpec(5), "norm": NormType.BATCH},
    "more, wide": {"upsampling": Upsampling.MORE, "height": 64, "width": 128},
    "most, kernel 1": {"upsampling": Upsampling.MOST, "height": 128, "width": 128, "kernel_size": 1},
    "kernel 5, no spectral norm": {"kernel_size": 5, "spectral_norm": False},
    "instance norm": {"norm": NormType.INSTANCE},
    "style vector": {"z_dim": 16},
    "own widths": {"level_channels": (120, 50, 30, 9, 5), "level_hidden": (12, 7, 5, 3, 1)},
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


TIMES = 4.0
"""How many times the machine's own float32 error a float32 result may have: both are the largest of many roundings."""
FLOAT32_EPS = torch.finfo(torch.float32).eps


def in_each_way(compute: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """compute(x) as this machine may come to it: in a larger batch, channels last, and without oneDNN.

    x: N x C x H x W, or any tensor whose first axis is the batch.
    """
    with torch.no_grad():
        found = [compute(x), compute(torch.cat([x, x]))[: len(x)]]
        if x.ndim == 4:
            found.append(compute(x.contiguous(memory_format=torch.channels_last)))
        # Putting the flags back sets one that is for Intel's GPUs, which a build without them warns of.
        with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
            found.append(compute(x))
    return found


def rounding_limit(compute: Callable[[Tensor], Tensor], x: Tensor, exact: Tensor, times: float = TIMES) -> float:
    """How far a float32 result may be from `exact`, what `compute(x)` is in float64.

    compute: the reference in float32. A few units in the last place are allowed in any case: a machine may be exact.
    """
    exact = exact.detach()
    largest = float(exact.abs().max())
    own = max(float((one.double() - exact).abs().max()) for one in in_each_way(compute, x))
    limit = times * own + 4 * FLOAT32_EPS * largest
    assert limit < 1e-3 * largest, f"this machine's float32 is off by {own / largest:.1e}: no float32 is"
    return limit
