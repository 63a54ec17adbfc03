"""How fast a card could be at best: the work of the products alone, and what this very card reaches on a large one.

Counted are convolutions and matrix products. A multiply-add is two operations. The bytes are those that an execution
layer by layer cannot avoid: every product reads its weights and its input once and writes its output once. Fused
kernels can move less, and everything else that a network does comes on top, so the floor is a yardstick and no proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu.records import Book, Row
from gpu.setting import Setting
from gpu.timing import Timer, device_timer
from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.lookup.tables import extract_patterns
from spade_deploy.spec import GeneratorSpec

BYTES = {"fp32": 4, "fp16": 2}
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product. weights, values: numbers, not bytes; values are read and written."""

    name: str
    multiply_adds: int
    weights: int
    values: int


@dataclass(frozen=True)
class Floor:
    """by_layer_ms: each product alone at its own limit, one after another; floor_ms: all of them at the larger one."""

    flop: int
    bytes: int
    compute_ms: float
    memory_ms: float
    by_layer_ms: float

    @property
    def floor_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)


def dense_products(spec: GeneratorSpec, height: int, width: int, batch: int = 1) -> tuple[Product, ...]:
    """Of the dense graph, whose hidden maps of one resolution are one convolution."""
    return (
        _first(spec, height, width, batch),
        *_hidden(spec, height, width, batch),
        *_blocks(spec, height, width, batch),
    )


def lookup_products(
    spec: GeneratorSpec, height: int, width: int, batch: int, patterns: Mapping[int, int]
) -> tuple[Product, ...]:
    """Of the lookup graph. patterns: distinct larger windows of the whole batch at every stride.

    Tables of codes are summed, not multiplied; gathering is no product either.
    """
    found = [] if spec.z_dim is None else [_first(spec, height, width, batch)]
    window = spec.kernel_size**2 * spec.hidden_channels
    for block in spec.blocks:
        rows = patterns[block.stride]
        outputs = {"norm_0": 2 * block.in_channels, "norm_1": 2 * block.middle_channels}
        if block.has_shortcut:
            outputs["shortcut"] = block.in_channels + block.out_channels
        found += [_product(f"{block.name}.{name}", rows, window, out) for name, out in outputs.items()]
    return (*found, *(product for product in _blocks(spec, height, width, batch) if "norm" not in product.name))


def floor_of(products: Sequence[Product], value_bytes: int, flop_per_s: float, bytes_per_s: float) -> Floor:
    """The floor of work in one type on a card of these peaks."""
    flop = [2 * product.multiply_adds for product in products]
    moved = [value_bytes * (product.weights + product.values) for product in products]
    alone = [max(work / flop_per_s, size / bytes_per_s) for work, size in zip(flop, moved, strict=True)]
    return Floor(
        flop=sum(flop),
        bytes=sum(moved),
        compute_ms=sum(flop) / flop_per_s * 1000,
        memory_ms=sum(moved) / bytes_per_s * 1000,
        by_layer_ms=sum(alone) * 1000,
    )


def run_roofline(setting: Setting, book: Book) -> None:
    """The card's peaks, then the floor of every graph and batch size."""
    import torch

    timer = device_timer(torch, setting.device)
    peaks = measure_peaks(torch, setting.device, timer, side=1024 if setting.quick else 8192)
    book.note("peaks", peaks)
    spec = setting.spec
    for batch in setting.batches:
        inputs = setting.batch(batch)
        tables = extract_patterns(spec, inputs[LABEL], inputs.get(INSTANCE))
        assert tables is not None  # no share was set at which it gives up
        patterns = {stride: len(level.patterns) for stride, level in tables.levels.items()}
        size = (spec.height, spec.width, batch)
        kinds = {"dense": dense_products(spec, *size), "lookup": lookup_products(spec, *size, patterns)}
        for precision, value_bytes in BYTES.items():
            for kind, products in kinds.items():
                found = floor_of(products, value_bytes, peaks[f"{precision}_flop_per_s"], peaks["bytes_per_s"])
                figures = {**vars(found), "floor_ms": found.floor_ms}
                book.add(Row(f"{precision} {kind}", batch, figures))


def measure_peaks(torch: Any, device: str, timer: Timer, side: int, repeats: int = 20) -> dict[str, float]:
    """What the card reaches: the best of all tries of two square matrices' product, and of copying 8 side^2 bytes."""
    peaks = {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            best = min(timer(partial(torch.matmul, a, b)) for _ in range(repeats))
            peaks[f"{name}_flop_per_s"] = 2 * side**3 / best * 1000
        # A card may compress what is all the same in its memory: zeros would be copied faster than anything real.
        source = torch.randint(256, (8 * side**2,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        best = min(timer(partial(target.copy_, source)) for _ in range(repeats))
        peaks["bytes_per_s"] = 2 * source.numel() / best * 1000
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return peaks


def _first(spec: GeneratorSpec, height: int, width: int, batch: int) -> Product:
    channels = 16 * spec.base_channels
    if spec.z_dim is not None:
        return _product("fc", batch, spec.z_dim, channels * spec.latent_height * spec.latent_width)
    pixels = batch * (height // spec.stride) * (width // spec.stride)
    return _conv("fc", pixels, spec.labels.num_channels, channels, 3)


def _hidden(spec: GeneratorSpec, height: int, width: int, batch: int) -> Iterator[Product]:
    layers: dict[int, int] = {}
    for block in spec.blocks:
        layers[block.stride] = layers.get(block.stride, 0) + (3 if block.has_shortcut else 2)
    for stride, count in layers.items():
        pixels = batch * (height // stride) * (width // stride)
        out = count * spec.hidden_channels
        yield _conv(f"level_{stride}", pixels, spec.labels.num_channels, out, spec.kernel_size)


def _blocks(spec: GeneratorSpec, height: int, width: int, batch: int) -> Iterator[Product]:
    hidden, side = spec.hidden_channels, spec.kernel_size
    for block in spec.blocks:
        pixels = batch * (height // block.stride) * (width // block.stride)
        into, middle, out = block.in_channels, block.middle_channels, block.out_channels
        yield _conv(f"{block.name}.norm_0", pixels, hidden, 2 * into, side)
        yield _conv(f"{block.name}.conv_0", pixels, into, middle, 3)
        yield _conv(f"{block.name}.norm_1", pixels, hidden, 2 * middle, side)
        yield _conv(f"{block.name}.conv_1", pixels, middle, out, 3)
        if block.has_shortcut:
            yield _conv(f"{block.name}.norm_s", pixels, hidden, 2 * into, side)
            yield _conv(f"{block.name}.conv_s", pixels, into, out, 1)
    yield _conv("conv_img", batch * height * width, spec.blocks[-1].out_channels, IMAGE_CHANNELS, 3)


def _conv(name: str, pixels: int, into: int, out: int, side: int) -> Product:
    weights = into * out * side**2
    return Product(name, pixels * weights, weights, pixels * (into + out))


def _product(name: str, rows: int, into: int, out: int) -> Product:
    return Product(name, rows * into * out, into * out, rows * (into + out))
