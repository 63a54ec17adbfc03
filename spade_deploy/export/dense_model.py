"""What the dense graphs of all architectures share: label ids in, one-hot and edge map inside, pixels out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from spade_deploy.export.exact_norm import standardized
from spade_deploy.networks.spade import NORM_EPS
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.spec import GeneratorSpec

M = TypeVar("M", bound=nn.Module)


class DenseModel(nn.Module):
    """label ids (and instance ids, and style) -> (pixels, image).

    label: N x H x W uint8 or int32. instance: N x H x W int32, iff the spec has edges. position: N x 2 x H x W float32,
    iff the spec has positions. canvas: N x 4 x H x W float32, iff the spec has a memory bank. features: N x 3 x H x W
    float32, iff the spec has instance features. z: N x z_dim float32, iff the spec has a style vector.
    pixels: N x H x W x 3 uint8, truncated. image: N x 3 x H x W float32 in [-1, 1].
    fp16: units that are not named in `keep_fp32` hold and compute half precision; inputs and outputs stay as they are,
    and tanh, the conversion to pixels, and the statistics of instance and layer norm stay float32.
    dtype: the type of all other units.
    """

    ids: Tensor
    bank: MemoryBank | None = None
    """What the canvas is made of, before the graph runs; None for a network that has no canvas."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("ids", torch.arange(spec.labels.num_ids, dtype=torch.float32).view(1, -1, 1, 1), False)

    def set_types(self, units: Iterable[str], *, fp16: bool, keep_fp32: Collection[str], dtype: torch.dtype) -> None:
        """Round the folded weights, which are float64, once, each unit to its type; then go to eval mode."""
        for name in units:
            half = fp16 and name not in keep_fp32
            self.get_submodule(name).to(torch.float16 if half else dtype)
        self.eval()

    def forward(self, label: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        extra = list(rest)
        instance = extra.pop(0) if self.spec.labels.has_edges else None
        sees_more = self.spec.has_positions or self.spec.has_bank or self.spec.has_features
        beside = extra.pop(0) if sees_more else None
        z = extra.pop(0) if self.spec.z_dim is not None else None
        edges = None if instance is None else edge_map(instance)
        if beside is not None:
            edges = beside if edges is None else torch.cat([edges, beside], dim=1)
        return to_outputs(self.logits(label, edges, z))

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        """The image before tanh, N x 3 x H x W. label: N x H x W; edges: N x 1 x H x W.

        For a model that sees positions, `edges` also has their two channels, as the last ones; so it is with a canvas
        and with instance features.
        """
        raise NotImplementedError

    def segmap(self, stride: int, label: Tensor, edges: Tensor | None) -> Tensor:
        """Every stride-th pixel of the network's input, N x L x H/stride x W/stride float32."""
        segmap = (label.float()[:, None, ::stride, ::stride] == self.ids).float()
        return segmap if edges is None else torch.cat([segmap, edges[:, :, ::stride, ::stride]], dim=1)


def to_outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The last convolution's N x 3 x H x W -> (pixels, image), as `DenseModel` returns them."""
    image = torch.tanh(logits if logits.dtype is torch.float64 else logits.float())
    # A cast to uint8 would truncate, too, but runtimes differ in how they round a cast: floor is written out.
    # The cast comes last, since TensorRT knows uint8 as a network's input and output, and not in between.
    pixels = ((image + 1) / 2 * 255).clamp(0, 255).floor().permute(0, 2, 3, 1)
    return pixels.to(torch.uint8), image


def edge_map(instance: Tensor) -> Tensor:
    """N x H x W int32 -> N x 1 x H x W float32: 1 where a 4-neighbour has another id.

    `networks.spade.edge_map` computes the same with writes in place, which a graph cannot have.
    """
    across = (instance[:, :, 1:] != instance[:, :, :-1]).float()
    down = (instance[:, 1:, :] != instance[:, :-1, :]).float()
    sides = [
        functional.pad(across, (1, 0)),
        functional.pad(across, (0, 1)),
        functional.pad(down, (0, 0, 1, 0)),
        functional.pad(down, (0, 0, 0, 1)),
    ]
    return torch.maximum(torch.maximum(sides[0], sides[1]), torch.maximum(sides[2], sides[3]))[:, None]


def instance_norm(x: Tensor) -> Tensor:
    """Each channel of each sample, N x C x H x W, with mean 0 and variance 1, in the type of x."""
    return standardized(x, (2, 3), NORM_EPS)


def unfilled(kind: Callable[..., M], *given: Any, **settings: Any) -> M:
    """A layer whose weights the caller writes. PyTorch would fill them with random numbers, which takes longer."""
    layer: M = skip_init(kind, *given, **settings)  # type: ignore[no-untyped-call]
    return layer


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type of a module's weights."""
    return next(module.parameters()).dtype
