"""Generators whose values pass 65504 though they make the same images as before: what real half precision breaks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spade_deploy.networks.spade import make_segmap
from tests.support.generators import build_generator, random_inputs

FAR = 2e5
"""Three times what half precision holds."""


def small_generator() -> Any:
    """Base 4, without spectral norm: its weights may be scaled."""
    return build_generator(base_channels=4, hidden_channels=8, spectral_norm=False)


def with_a_large_output(block: str = "up_3", reach: float = FAR) -> Any:
    """The last block puts out up to `reach`, and conv_img divides by as much: the same image.

    Leaky relu stands in between, and a factor passes through it.
    """
    generator = small_generator()
    factor = reach / _largest_output(generator, block)
    with torch.no_grad():
        _scale_output(generator.get_submodule(block), factor)
        generator.conv_img.weight /= factor
    return generator


def with_a_large_stream(reach: float = FAR) -> Any:
    """All features between the blocks are scaled, which each block's batch norm and conv_img take back."""
    generator = small_generator()
    factor = reach / _largest_output(generator, "up_3")
    with torch.no_grad():
        for name in ("fc",):
            _scale(generator.get_submodule(name), factor)
        for block in generator.spec.blocks:
            part = generator.get_submodule(block.name)
            _scale_output(part, factor)
            for layer in (part.norm_0, *([part.norm_s] if block.has_shortcut else [])):
                norm = next(each for each in layer.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean *= factor
                norm.running_var *= factor**2
        generator.conv_img.weight /= factor
    return generator


def _largest_output(generator: Any, block: str) -> float:
    seen: list[float] = []
    hook = generator.get_submodule(block).register_forward_hook(lambda *args: seen.append(float(args[-1].abs().max())))
    torch.manual_seed(0)
    label, instance, z = random_inputs(generator.spec, 1)
    with torch.no_grad():
        generator(make_segmap(label, instance, generator.spec.labels), z)
    hook.remove()
    return seen[0]


def _scale_output(block: Any, factor: float) -> None:
    _scale(block.conv_1, factor)
    if block.has_shortcut:
        _scale(block.conv_s, factor)


def _scale(layer: Any, factor: float) -> None:
    layer.weight *= factor
    if layer.bias is not None:
        layer.bias *= factor
