"""Count the tensors and parameters of a safetensors file by its header, without PyTorch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.errors import CheckpointError, quoted, reason_of
from spade_deploy.files.reading import open_regular, parse_json

MAX_HEADER_BYTES = 16 << 20
"""The largest header that is read. The format allows 100 MB; a generator's header has about 30 kB."""

MAX_DIMENSIONS = 8

# Tensors in the file that are no parameters: statistics, and the vectors of spectral norm.
_BUFFERS = re.compile(r"\.(running_mean|running_var|num_batches_tracked|weight_u|weight_v)$")


@dataclass(frozen=True)
class TensorCount:
    """The number of tensors and of parameters in a safetensors file, and their types."""

    tensors: int
    """How many tensors there are."""
    parameters: int
    """How many trained numbers they hold."""
    dtypes: tuple[str, ...]
    """The types of the numbers."""


def read_tensor_count(path: Path) -> TensorCount:
    """Count the tensors of a safetensors file by its header: 8 bytes of length, then JSON. Raises CheckpointError."""
    try:
        with open_regular(path) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {path.stat().st_size}")
            header = parse_json(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        parameters = 0
        for name, entry in tensors.items():
            shape = entry["shape"]
            is_right = len(shape) <= MAX_DIMENSIONS and all(type(size) is int and size >= 0 for size in shape)
            # A number takes at least one byte, so a shape with more numbers than the file has bytes is false.
            if not is_right or math.prod(shape) > path.stat().st_size:
                raise ValueError(f"{quoted(name)} has the shape {quoted(shape)}")
            parameters += 0 if _BUFFERS.search(name) else math.prod(shape)
        return TensorCount(
            len(tensors), parameters, tuple(sorted({str(entry["dtype"])[:16] for entry in tensors.values()}))
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or damaged: {reason_of(error)}", hint="use another checkpoint of the run"
        ) from error
