"""Sizes of tensors that are not fixed while a graph is recorded: multiples of a named number, or not known at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """factor * symbol, such as 32*h32."""

    factor: int
    """What the named number is multiplied by."""
    symbol: str
    """The name of the number."""

    def __str__(self) -> str:
        return self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"


Dimension = int | Size | None
"""A size: fixed, a multiple of a named number, or None where it is not known and nothing needs it."""


def times(size: Dimension, factor: int) -> Dimension:
    """A size several times as large."""
    if isinstance(size, Size):
        return Size(size.factor * factor, size.symbol)
    return None if size is None else size * factor


def over(size: Dimension, divisor: int) -> Dimension:
    """A size divided, rounded up as a strided slice does; None where that is no multiple of the same number."""
    if isinstance(size, Size):
        return Size(size.factor // divisor, size.symbol) if size.factor % divisor == 0 else None
    return None if size is None else -(-size // divisor)


def product(sizes: Sequence[Dimension]) -> Dimension:
    """The product of sizes; None where that is no multiple of one number."""
    result: Dimension = 1
    for size in sizes:
        if isinstance(size, int):
            result = times(result, size)
        else:
            result = times(size, result) if isinstance(result, int) else None
    return result


def broadcast(first: Sequence[Dimension], second: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """The sizes of the result of an elementwise operation."""
    length = max(len(first), len(second))
    padded = [(*([1] * (length - len(sizes))), *sizes) for sizes in (first, second)]
    return tuple(b if a == 1 or (a is None and b != 1) else a for a, b in zip(*padded, strict=True))
