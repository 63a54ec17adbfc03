"""Folds and half precision in PyTorch on the card, against the untouched module.

The reference is that of `gpu.reference`. Half precision is held to twice the error of PyTorch's own: the untouched
module, cast to half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial

import torch
from torch import Tensor

from gpu.records import Book, Row, error_text
from gpu.reference import Reference, Run
from gpu.setting import Setting
from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays
from spade_deploy.export.build import ExportedModel, build_model, model_inputs
from spade_deploy.export.precision import unit_ranges, units_to_keep
from spade_deploy.networks.spade import SpadeGenerator, make_segmap, to_pixels
from spade_deploy.spec import GraphKind, Precision

FP16_AT_MOST = 2.0
"""Times the mean error of PyTorch's own half precision."""


def run_numerics(setting: Setting, book: Book) -> None:
    """Every candidate's error; see the module."""
    reference = Reference.of(setting)
    book.note("rounding", vars(reference.rounding))
    book.note("reference", "untouched module, float32, on the CPU")
    book.note("rounding_against", f"the same weights in float64, on {setting.device}")
    eager_half: float | None = None
    for name, precision, make in candidates(setting):
        try:
            with exact_float32():
                figures, failures = reference.judge(make(), precision)
        except Exception as error:  # out of memory, no half-precision kernel: the others go on
            book.add(Row(name, failures=(error_text(error),)))
            continue
        if name == "fp16 untouched":
            # A yardstick: whether it is good enough is not asked.
            eager_half, failures = figures["mean_abs"], ()
        elif precision is Precision.FP16:
            failures += too_far_from_eager(figures["mean_abs"], eager_half)
        book.add(Row(name, figures=figures, failures=failures))
    with_tf32, _ = reference.judge(untouched(setting, torch.float32), Precision.FP32)
    book.add(Row("fp32 untouched, TF32 as PyTorch has it", figures=with_tf32))


def too_far_from_eager(mean_abs: float | None, eager: float | None) -> tuple[str, ...]:
    """A failure, in words, where half precision is over twice as wrong as PyTorch's own. eager None: it overflows."""
    if mean_abs is None:
        return ("its error is not finite",)
    if eager is None or mean_abs <= FP16_AT_MOST * eager:
        return ()
    return (
        f"mean error {mean_abs:.3g} is over {FP16_AT_MOST:g} times the {eager:.3g} of the untouched module in fp16",
    )


def candidates(setting: Setting) -> Iterator[tuple[str, Precision, Callable[[], Run]]]:
    """What is judged, each made when its turn comes; the untouched module in half precision before those held to it."""
    yield "fp32 untouched", Precision.FP32, partial(untouched, setting, torch.float32)
    yield "fp16 untouched", Precision.FP16, partial(untouched, setting, torch.float16)
    for kind in setting.kinds:
        for precision in (Precision.FP32, Precision.FP16):
            yield f"{precision} {kind}", precision, partial(deployed, setting, kind, precision)


def untouched(setting: Setting, dtype: torch.dtype) -> Run:
    """The trained module as it is, cast and on the device."""
    module = copy_of(setting, dtype)

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            image = module(segmap_of(setting, inputs, dtype)).float()
            return {IMAGE: image.cpu().numpy(), PIXELS: to_pixels(image).cpu().numpy()}

    return run


def deployed(setting: Setting, kind: GraphKind, precision: Precision) -> Run:
    """The module that is exported, run by PyTorch on the device."""
    model = make_model(setting, kind, precision)

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            pixels, image = model(*on_device(setting, model, inputs))
            return {IMAGE: image.cpu().numpy(), PIXELS: pixels.cpu().numpy()}

    return run


def copy_of(setting: Setting, dtype: torch.dtype) -> SpadeGenerator:
    """A copy of the untouched generator in another type, on the device."""
    module = SpadeGenerator(setting.spec)
    module.load_state_dict(setting.generator.state_dict())
    return module.to(device=setting.device, dtype=dtype).eval()


def make_model(setting: Setting, kind: GraphKind, precision: Precision) -> ExportedModel:
    """As the export makes it, on the device: in half precision, units whose values it cannot hold stay float32."""
    return deepcopy(_folded(setting, kind, precision)).to(setting.device)


@cache  # folding takes seconds, and each batch size and memory layout wants a model of its own
def _folded(setting: Setting, kind: GraphKind, precision: Precision) -> ExportedModel:
    kept: tuple[str, ...] = ()
    if precision is Precision.FP16:
        wide = build_model(setting.generator, kind)
        kept = units_to_keep(unit_ranges(wide, model_inputs(wide, setting.batch(1))))
    return build_model(setting.generator, kind, fp16=precision is Precision.FP16, keep_fp32=kept)


def on_device(setting: Setting, model: ExportedModel, inputs: Arrays) -> list[Tensor]:
    """A dense graph's inputs -> the model's, patterns found, on the device."""
    return [tensor.to(setting.device) for tensor in model_inputs(model, inputs)]


def segmap_of(setting: Setting, inputs: Arrays, dtype: torch.dtype) -> Tensor:
    """What the untouched module takes, made on the device."""
    label = torch.from_numpy(inputs[LABEL]).to(setting.device)
    instance = torch.from_numpy(inputs[INSTANCE]).to(setting.device) if INSTANCE in inputs else None
    return make_segmap(label, instance, setting.spec.labels).to(dtype)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TensorFloat-32, in which PyTorch convolves by default on cards that have it."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
