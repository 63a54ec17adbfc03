"""What int8 costs, layer by layer: the deploy model in PyTorch with fake quantisation, and which layers to spare.

Fake quantisation rounds weights and inputs to the int8 grid and computes in float32: what the int8 graph means
(`qdq.py`), without writing a graph for each layer. Layers are those of the dense graph, by the names of the trained
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
"""One image's inputs each, in the order that the model takes them."""

MIN_INT8_SHARE = 0.5
"""A graph is called int8 from this share of its multiply-adds on."""


@dataclass(frozen=True)
class Calibration:
    """What was seen while a model ran on the calibration maps, by module.

    ranges: the largest magnitude of each product's input. work: multiply-adds for one map, of the products and of what
    multiplies in float32 alone. images: the model's
    own images, N x 3 x H x W.
    """

    ranges: Mapping[str, float]
    work: Mapping[str, int]
    images: Images


@dataclass(frozen=True)
class LayerDamage:
    """One layer in int8 and all others in float32. mean_square: of the error of images in [-1, 1]."""

    layer: str
    mean_square: float
    work_share: float

    @property
    def grey_levels(self) -> float:
        """Root mean square error of a colour value, of 255."""
        return math.sqrt(self.mean_square) * 255 / 2

    @property
    def psnr_db(self) -> float | None:
        """None where there is no error at all."""
        return psnr_db(self.mean_square)


@dataclass(frozen=True)
class Choice:
    """The layers that stay float32, worst first; PSNR with none of them and with all of them kept."""

    kept: tuple[str, ...]
    plain_psnr_db: float
    psnr_db: float


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
    """Of as many images of N = 1 as `expected` holds; the largest possible one where they are not finite."""
    errors = [
        float(np.mean((found[0].astype(np.float64) - image) ** 2))
        for found, image in zip(images, expected, strict=True)
    ]
    mean = float(np.mean(errors))
    return mean if math.isfinite(mean) else IMAGE_RANGE**2


def choose_layers(
    ranking: Sequence[LayerDamage], psnr_without: Callable[[Collection[str]], float], target_db: float
) -> Choice:
    """How many of the worst layers must stay float32 for `target_db`: none where that is enough, else by bisection.

    psnr_without: the PSNR with all layers but these in int8. Raises ExportError where the target is out of reach with
    MIN_INT8_SHARE of the work in int8.
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
    # All shares together are less than 1 where some layers are float32 in any case.
    return int(np.sum(shares <= max(0.0, shares[-1] - MIN_INT8_SHARE) + 1e-12))


def out_of_reach(target_db: float, reached_db: float, kept: int, ranking: Sequence[LayerDamage]) -> ExportError:
    """The target is missed although as many layers as possible stay float32."""
    return ExportError(
        f"--min-psnr {target_db:g}: int8 reaches {reached_db:.1f} dB with {kept} of {len(ranking)} layers kept in"
        f" float32; with more of them, less than {MIN_INT8_SHARE:.0%} of the multiply-adds would be int8",
        hint=f"--min-psnr {math.floor(reached_db)} is within reach, or deploy --fp16 without --int8"
        if reached_db >= 1
        else "deploy --fp16 without --int8",
    )


def as_db(mean_square: float) -> float:
    """`compare.psnr_db`, infinite for no error at all."""
    found = psnr_db(mean_square)
    return math.inf if found is None else found


def _rounded(x: Tensor, scale: float) -> Tensor:
    # By division, as QuantizeLinear does; torch's own fake quantisation multiplies by 1 / scale.
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def _image(model: nn.Module, inputs: Sequence[Tensor]) -> Images:
    with torch.inference_mode():
        image: Images = model(*inputs)[1].numpy()
    return image
