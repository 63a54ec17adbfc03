"""The synthesis network of SIMS (Qi et al., "Semi-Parametric Image Synthesis", CVPR 2018), a baseline of SPADE's paper.

Segments of training photos are pasted on a canvas (`retrieval/canvas.py`). An encoder sees the canvas, its holes and
the segmap at all resolutions, and a cascade of refinement modules, as in CRN, makes the image of its features and the
segmap. Ours ends in tanh where the published one is linear, so that every architecture keeps the same contract.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.crn import RefinementModule, doubled, layer_norm, module_widths, pyramid
from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.canvas import CANVAS_CHANNELS, make_canvases
from spade_deploy.spec import SIMS_WIDTHS, GeneratorSpec


class EncoderLayer(nn.Module):
    """3x3 convolution, layer norm, leaky relu; with stride 2 at half the size of its input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = layer_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), LEAKY_SLOPE)


class SemiParametricGenerator(nn.Module):
    """segmap and canvas -> image. Section 5 of the paper.

    bank: what canvases are made of. It is no weight: a checkpoint has it in a file of its own, and whoever builds the
    network sets it. Without a bank all of a canvas is a hole.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.bank: MemoryBank | None = None
        channels = spec.labels.num_channels
        width = channels + CANVAS_CHANNELS
        for index, (name, out) in enumerate(encoder_widths(spec).items()):
            self.add_module(name, EncoderLayer(width, out, 1 if index == 0 else 2))
            width = out
        seen, width = list(encoder_widths(spec).values()), 0
        for name, out in module_widths(spec).items():
            self.add_module(name, RefinementModule(width + channels + seen.pop(), out))
            width = out
        self.conv_img = nn.Conv2d(width, 3, 1)

    def forward(self, segmap: Tensor, z: Tensor | None = None, canvas: Tensor | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W multiples of the stride. z: None. Returns N x 3 x H x W in [-1, 1].

        canvas: N x CANVAS_CHANNELS x H x W; None makes that of the bank, on the CPU, as a deployment does.
        """
        if z is not None:
            raise ValueError("the generator of SIMS takes no style vector")
        if canvas is None:
            canvas = self._canvas(segmap)
        x = torch.cat([segmap, canvas.to(segmap)], dim=1)
        encoded = []
        for name in encoder_widths(self.spec):
            x = self.get_submodule(name)(x)
            encoded.append(x)
        seen = pyramid(segmap, self.spec.doublings)
        first, *others = module_widths(self.spec)
        x = self.get_submodule(first)(torch.cat([seen.pop(), encoded.pop()], dim=1))
        for name in others:
            x = self.get_submodule(name)(torch.cat([doubled(x), seen.pop(), encoded.pop()], dim=1))
        return torch.tanh(self.conv_img(x))

    def _canvas(self, segmap: Tensor) -> Tensor:
        count, _, height, width = segmap.shape
        if self.bank is None:
            canvas = torch.zeros(count, CANVAS_CHANNELS, height, width, device=segmap.device)
            canvas[:, -1] = 1
            return canvas
        labels = self.spec.labels
        label = segmap[:, : labels.num_ids].argmax(dim=1).cpu().numpy()
        return torch.from_numpy(make_canvases(self.bank, label, labels.unknown_id)).to(segmap.device)


def encoder_widths(spec: GeneratorSpec) -> dict[str, int]:
    """The encoder's layers in the order they run, each with the number of feature maps that it puts out."""
    widths = SIMS_WIDTHS[: spec.doublings + 1]
    return {f"encode_{index}": spec.base_channels * width for index, width in enumerate(widths)}


def bank_of_generator(generator: nn.Module) -> MemoryBank | None:
    """The memory bank of a generator; None for one that has none."""
    return generator.bank if isinstance(generator, SemiParametricGenerator) else None


def give_bank(generator: nn.Module, bank: MemoryBank | None) -> None:
    """Let a generator make its canvases of a bank; nothing for one that needs none."""
    if isinstance(generator, SemiParametricGenerator):
        generator.bank = bank
