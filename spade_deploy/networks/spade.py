"""The SPADE generator as it is trained (Park et al., "Semantic Image Synthesis with Spatially-Adaptive
Normalization", CVPR 2019), with the layer names of the released checkpoints.

This module is the reference: everything that is exported is proved equal to it. Nothing here knows of export.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.modulation import LevelLookup, TrainingLookup, modulate
from spade_deploy.networks.spectral_norm import spectral_norm
from spade_deploy.networks.sync_batch_norm import SyncBatchNorm2d
from spade_deploy.spec import BlockSpec, GeneratorSpec, LabelSpec, NormType

NORM_EPS = 1e-5
LEAKY_SLOPE = 0.2

M = TypeVar("M", bound=nn.Module)


def make_segmap(label: Tensor, instance: Tensor | None, labels: LabelSpec) -> Tensor:
    """Label ids -> the network's input.

    label: N x H x W integers in 0..num_ids-1. instance: N x H x W integers, needed iff `labels.has_edges`.
    Returns N x num_channels x H x W float32: one-hot, then the edge map.
    """
    segmap = functional.one_hot(label.long(), labels.num_ids).permute(0, 3, 1, 2).float()
    if labels.has_edges:
        if instance is None:
            raise ValueError("a label spec with edges needs an instance map")
        segmap = torch.cat([segmap, edge_map(instance)], dim=1)
    return segmap


def edge_map(instance: Tensor) -> Tensor:
    """N x H x W object ids -> N x 1 x H x W float32: 1 where a 4-neighbour has another id; both sides are marked."""
    edges = torch.zeros_like(instance, dtype=torch.bool)
    differs = instance[:, :, 1:] != instance[:, :, :-1]
    edges[:, :, 1:] |= differs
    edges[:, :, :-1] |= differs
    differs = instance[:, 1:, :] != instance[:, :-1, :]
    edges[:, 1:, :] |= differs
    edges[:, :-1, :] |= differs
    return edges[:, None].float()


def to_pixels(image: Tensor) -> Tensor:
    """N x 3 x H x W in [-1, 1] -> uint8 N x H x W x 3. Truncated, not rounded, as the original does."""
    return ((image + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class Spade(nn.Module):
    """Spatially-adaptive normalisation: norm(x) * (1 + gamma(segmap)) + beta(segmap). Equation (1) of the paper."""

    def __init__(self, spec: GeneratorSpec, channels: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = hidden_channels or spec.hidden_channels
        padding = spec.kernel_size // 2
        self.param_free_norm = parameter_free_norm(spec.norm, channels)
        self.mlp_shared = nn.Sequential(
            nn.Conv2d(spec.modulation_channels, hidden_channels, spec.kernel_size, padding=padding),
            nn.ReLU(),
        )
        self.mlp_gamma = nn.Conv2d(hidden_channels, channels, spec.kernel_size, padding=padding)
        self.mlp_beta = nn.Conv2d(hidden_channels, channels, spec.kernel_size, padding=padding)

    def forward(self, x: Tensor, segmap: Tensor, level: LevelLookup | None = None) -> Tensor:
        """x: N x C x h x w; segmap: N x L x H x W of any size, picked at the nearest pixel.

        level: the segmap's distinct windows at h x w; with them gamma and beta are looked up (`modulation.py`).
        """
        normalized: Tensor = self.param_free_norm(x)
        if level is not None:
            shared = self.mlp_shared[0]
            assert isinstance(shared, nn.Conv2d)
            return modulate(normalized, shared, self.mlp_gamma, self.mlp_beta, level)
        hidden = self.mlp_shared(functional.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        modulated: Tensor = normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)
        return modulated


class ModulatedBlock(nn.Module, Generic[M]):
    """Residual block of modulated norms; the shortcut is learned where the number of channels changes.

    modulation: makes a norm of so many channels. appended: channels that a norm adds to those it is given.
    """

    norm_0: M
    norm_1: M
    norm_s: M
    conv_0: nn.Conv2d
    conv_1: nn.Conv2d
    conv_s: nn.Conv2d

    def __init__(
        self,
        spec: GeneratorSpec,
        in_channels: int,
        out_channels: int,
        modulation: Callable[[GeneratorSpec, int], M],
        appended: int = 0,
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        wrap: Callable[[nn.Conv2d], nn.Conv2d] = spectral_norm if spec.spectral_norm else _unchanged
        self.conv_0 = wrap(nn.Conv2d(in_channels + appended, middle, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(middle + appended, out_channels, 3, padding=1))
        self.norm_0 = modulation(spec, in_channels)
        self.norm_1 = modulation(spec, middle)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.conv_s = wrap(nn.Conv2d(in_channels + appended, out_channels, 1, bias=False))
            self.norm_s = modulation(spec, in_channels)

    def forward(self, x: Tensor, segmap: Tensor, level: LevelLookup | None = None) -> Tensor:
        # There is no activation on the shortcut.
        shortcut = self.conv_s(self.norm_s(x, segmap, level)) if self.has_shortcut else x
        y = self.conv_0(functional.leaky_relu(self.norm_0(x, segmap, level), LEAKY_SLOPE))
        y = self.conv_1(functional.leaky_relu(self.norm_1(y, segmap, level), LEAKY_SLOPE))
        result: Tensor = shortcut + y
        return result


class SpadeBlock(ModulatedBlock[Spade]):
    """Residual block of SPADE layers."""

    def __init__(self, spec: GeneratorSpec, block: BlockSpec) -> None:
        layer = partial(Spade, hidden_channels=block.hidden_channels)
        super().__init__(spec, block.in_channels, block.out_channels, layer)


class SpadeGenerator(nn.Module):
    """segmap (and style vector) -> image. Figure 4 of the paper."""

    block_type: ClassVar[Any] = SpadeBlock
    """Makes a residual block of a generator's spec and the block's own."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.latent_channels
        self.fc: nn.Module
        if spec.is_dynamic:
            self.fc = nn.Conv2d(spec.modulation_channels, channels, 3, padding=1)
        else:
            assert spec.z_dim is not None  # what is_dynamic says
            self.fc = nn.Linear(spec.z_dim, channels * spec.latent_height * spec.latent_width)
        for block in spec.blocks:
            attach(self, block.name, type(self).block_type(spec, block))
        self.conv_img = nn.Conv2d(spec.blocks[-1].out_channels, 3, 3, padding=1)

    def forward(self, segmap: Tensor, z: Tensor | None = None, lookup: TrainingLookup | None = None) -> Tensor:
        """segmap: N x L x H x W, H and W multiples of the spec's stride (and its own size with a VAE).

        z: N x z_dim, needed only by the VAE variant. lookup: the segmap's distinct windows; with them gamma and beta
        are looked up, and the result is the same. Returns N x 3 x H x W in [-1, 1].
        """
        spec = self.spec
        if spec.is_dynamic:
            latent = (segmap.shape[2] // spec.stride, segmap.shape[3] // spec.stride)
            # CLADE-ICPE's positions, at the end, are not for the first layer.
            first = segmap[:, : spec.modulation_channels] if spec.has_positions else segmap
            x = self.fc(functional.interpolate(first, size=latent, mode="nearest"))
        else:
            if z is None:
                raise ValueError("the VAE variant needs a style vector z")
            x = self.fc(z).view(-1, spec.latent_channels, spec.latent_height, spec.latent_width)
        for block in spec.blocks:
            if block.doubles:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            level = None if lookup is None else lookup.levels.get(block.stride)
            x = self.get_submodule(block.name)(x, segmap, level)
        return torch.tanh(self.conv_img(functional.leaky_relu(x, LEAKY_SLOPE)))


def attach(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Make `child` the sub-module of that name; one such as body.0 is put into a container, body."""
    container, _, own = name.rpartition(".")
    if container:
        if container not in dict(parent.named_children()):
            parent.add_module(container, nn.ModuleDict())
        parent = parent.get_submodule(container)
    parent.add_module(own, child)


def initialize(module: nn.Module, gain: float = 0.02) -> None:
    """Xavier-normal weights with the paper's gain, zero biases, in place."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight = child.weight_orig if hasattr(child, "weight_orig") else child.weight
            nn.init.xavier_normal_(weight, gain=gain)  # type: ignore[arg-type]
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def parameter_free_norm(norm: NormType, channels: int) -> nn.Module:
    """The normalisation of a type without learned scale and shift, N x C x H x W to the same."""
    if norm is NormType.BATCH:
        return nn.BatchNorm2d(channels, eps=NORM_EPS, affine=False)
    if norm is NormType.SYNC_BATCH:
        return SyncBatchNorm2d(channels, eps=NORM_EPS, affine=False)
    return nn.InstanceNorm2d(channels, eps=NORM_EPS, affine=False)


def _unchanged(module: M) -> M:
    return module
