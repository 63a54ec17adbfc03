"""Begin a student with its teacher's most important channels.

A narrower generator of the same depth has the teacher's tensors with fewer channels. Channels that are added to each
other, such as those of a residual block's input and output, are kept or left out together: they are one group.

The importance of a channel is the sum of the absolute values of the weights that read it (Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017, take this norm of a filter): what hardly anything reads is left out first. The
weights are those after spectral norm. Features are normalised before a convolution reads them, so that these weights
can be compared. The hidden channels of SPADE are not normalised: the sum is multiplied with the mean activation of the
channel inside regions of each class.

A student with all of the teacher's widths gets the teacher's tensors unchanged, and makes the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.clade import Clade
from spade_deploy.networks.spade import ModulatedBlock, Spade
from spade_deploy.spec import GeneratorSpec

Chosen = Mapping[str, Tensor]
"""The channels of each group that are kept, in the order in which the student has them."""

POWER_ITERATIONS = 20
"""How often spectral norm's vectors are improved for a weight of fewer channels."""


@dataclass(frozen=True)
class Axis:
    """What the entries of a tensor's dimension belong to."""

    group: str
    """The group of channels."""

    repeats: int = 1
    """How many neighbouring entries belong to each channel."""

    appended: int = 0
    """How many channels at the end belong to no group, and are always kept."""

    def entries(self, chosen: Chosen, size: int) -> Tensor:
        """The entries of a dimension of `size` that are kept."""
        channels = chosen[self.group]
        own = size // self.repeats - self.appended
        channels = torch.cat([channels, torch.arange(own, own + self.appended)])
        return (channels[:, None] * self.repeats + torch.arange(self.repeats)).flatten()


Axes = Mapping[str, Mapping[int, Axis]]
"""For the name of a tensor, the dimensions that have fewer entries in a student."""


def can_be_pruned(spec: GeneratorSpec) -> bool:
    """Whether the channels of an architecture are known here: those with SPADE's residual blocks."""
    return bool(spec.blocks)


def choose_channels(teacher: Generator, spec: GeneratorSpec) -> Chosen:
    """The teacher's channels that a student of `spec` begins with, by group.

    Raises ValueError where the student is wider than its teacher.
    """
    return {group: channels.sort().values for group, channels in leading(channel_order(teacher), spec).items()}


def channel_order(teacher: Generator) -> Chosen:
    """All channels of the teacher by group, the most important ones first."""
    return {
        group: torch.argsort(importance, descending=True, stable=True)
        for group, importance in _importance(teacher).items()
    }


def leading(order: Chosen, spec: GeneratorSpec) -> Chosen:
    """The first channels of each group, as many as a student of `spec` has. Raises ValueError where it is wider."""
    widths = _group_widths(spec)
    for group, channels in order.items():
        if widths[group] > len(channels):
            raise ValueError(f"{group} has {len(channels)} channels, and the student asks for {widths[group]}")
    return {group: channels[: widths[group]] for group, channels in order.items()}


@torch.no_grad()
def pruned_student(teacher: Generator, spec: GeneratorSpec, chosen: Chosen | None = None) -> Generator:
    """A generator of `spec`, which is as deep as the teacher and no wider, with the teacher's chosen channels.

    The teacher is in eval mode and stays as it is; so is the result.
    """
    chosen = choose_channels(teacher, spec) if chosen is None else chosen
    axes, tensors = _axes(teacher), dict[str, Tensor]()
    for name, tensor in teacher.state_dict().items():
        kept = tensor
        for dim, axis in axes.get(name, {}).items():
            kept = kept.index_select(dim, axis.entries(chosen, tensor.shape[dim]).to(kept.device))
        tensors[name] = kept.clone()
    student = build_generator(spec)
    student.load_state_dict(tensors)
    for name, module in student.named_modules():
        if hasattr(module, "weight_u") and tensors[f"{name}.weight_orig"].shape != _shape_of(teacher, name):
            improve_vectors(module)
    return student.eval()


def _shape_of(teacher: Generator, name: str) -> torch.Size:
    return teacher.get_parameter(f"{name}.weight_orig").shape


def blocks_of(generator: Generator) -> dict[str, ModulatedBlock[Any]]:
    """The residual blocks of a generator by name, in the order in which they run; none without modulation."""
    found = {block.name: generator.get_submodule(block.name) for block in generator.spec.blocks}
    return {name: block for name, block in found.items() if isinstance(block, ModulatedBlock)}


def output_groups(spec: GeneratorSpec) -> dict[str, str]:
    """The group of each residual block's output."""
    return {name: out for name, _, _, out in _flow(spec)}


def _flow(spec: GeneratorSpec) -> Iterator[tuple[str, str, str, str]]:
    """Of each block its name, and the groups of its input, its middle and its output."""
    current = "latent"
    for block in spec.blocks:
        out = f"{block.name}.out" if block.has_shortcut else current
        yield block.name, current, f"{block.name}.middle", out
        current = out


def _group_widths(spec: GeneratorSpec) -> dict[str, int]:
    widths = {"latent": spec.latent_channels}
    for block, (name, _, middle, out) in zip(spec.blocks, _flow(spec), strict=True):
        widths[middle], widths[out] = block.middle_channels, block.out_channels
        for norm in ("norm_0", "norm_1", *(["norm_s"] if block.has_shortcut else [])):
            widths[f"{name}.{norm}.hidden"] = block.hidden_channels
    return widths


def _axes(generator: Generator) -> dict[str, dict[int, Axis]]:
    """The dimensions of the generator's tensors that are channels of a group."""
    spec = generator.spec
    found: dict[str, dict[int, Axis]] = {}
    if isinstance(generator.fc, nn.Linear):
        latent = Axis("latent", repeats=spec.latent_height * spec.latent_width)
    else:
        latent = Axis("latent")
    found |= {"fc.weight": {0: latent}, "fc.bias": {0: latent}}
    last = "latent"
    for (name, into, middle, out), block in zip(_flow(spec), blocks_of(generator).values(), strict=True):
        appended = _appended(block)
        for conv, reads, writes in (("conv_0", into, middle), ("conv_1", middle, out), ("conv_s", into, out)):
            if hasattr(block, conv):
                taps = getattr(block, conv).kernel_size[0] ** 2
                found |= _convolution_axes(f"{name}.{conv}", Axis(reads, 1, appended), Axis(writes), taps)
        for norm, channels in (("norm_0", into), ("norm_1", middle), ("norm_s", into)):
            if hasattr(block, norm):
                found |= _norm_axes(f"{name}.{norm}", getattr(block, norm), Axis(channels))
        last = out
    found["conv_img.weight"] = {1: Axis(last)}
    return found


def _convolution_axes(name: str, reads: Axis, writes: Axis, taps: int) -> dict[str, dict[int, Axis]]:
    """With spectral norm, u has an entry for each output channel, and v for each input channel and tap."""
    weight = {0: writes, 1: reads}
    return {
        f"{name}.weight": weight,
        f"{name}.weight_orig": weight,
        f"{name}.weight_u": {0: writes},
        f"{name}.weight_v": {0: Axis(reads.group, taps, reads.appended)},
        f"{name}.bias": {0: writes},
    }


def _norm_axes(name: str, norm: nn.Module, channels: Axis) -> dict[str, dict[int, Axis]]:
    found = {f"{name}.param_free_norm.running_{what}": {0: channels} for what in ("mean", "var")}
    if isinstance(norm, Clade):
        return found | {f"{name}.class_specified_affine.{what}": {1: channels} for what in ("weight", "bias")}
    hidden = Axis(f"{name}.hidden")
    found |= {f"{name}.mlp_shared.0.{what}": {0: hidden} for what in ("weight", "bias")}
    for head in ("mlp_gamma", "mlp_beta"):
        found |= {f"{name}.{head}.weight": {0: channels, 1: hidden}, f"{name}.{head}.bias": {0: channels}}
    return found


@torch.no_grad()
def _importance(generator: Generator) -> dict[str, Tensor]:
    """The importance of each group's channels."""
    spec = generator.spec
    scores: dict[str, Tensor] = {}
    last = "latent"
    for (name, into, middle, out), block in zip(_flow(spec), blocks_of(generator).values(), strict=True):
        appended = _appended(block)
        for conv, reads in (("conv_0", into), ("conv_1", middle), ("conv_s", into)):
            if hasattr(block, conv):
                reading = _reading(getattr(block, conv))
                _add(scores, reads, reading[: len(reading) - appended])
        for norm in ("norm_0", "norm_1", "norm_s"):
            module = getattr(block, norm, None)
            if isinstance(module, Spade):
                scores[f"{name}.{norm}.hidden"] = _hidden_importance(module)
        last = out
    _add(scores, last, _reading(generator.conv_img))
    return scores


def _add(scores: dict[str, Tensor], group: str, more: Tensor) -> None:
    scores[group] = scores[group] + more if group in scores else more


def _appended(block: ModulatedBlock[Any]) -> int:
    """How many channels the norms of a block append, which belong to no group: one in CLADE with an edge map."""
    return int(block.conv_0.in_channels - block.norm_0.param_free_norm.num_features)


def _reading(convolution: nn.Module) -> Tensor:
    """The sum of the absolute weights that read each input channel; the weights are those that eval mode uses."""
    weight = getattr(convolution, "weight_orig", None)
    if weight is None:
        weight = convolution.get_parameter("weight")
    else:
        rows = weight.flatten(1)
        weight = weight / torch.dot(convolution.get_buffer("weight_u"), rows @ convolution.get_buffer("weight_v"))
    return weight.abs().sum((0, 2, 3)).cpu()


def _hidden_importance(norm: Spade) -> Tensor:
    first = norm.mlp_shared[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    inside = functional.relu(first.weight.sum((2, 3)) + first.bias[:, None])  # hidden x input channels
    return (_reading(norm.mlp_gamma) + _reading(norm.mlp_beta)) * inside.mean(1).cpu()


@torch.no_grad()
def improve_vectors(module: nn.Module) -> None:
    """Fit spectral norm's u and v to a weight of which they are parts of the former vectors."""
    rows = module.get_parameter("weight_orig").flatten(1)
    u, v = module.get_buffer("weight_u"), module.get_buffer("weight_v")
    for _ in range(POWER_ITERATIONS):
        v.copy_(functional.normalize(rows.t() @ u, dim=0))
        u.copy_(functional.normalize(rows @ v, dim=0))
