"""Measure the error of int8 layer by layer, with fake quantisation in PyTorch, and choose the layers that stay float32.

Fake quantisation rounds weights and inputs to the int8 grid and computes in float32. That is the arithmetic of the
int8 graph (`qdq.py`), without a graph for each layer. Layers are those of the dense graph, by the names of the trained
ones: `fc`, `level_4` (all hidden maps of a level), `up_0.norm_0.modulation`, `up_0.conv_1`, `conv_img`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spade_deploy.errors import ExportError
from spade_deploy.export.int8.qdq import activation_scale, quantize_weight
from spade_deploy.metrics.differences import psnr_db
from spade_deploy.metrics.tolerances import IMAGE_RANGE
from spade_deploy.progress import SILENT, Progress

Images = NDArray[np.float32]
Batches = Sequence[Sequence[Tensor]]
"""For each image its inputs, in the order in which the model takes them."""

MIN_INT8_SHARE = 0.5
"""The least share of its multiply-adds that must be int8 for a graph to be called int8."""


@dataclass(frozen=True)
class Calibration:
    """Measurements that were taken while a model ran on the calibration maps."""

    ranges: Mapping[str, float]
    """The largest magnitude of the input of each module that can be int8."""

    work: Mapping[str, int]
    """Multiply-adds of each module for one map, modules that can only compute in float32 included."""

    images: Images
    """The model's own images, N x 3 x H x W."""


@dataclass(frozen=True)
class LayerDamage:
    """The error of one layer in int8 while all other layers are float32."""

    layer: str
    """The layer's name."""

    mean_square: float
    """The mean square error of images in [-1, 1]."""

    work_share: float
    """The layer's share of all multiply-adds."""

    @property
    def grey_levels(self) -> float:
        """The root mean square error of a colour value, which goes up to 255."""
        return math.sqrt(self.mean_square) * 255 / 2

    @property
    def psnr_db(self) -> float | None:
        """The PSNR in dB; None if there is no error at all."""
        return psnr_db(self.mean_square)


@dataclass(frozen=True)
class Choice:
    """The layers that stay float32, and the quality that is reached with them."""

    kept: tuple[str, ...]
    """Their names, worst first."""

    plain_psnr_db: float
    """The PSNR with all layers in int8."""

    psnr_db: float
    """The PSNR with these layers in float32."""


def products(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every module that multiplies by a trained weight and can do so in int8: not the transposed convolutions."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def layer_of(module: str) -> str:
    """The layer of the dense graph that a module of a deploy or lookup model is part of."""
    block, _, part = module.partition(".")
    if part.startswith(("conv_s.gamma", "conv_s.beta")):  # the lookup model's shortcut holds its modulation
        return f"{block}.norm_s.modulation"
    for suffix in (".gamma.linear", ".beta.linear"):
        if module.endswith(suffix):
            return module.removesuffix(suffix) + ".modulation"
    return module.removesuffix(".0").removesuffix(".projection").removesuffix(".linear").removesuffix(".conv")


def calibrate(
    model: nn.Module, batches: Batches, progress: Progress = SILENT, what: str = "calibrating"
) -> Calibration:
    """Run `model` on each map and watch the inputs of its products. Raises ExportError where one is not finite.

    `what` is the name of this work for `progress`.
    """
    ranges: dict[str, float] = {}
    work: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Conv2d | nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
            largest = float(args[0].abs().max())
            ranges[name] = largest if largest != largest else max(ranges.get(name, 0.0), largest)
            work[name] = output.numel() // len(module.weight) * module.weight.numel()

        return hook

    def count(name: str) -> Any:
        def hook(module: nn.ConvTranspose2d, args: tuple[Tensor], output: Tensor) -> None:
            work[name] = args[0].numel() // module.in_channels * module.weight.numel()

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in products(model).items()]
    handles += [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.ConvTranspose2d)
    ]
    images = []
    try:
        for done, inputs in enumerate(batches):
            progress.count(what, done, len(batches))
            images.append(_image(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    progress.count(what, len(batches), len(batches))
    for name, largest in ranges.items():
        if not math.isfinite(largest):
            raise ExportError(
                f"int8: the input of {layer_of(name)} reaches {largest} on the calibration maps",
                hint="the checkpoint comes from a training run that diverged: take an earlier one",
            )
    return Calibration(ranges, work, np.concatenate(images))


@contextmanager
def fake_quantized(model: nn.Module, ranges: Mapping[str, float], layers: Collection[str]) -> Iterator[None]:
    """Inside the block the products of `layers` compute with the int8 graph's weights and inputs."""
    chosen = {name: module for name, module in products(model).items() if layer_of(name) in layers}
    trained = {name: module.weight.data for name, module in chosen.items()}
    handles = []
    try:
        for name, module in chosen.items():
            weight = quantize_weight(module.weight.data.numpy(), axis=0)
            module.weight.data = torch.from_numpy(weight.dequantized())
            scale = float(activation_scale(ranges[name]))
            handles.append(module.register_forward_pre_hook(lambda _, args, scale=scale: (_rounded(args[0], scale),)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, module in chosen.items():
            module.weight.data = trained[name]


def rank_layers(
    model: nn.Module,
    calibration: Calibration,
    batches: Batches,
    expected: Images,
    progress: Progress = SILENT,
) -> tuple[LayerDamage, ...]:
    """The damage of each layer alone, worst first. expected: the model's float32 images of `batches`."""
    what = "measuring each layer in int8"
    layers = list(dict.fromkeys(map(layer_of, calibration.ranges)))
    total = sum(calibration.work.values())
    found = []
    for done, layer in enumerate(layers):
        progress.count(what, done, len(layers))
        error = simulated_error(model, calibration.ranges, {layer}, batches, expected)
        work = sum(work for name, work in calibration.work.items() if layer_of(name) == layer)
        found.append(LayerDamage(layer, error, work / total))
    progress.count(what, len(layers), len(layers))
    return tuple(sorted(found, key=lambda entry: -entry.mean_square))


def simulated_error(
    model: nn.Module, ranges: Mapping[str, float], layers: Collection[str], batches: Batches, expected: Images
) -> float:
    """The mean square error of the images with `layers` in int8."""
    with fake_quantized(model, ranges, layers):
        return mean_square_error((_image(model, inputs) for inputs in batches), expected)


def mean_square_error(images: Iterator[Images], expected: Images) -> float:
    """The mean square error of images of N = 1 against `expected`; the largest possible one if it is not finite."""
    errors = [
        float(np.mean((found[0].astype(np.float64) - image) ** 2))
        for found, image in zip(images, expected, strict=True)
    ]
    mean = float(np.mean(errors))
    return mean if math.isfinite(mean) else IMAGE_RANGE**2


def choose_layers(
    ranking: Sequence[LayerDamage], psnr_without: Callable[[Collection[str]], float], target_db: float
) -> Choice:
    """Choose the fewest of the worst layers that must stay float32 to reach `target_db`, by bisection.

    psnr_without: measures the PSNR with all layers in int8 except the given ones. Raises ExportError if the target
    cannot be reached with MIN_INT8_SHARE of the work in int8.
    """
    names = [entry.layer for entry in ranking]
    measured = {0: psnr_without(())}
    high = most_kept(ranking)
    if measured[0] < target_db:
        measured[high] = psnr_without(names[:high])
        if measured[high] < target_db:
            raise out_of_reach(target_db, measured[high], high, ranking)
        low = 0
        while high - low > 1:  # `low` misses the target, `high` meets it
            middle = (low + high) // 2
            measured[middle] = psnr_without(names[:middle])
            low, high = (low, middle) if measured[middle] >= target_db else (middle, high)
    else:
        high = 0
    return Choice(tuple(names[:high]), measured[0], measured[high])


def most_kept(ranking: Sequence[LayerDamage]) -> int:
    """How many of the worst layers may stay float32 in a graph that is still called int8."""
    shares = np.cumsum([entry.work_share for entry in ranking])
    # The shares add up to less than 1 where some modules compute in float32 alone.
    return int(np.sum(shares <= max(0.0, shares[-1] - MIN_INT8_SHARE) + 1e-12))


def out_of_reach(target_db: float, reached_db: float, kept: int, ranking: Sequence[LayerDamage]) -> ExportError:
    """The error for a target that is missed although as many layers as possible stay float32."""
    return ExportError(
        f"`min_psnr_db` {target_db:g}: int8 reaches {reached_db:.1f} dB with {kept} of {len(ranking)} layers kept in"
        f" float32; with more of them, less than {MIN_INT8_SHARE:.0%} of the multiply-adds would be int8",
        hint=f"`min_psnr_db` {math.floor(reached_db)} is within reach, or deploy `fp16` without `int8`"
        if reached_db >= 1
        else "deploy `fp16` without `int8`",
    )


def as_db(mean_square: float) -> float:
    """The PSNR of a mean square error; infinite where there is no error at all."""
    found = psnr_db(mean_square)
    return math.inf if found is None else found


def _rounded(x: Tensor, scale: float) -> Tensor:
    # It divides, as QuantizeLinear does; torch's own fake quantisation multiplies by 1 / scale.
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def _image(model: nn.Module, inputs: Sequence[Tensor]) -> Images:
    with torch.inference_mode():
        image: Images = model(*inputs)[1].numpy()
    return image
