"""From label maps to the inputs of the lookup graph: the distinct windows of labels, and the window of each pixel.

At a resolution, gamma and beta of a pixel depend on a (2k - 1) x (2k - 1) window of pixel codes: k x k hidden
activations around it, each of which depends on k x k codes. A label map has far fewer distinct windows than pixels.
So each level (all blocks of one stride) has three tables: distinct k x k windows (`codes`), distinct larger windows
written as k*k rows of `codes` (`patterns`), and a row of `patterns` for every pixel (`index`).
`lookup/windows.py` finds the windows; here the tables of a generator are made of them, counted and checked.

A table holds for all maps of a batch, but in OASIS, whose hidden rows depend on the noise of an image: there the maps
of a batch share no window, and a code in a table says of which image it is (`lookup/apart.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import (
    CANVAS,
    FEATURES,
    INSTANCE,
    LABEL,
    POSITION,
    Arrays,
    TensorInfo,
    Z,
    graph_tensors,
    mismatch,
    style_meaning,
)
from spade_deploy.errors import InputRefusedError
from spade_deploy.lookup.apart import apart, codes_per_image, for_graph, latent_for_graph
from spade_deploy.lookup.regions import region_positions
from spade_deploy.lookup.windows import Ints, LevelPatterns, WindowGrid
from spade_deploy.retrieval.bank import MemoryBank
from spade_deploy.retrieval.canvas import make_canvases
from spade_deploy.spec import GeneratorSpec, GraphKind

LATENT = "latent"
LATENT_KERNEL = 3
"""`fc` is a 3 x 3 convolution, whatever the kernel inside SPADE."""

_EXTRACT_HINT = "extract_patterns makes the tables from a label map, for the generator spec of the graph"


@dataclass(frozen=True)
class PatternTables:
    """The lookup graph's inputs, which stand for a batch of label maps."""

    levels: Mapping[int, LevelPatterns]
    """The patterns of each level by its stride, from coarse to fine."""
    latent: Ints | None
    """The codes around each pixel of the latent map, N x h x w x 9; None for a model with a style vector."""
    position: NDArray[np.float32] | None = None
    """The position of each pixel in its region, N x 2 x H x W, for a model that sees it."""

    def to_inputs(self, style: NDArray[Any] | None = None) -> Arrays:
        """The graph's tensors by name, in the order of `lookup_tensors`; style: the z of a VAE."""
        inputs: Arrays = {} if self.latent is None else {LATENT: self.latent}
        for stride, level in self.levels.items():
            tensors = (level.codes, level.patterns, level.index)
            inputs.update(zip(level_names(stride), tensors, strict=True))
        if self.position is not None:
            inputs[POSITION] = self.position
        return inputs if style is None else {**inputs, Z: style}

    def unique_share(self, spec: GeneratorSpec) -> float:
        """The share of the dense graph's work on gamma and beta that is left: patterns over pixels, by channels."""
        return _share(spec, {stride: len(level.patterns) for stride, level in self.levels.items()}, self._pixels())

    def _pixels(self) -> dict[int, int]:
        return {stride: level.index.size for stride, level in self.levels.items()}


def num_codes(spec: GeneratorSpec) -> int:
    """Pixel codes are 0..num_codes-1; `num_codes` itself means outside the image."""
    return spec.labels.num_ids * (2 if spec.labels.has_edges else 1)


def modulated_channels(spec: GeneratorSpec) -> dict[int, int]:
    """Channels of all modulations of a level, by stride from coarse to fine."""
    channels: dict[int, int] = {}
    for block in spec.blocks:
        here = block.in_channels * (2 if block.has_shortcut else 1) + block.middle_channels
        channels[block.stride] = channels.get(block.stride, 0) + here
    return channels


def level_names(stride: int) -> tuple[str, str, str]:
    """The names of a level's three tensors."""
    return f"codes_{stride}", f"patterns_{stride}", f"index_{stride}"


def pixel_codes(spec: GeneratorSpec, label: NDArray[Any], instance: NDArray[Any] | None = None) -> Ints:
    """Label and instance maps N x H x W -> codes N x H x W: the id, or 2 * id + edge where the spec has edges.

    A pixel is an edge where a 4-neighbour has another instance id, at full resolution; smaller maps pick pixels of
    the result. instance: needed iff the spec has edges. Raises InputRefusedError for ids that the spec does not know.
    """
    _check_maps(spec, label, instance)
    if not spec.labels.has_edges or instance is None:
        return label.astype(np.int32)
    codes = label.astype(np.int32) * 2
    edges = np.zeros(instance.shape, np.bool_)
    differs = instance[:, :, 1:] != instance[:, :, :-1]
    edges[:, :, 1:] = differs
    edges[:, :, :-1] |= differs
    differs = instance[:, 1:] != instance[:, :-1]
    edges[:, 1:] |= differs
    edges[:, :-1] |= differs
    codes += edges
    return codes


def extract_patterns(
    spec: GeneratorSpec,
    label: NDArray[Any],
    instance: NDArray[Any] | None = None,
    *,
    max_share: float | None = None,
) -> PatternTables | None:
    """Label and instance maps N x H x W -> pattern tables, shared by the maps of the batch.

    max_share: returns None as soon as it is certain that `unique_share` exceeds this; without it, never.
    Raises InputRefusedError for sizes that are no multiple of the spec's stride and ids that the spec does not know.
    """
    if GraphKind.LOOKUP not in spec.graph_kinds:
        raise InputRefusedError(f"a {spec.architecture} generator has no pattern tables: nothing in it is looked up")
    codes = pixel_codes(spec, label, instance)
    _check_size(spec, codes.shape)
    own = num_codes(spec)
    names, dense = _renumber(*(apart(codes, own) if spec.noise_channels else (codes, own)))
    grids = {s: WindowGrid(dense[:, ::s, ::s], names, spec.window_kernel) for s in modulated_channels(spec)}
    pixels = {stride: grid.num_pixels for stride, grid in grids.items()}
    # A lower bound of the number of patterns at each level: one at first, and exact once a level is done.
    known = dict.fromkeys(grids, 1)
    if max_share is not None and _share(spec, {s: grid.at_most() for s, grid in grids.items()}, pixels) > max_share:
        for stride, grid in reversed(grids.items()):  # the finest level decides most often
            known[stride] = grid.at_least()
            if _share(spec, known, pixels) > max_share:
                return None
    levels = {}
    for stride, grid in grids.items():
        levels[stride] = grid.extract()
        known[stride] = len(levels[stride].patterns)
        if max_share is not None and _share(spec, known, pixels) > max_share:
            return None
    latent = _latent_windows(spec, codes) if spec.is_dynamic else None
    if spec.noise_channels:
        assert latent is not None  # only SPADE's style vector fixes the size
        latent = latent_for_graph(latent, own, LATENT_KERNEL)
        levels = {s: for_graph(level, own, spec.window_kernel, len(codes)) for s, level in levels.items()}
    return PatternTables(levels, latent, region_positions(label) if spec.has_positions else None)


def extent_of(spec: GeneratorSpec, kind: GraphKind, inputs: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    """Batch, height and width of the images that a graph of that kind makes of these inputs."""
    return inputs[LABEL if kind is GraphKind.DENSE else level_names(min(modulated_channels(spec)))[2]].shape


def graph_inputs(
    spec: GeneratorSpec, kind: GraphKind, inputs: Mapping[str, NDArray[Any]], bank: MemoryBank | None = None
) -> Arrays:
    """A dense graph's inputs by name -> those of a graph of that kind, in its order.

    bank: the memory bank of a model that has one. Raises InputRefusedError as `extract_patterns` does.
    """
    if kind is GraphKind.DENSE:
        known = dict(inputs)
        if spec.has_positions:
            known[POSITION] = region_positions(inputs[LABEL])
        if spec.has_bank:
            known[CANVAS] = make_canvases(bank, inputs[LABEL], spec.labels.unknown_id)
        return {name: known[name] for name in (LABEL, INSTANCE, POSITION, CANVAS, FEATURES, Z) if name in known}
    tables = extract_patterns(spec, inputs[LABEL], inputs.get(INSTANCE))
    assert tables is not None  # no share was set at which it gives up
    return tables.to_inputs(inputs.get(Z))


def unique_share(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> float:
    """`PatternTables.unique_share` of a dense graph's inputs."""
    tables = extract_patterns(spec, inputs[LABEL], inputs.get(INSTANCE))
    assert tables is not None  # no share was set at which it gives up
    return tables.unique_share(spec)


def lookup_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """The inputs of the lookup graph in order: latent, the levels' tables from coarse to fine, the style of a VAE."""

    def size(stride: int) -> tuple[int | str, ...]:
        letters = (f"H/{stride}", f"W/{stride}")
        return ("N", *(letters if spec.is_dynamic else (spec.height // stride, spec.width // stride)))

    taps = spec.window_kernel**2
    tensors = []
    if spec.is_dynamic:
        shape = (*size(spec.stride), LATENT_KERNEL**2)
        tensors.append(TensorInfo(LATENT, "int32", shape, "codes around each pixel of the latent map"))
    for stride in modulated_channels(spec):
        codes, patterns, index = level_names(stride)
        tensors += [
            TensorInfo(codes, "int32", (f"U{stride}", taps), "distinct windows of codes"),
            TensorInfo(patterns, "int32", (f"P{stride}", taps), f"distinct larger windows, as rows of {codes}"),
            TensorInfo(index, "int32", size(stride), f"a row of {patterns} for every pixel"),
        ]
    tensors += [tensor for tensor in graph_tensors(spec) if tensor.name == POSITION]
    if spec.z_dim is not None:
        tensors.append(TensorInfo(Z, "float32", ("N", spec.z_dim), style_meaning(spec)))
    return tuple(tensors)


def check_tables(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise InputRefusedError, by tensor name, for tables that do not belong to this graph or to each other."""
    _check(spec, inputs, lookup_tensors(spec))


def _renumber(codes: Ints, outside: int) -> tuple[Ints, NDArray[Any]]:
    """The codes that occur, with `outside` as the last, and the map as positions in them, which make short keys."""
    occurs = np.zeros(outside + 1, np.bool_)
    occurs[codes] = True
    occurs[outside] = True
    names = np.flatnonzero(occurs).astype(np.int32)
    positions = np.cumsum(occurs) - 1
    return names, positions.astype(np.min_scalar_type(len(names) - 1)).take(codes)


def _latent_windows(spec: GeneratorSpec, codes: Ints) -> Ints:
    picked = codes[:, :: spec.stride, :: spec.stride]
    reach = LATENT_KERNEL // 2
    padded = np.pad(picked, ((0, 0), (reach, reach), (reach, reach)), constant_values=num_codes(spec))
    height, width = picked.shape[1:]
    taps = [padded[:, i : i + height, j : j + width] for i in range(LATENT_KERNEL) for j in range(LATENT_KERNEL)]
    return np.stack(taps, axis=3)


def _share(spec: GeneratorSpec, patterns: Mapping[int, int], pixels: Mapping[int, int]) -> float:
    channels = modulated_channels(spec)
    left = sum(patterns[stride] * channels[stride] for stride in channels)
    return left / sum(pixels[stride] * channels[stride] for stride in channels)


def _check_maps(spec: GeneratorSpec, label: NDArray[Any], instance: NDArray[Any] | None) -> None:
    if label.ndim != 3 or not label.size or label.dtype.kind not in "iu":
        raise InputRefusedError(f"input {LABEL}: {label.dtype} of shape {label.shape}, expected N x H x W integers")
    _check_range(f"input {LABEL}: id", label, spec.labels.num_ids - 1)
    if not spec.labels.has_edges:
        return
    if instance is None:
        raise InputRefusedError(f"input {INSTANCE}: missing; the model's edge channel is made of it")
    if instance.shape != label.shape or instance.dtype.kind not in "iu":
        found = f"{instance.dtype} of shape {instance.shape}"
        raise InputRefusedError(f"input {INSTANCE}: {found}, expected integers of shape {label.shape}, as {LABEL}")


def _check_size(spec: GeneratorSpec, shape: tuple[int, ...]) -> None:
    for axis, size in zip(("height", "width"), shape[1:], strict=True):
        if not spec.takes_side(size):
            raise InputRefusedError(f"input {LABEL}: {axis} {size} is not a {spec.side_rule}")


def _check(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]], tensors: tuple[TensorInfo, ...]) -> None:
    problem = mismatch(tensors, inputs)
    if problem:
        raise InputRefusedError(f"input {problem}", hint=_EXTRACT_HINT)
    outside = num_codes(spec)
    strides = list(modulated_channels(spec))
    coarsest = inputs[level_names(strides[0])[2]].shape
    further = coarsest[0] - 1 if spec.noise_channels else 0  # images whose codes are larger than the first one's
    if LATENT in inputs:
        highest = outside + further * codes_per_image(outside, LATENT_KERNEL)
        _check_range(f"input {LATENT}: code", inputs[LATENT], highest)
    for stride in strides:
        codes, patterns, index = level_names(stride)
        expected = (coarsest[0], *(size * strides[0] // stride for size in coarsest[1:]))
        if inputs[index].shape != expected:
            raise InputRefusedError(
                f"input {index}: shape {_times(inputs[index].shape)} does not fit"
                f" {_times(coarsest)} in {level_names(strides[0])[2]}; expected {_times(expected)}",
                hint=_EXTRACT_HINT,
            )
        highest = outside + further * codes_per_image(outside, spec.window_kernel)
        _check_range(f"input {codes}: code", inputs[codes], highest)
        _check_range(f"input {patterns}: row of {codes}", inputs[patterns], len(inputs[codes]))
        _check_range(f"input {index}: row of {patterns}", inputs[index], len(inputs[patterns]) - 1)


def _check_range(what: str, values: NDArray[Any], highest: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > highest:
        raise InputRefusedError(f"{what} {low if low < 0 else high} is out of range; allowed are 0..{highest}")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
