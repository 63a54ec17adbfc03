"""Label maps -> the inputs of the lookup graph: the distinct windows of labels, and which pixel has which. NumPy only.

At a resolution, gamma and beta of a pixel depend on a (2k - 1) x (2k - 1) window of pixel codes: k x k hidden
activations around it, each of which depends on k x k codes. A label map has far fewer distinct windows than pixels.
So each level (all blocks of one stride) has three tables: distinct k x k windows (`codes`), distinct larger windows
written as k*k rows of `codes` (`patterns`), and a row of `patterns` for every pixel (`index`).

How they are found, exactly and fast. Most windows lie inside one region: they follow from their one code. The others
are ranked by integer keys that stand for the whole window, never by a hash: k*k codes for a small window, and for a
large one its four corner windows, which cover it. Windows around the image's outer taps are ranked with the rest, so
that the corners of a border pixel's window exist too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, TensorInfo, Z, mismatch
from spade_deploy.errors import InputRefusedError
from spade_deploy.spec import GeneratorSpec

LATENT = "latent"
LATENT_KERNEL = 3
"""`fc` is a 3 x 3 convolution, whatever the kernel inside SPADE."""

Ints = NDArray[np.int32]
Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]
Digit = tuple[NDArray[Any], int]
"""A column of digits and its base: digits are in 0..base-1."""

_MAX_KEY = (1 << 63) - 1
_HASH_FACTORS = (0x9E3779B1, 0x85EBCA77)
"""Odd and unrelated, one for each direction: with one for both, a window and its transpose would have one hash."""
_EXTRACT_HINT = "extract_patterns makes the tables from a label map, for the generator spec of the graph"


@dataclass(frozen=True)
class LevelPatterns:
    """The distinct windows of one resolution; all int32.

    codes: U x k*k, windows of pixel codes, taps row by row; `num_codes` stands for outside the image.
    patterns: P x k*k, windows of (2k - 1) x (2k - 1) pixels as rows of `codes`, one for each of the k*k taps; U stands
    for a tap whose centre is outside the image, where the hidden map is zero.
    index: N x h x w, rows of `patterns`.
    """

    codes: Ints
    patterns: Ints
    index: Ints


@dataclass(frozen=True)
class PatternTables:
    """What the lookup graph is fed instead of a batch of label maps.

    levels: by stride, from coarse to fine. latent: N x h x w x 9, the codes around each pixel of the latent map;
    None with a VAE.
    """

    levels: Mapping[int, LevelPatterns]
    latent: Ints | None

    def to_inputs(self) -> Arrays:
        """The graph's tensors by name, in the order of `lookup_tensors`; without the style."""
        inputs: Arrays = {} if self.latent is None else {LATENT: self.latent}
        for stride, level in self.levels.items():
            tensors = (level.codes, level.patterns, level.index)
            inputs.update(zip(level_names(stride), tensors, strict=True))
        return inputs

    @classmethod
    def from_inputs(cls, spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> PatternTables:
        """The inverse of `to_inputs`; a style among the inputs is left alone. Raises InputRefusedError."""
        tables = {name: array for name, array in inputs.items() if name != Z}
        _check(spec, tables, tuple(tensor for tensor in lookup_tensors(spec) if tensor.name != Z))
        levels = {s: LevelPatterns(*(tables[name] for name in level_names(s))) for s in modulated_channels(spec)}
        return cls(levels, tables.get(LATENT))

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

    max_share: None is returned where `unique_share` exceeds it, as soon as that is certain; without, never.
    Raises InputRefusedError for sizes that are no multiple of the spec's stride and ids that the spec does not know.
    """
    codes = pixel_codes(spec, label, instance)
    _check_size(spec, codes.shape)
    names, dense = _renumber(codes, num_codes(spec))
    grids = {s: _Grid(dense[:, ::s, ::s], names, spec.kernel_size) for s in modulated_channels(spec)}
    pixels = {stride: grid.num_pixels for stride, grid in grids.items()}
    # What is certain of the number of patterns, at first that there is one; exact once a level is done.
    known = dict.fromkeys(grids, 1)
    if max_share is not None and _share(spec, {s: grid.at_most() for s, grid in grids.items()}, pixels) > max_share:
        for stride, grid in reversed(grids.items()):  # the finest level has most of the work, and decides most often
            known[stride] = grid.at_least()
            if _share(spec, known, pixels) > max_share:
                return None
    levels = {}
    for stride, grid in grids.items():
        levels[stride] = grid.extract()
        known[stride] = len(levels[stride].patterns)
        if max_share is not None and _share(spec, known, pixels) > max_share:
            return None
    return PatternTables(levels, None if spec.z_dim is not None else _latent_windows(spec, codes))


def lookup_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """What the lookup graph is fed, in order: latent, the levels' tables from coarse to fine, the style of a VAE."""

    def size(stride: int) -> tuple[int | str, ...]:
        letters = (f"H/{stride}", f"W/{stride}")
        return ("N", *(letters if spec.is_dynamic else (spec.height // stride, spec.width // stride)))

    taps = spec.kernel_size**2
    tensors = []
    if spec.z_dim is None:
        shape = (*size(spec.stride), LATENT_KERNEL**2)
        tensors.append(TensorInfo(LATENT, "int32", shape, "codes around each pixel of the latent map"))
    for stride in modulated_channels(spec):
        codes, patterns, index = level_names(stride)
        tensors += [
            TensorInfo(codes, "int32", (f"U{stride}", taps), "distinct windows of codes"),
            TensorInfo(patterns, "int32", (f"P{stride}", taps), f"distinct larger windows, as rows of {codes}"),
            TensorInfo(index, "int32", size(stride), f"a row of {patterns} for every pixel"),
        ]
    if spec.z_dim is not None:
        tensors.append(TensorInfo(Z, "float32", ("N", spec.z_dim), "style: zeros, or standard normal"))
    return tuple(tensors)


def check_tables(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise InputRefusedError, by tensor name, for tables that do not belong to this graph or to each other."""
    _check(spec, inputs, lookup_tensors(spec))


class _Grid:
    """The codes of one level, padded so that every window that touches the image exists, as one flat array.

    A window is named by the flat position of its first tap: tap (i, j) is `i * self.width + j` further on. Flat
    shifts run over the ends of rows; what they make there is not read, or masked out.
    """

    def __init__(self, dense: NDArray[Any], names: Ints, kernel: int) -> None:
        self.kernel, self.names, self.outside = kernel, names, len(names) - 1
        count, self.rows, self.columns = dense.shape
        self.reach = kernel - 1  # of a pixel's large window, to each side
        self.shape = (count, self.rows + 2 * self.reach, self.columns + 2 * self.reach)
        self.width = self.shape[2]
        self.num_pixels = dense.size
        padded = np.full(self.shape, self.outside, dense.dtype)
        padded[:, self.reach : self.reach + self.rows, self.reach : self.reach + self.columns] = dense
        self.flat = padded.reshape(-1)
        # Small windows are also those around the outer taps of the image's pixels; large ones are one a pixel.
        is_small = self._first_taps(self.rows + self.reach, self.columns + self.reach)
        is_large = self._first_taps(self.rows, self.columns)
        far = self.reach * self.width
        self.corners = sorted({0, self.reach, far, far + self.reach})
        uniform = self._uniform()
        self.small_uniform = uniform & is_small
        self.mixed_small = np.flatnonzero(is_small & ~uniform)
        # The four corner windows share the centre: where each is of one code, it is the same code.
        self.large_uniform = self.small_uniform & is_large
        for corner in self.corners[1:]:
            self.large_uniform[:-corner] &= uniform[corner:]
        self.mixed_large = np.flatnonzero(is_large & ~self.large_uniform)

    def at_most(self) -> int:
        """No more patterns than this."""
        return min(self.num_pixels, len(self.mixed_large) + self.outside)

    def at_least(self) -> int:
        """No fewer patterns than this: different hashes are different windows, whatever collides."""
        across = _weighted_sum(self.flat.astype(np.uint32), 2 * self.kernel - 1, 1, _HASH_FACTORS[0])
        hashes = _weighted_sum(across, 2 * self.kernel - 1, self.width, _HASH_FACTORS[1])
        bits = min(24, (16 * self.num_pixels).bit_length())
        seen = np.zeros(1 << bits, np.bool_)
        kept = hashes.reshape(self.shape)[:, : self.rows, : self.columns]
        seen[(kept >> np.uint32(32 - bits)).astype(np.intp)] = True
        return int(np.count_nonzero(seen))

    def extract(self) -> LevelPatterns:
        taps = [i * self.width + j for i in range(self.kernel) for j in range(self.kernel)]
        centre = taps[len(taps) // 2]
        # The centre is the first digit and `outside` the greatest code: windows around outside taps come last.
        by_weight = [centre, *(tap for tap in taps if tap != centre)]
        small, first = self._number(
            self.small_uniform,
            self.mixed_small,
            lambda windows: ((self.flat[tap:].take(windows), self.outside + 1) for tap in by_weight),
        )
        num_small = len(first)
        first = first[: np.count_nonzero(self.flat[centre:].take(first) != self.outside)]
        codes = np.stack([self.names.take(self.flat[tap:].take(first)) for tap in taps], axis=1)
        index, first = self._number(
            self.large_uniform,
            self.mixed_large,
            lambda windows: ((small[corner:].take(windows), num_small) for corner in self.corners),
        )
        patterns = np.stack([np.minimum(small[tap:].take(first), len(codes)) for tap in taps], axis=1)
        inside = index.reshape(self.shape)[:, : self.rows, : self.columns]
        return LevelPatterns(codes, patterns, np.ascontiguousarray(inside))

    def _number(
        self, uniform: Flags, mixed: Positions, digits: Callable[[Positions], Iterable[Digit]]
    ) -> tuple[Ints, Positions]:
        """Number the distinct windows: those of one code by code, then those in `mixed` by their digits.

        Returns the number at every first tap, and a first tap for every number.
        """
        member = np.full(len(self.names), -1)
        plain = np.flatnonzero(uniform)
        member[self.flat.take(plain)] = plain
        found = member >= 0
        number_of_code = (np.cumsum(found) - 1).astype(np.int32)
        numbers = number_of_code.take(self.flat)
        rank, representatives = rank_rows(digits(mixed))
        first = member[found]
        numbers[mixed] = rank + len(first)
        return numbers, np.concatenate([first, mixed.take(representatives)])

    def _first_taps(self, rows: int, columns: int) -> Flags:
        mask = np.zeros(self.shape, np.bool_)
        mask[:, :rows, :columns] = True
        return mask.reshape(-1)

    def _uniform(self) -> Flags:
        """Where all k*k taps of a window are one code."""
        if self.kernel == 1:
            return np.ones(self.flat.shape, np.bool_)
        across = _all_shifted(self.flat[1:] == self.flat[:-1], self.kernel - 1, 1)
        down = _all_shifted(self.flat[self.width :] == self.flat[: -self.width], self.kernel - 1, self.width)
        across = _all_shifted(across, self.kernel, self.width)
        uniform = np.zeros(self.flat.shape, np.bool_)
        uniform[: len(across)] = across & down[: len(across)]
        return uniform


def rank_rows(columns: Iterable[Digit]) -> tuple[Positions, Positions]:
    """Rank rows of digits in lexicographic order, equal rows equal: (rank of every row, a row of every rank).

    columns: n digits in 0..base-1 and their base, the first column weighing most. The digits become one 64-bit
    integer; where they do not fit, what there is so far is ranked first, and its ranks are a digit: nothing collides.
    """
    key: NDArray[Any] | None = None
    span = 1
    for digits, base in columns:
        if key is None:
            key = digits.astype(np.int64)
        else:
            if span > _MAX_KEY // base:
                key, rows = _ranked(key)
                span = len(rows)  # no more than there are rows, which times a base always fits
            key = key * base + digits
        span *= base
    if key is None:
        raise ValueError("rows need at least one digit")
    return _ranked(key)


def _ranked(key: NDArray[np.int64]) -> tuple[Positions, Positions]:
    order = np.argsort(key)
    ascending = key.take(order)
    is_new = np.ones(len(key), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:])
    rank = np.empty(len(key), np.int64)
    rank[order] = np.cumsum(is_new) - 1
    return rank, order[is_new]


def _all_shifted(flags: Flags, count: int, step: int) -> Flags:
    """At p, whether flags at p, p + step, ... are all set, `count` of them; shorter by what that reaches beyond."""
    size = len(flags) - (count - 1) * step
    result = flags[:size].copy()
    for shift in range(step, count * step, step):
        result &= flags[shift : shift + size]
    return result


def _weighted_sum(values: NDArray[np.uint32], count: int, step: int, factor: int) -> NDArray[np.uint32]:
    """At p, the sum of values at p, p + step, ... weighted with powers of `factor`, modulo 2^32; zero near the end."""
    size = len(values) - (count - 1) * step
    total = np.zeros(values.shape, np.uint32)
    for shift in range(0, count * step, step):
        total[:size] = total[:size] * np.uint32(factor) + values[shift : shift + size]
    return total


def _renumber(codes: Ints, outside: int) -> tuple[Ints, NDArray[Any]]:
    """(The codes that occur and then `outside`, the map as positions in them): small digits make short keys."""
    occurs = np.zeros(outside + 1, np.bool_)
    occurs[codes] = True
    occurs[outside] = True
    names = np.flatnonzero(occurs).astype(np.int32)
    positions = np.cumsum(occurs) - 1
    return names, positions.astype(np.uint8 if len(names) <= 256 else np.uint16).take(codes)


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
        if size % spec.stride:
            raise InputRefusedError(f"input {LABEL}: {axis} {size} is not a multiple of {spec.stride}")


def _check(spec: GeneratorSpec, inputs: Mapping[str, NDArray[Any]], tensors: tuple[TensorInfo, ...]) -> None:
    problem = mismatch(tensors, inputs)
    if problem:
        raise InputRefusedError(f"input {problem}", hint=_EXTRACT_HINT)
    outside = num_codes(spec)
    if LATENT in inputs:
        _check_range(f"input {LATENT}: code", inputs[LATENT], outside)
    strides = list(modulated_channels(spec))
    coarsest = inputs[level_names(strides[0])[2]].shape
    for stride in strides:
        codes, patterns, index = level_names(stride)
        expected = (coarsest[0], *(size * strides[0] // stride for size in coarsest[1:]))
        if inputs[index].shape != expected:
            raise InputRefusedError(
                f"input {index}: shape {_times(inputs[index].shape)} does not fit"
                f" {_times(coarsest)} in {level_names(strides[0])[2]}; expected {_times(expected)}",
                hint=_EXTRACT_HINT,
            )
        _check_range(f"input {codes}: code", inputs[codes], outside)
        _check_range(f"input {patterns}: row of {codes}", inputs[patterns], len(inputs[codes]))
        _check_range(f"input {index}: row of {patterns}", inputs[index], len(inputs[patterns]) - 1)


def _check_range(what: str, values: NDArray[Any], highest: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > highest:
        raise InputRefusedError(f"{what} {low if low < 0 else high} is out of range; allowed are 0..{highest}")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
