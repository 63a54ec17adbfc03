"""Write and read safetensors files. Reading bounds the header, compares the digest, and refuses NaN and infinity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from spade_deploy.errors import CheckpointError, quoted, reason_of
from spade_deploy.files.reading import sha256_of
from spade_deploy.runs.layout import CHECKPOINT_JSON
from spade_deploy.runs.safetensors_header import read_tensor_count

DAMAGED_HINT = "the folder was damaged or copied in part; use another checkpoint"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, in their own types."""
    safetensors.torch.save_file(_plain(tensors), path, metadata={"format": "pt"})


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """What `save_tensors` writes."""
    return safetensors.torch.save(_plain(tensors), metadata={"format": "pt"})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError if it has another SHA-256, cannot be read, or holds
    NaN or infinity."""
    check_digest(path, sha256)
    read_tensor_count(path)  # its header, bounded and checked
    try:
        tensors = dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})", hint=DAMAGED_HINT) from error
    require_finite(tensors, path)
    return tensors


def check_digest(path: Path, recorded: str) -> None:
    """Raises CheckpointError unless a file has the SHA-256 that checkpoint.json says."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})", hint=DAMAGED_HINT) from error
    if found != recorded:
        raise CheckpointError(
            f"{path}: its SHA-256 begins {found[:12]}, {CHECKPOINT_JSON} says {recorded[:12]}", hint=DAMAGED_HINT
        )


def check_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path) -> None:
    """Raises CheckpointError that names the tensors which are missing, not known, or of another shape or type."""
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{quoted(name)[1:-1]} is not known" for name in found if name not in own]
    for name, tensor in own.items():
        if name in found and (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            problems.append(f"{name} is {_kind(found[name])} and should be {_kind(tensor)}")
    if problems:
        more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{where}: does not fit its spec: {'; '.join(problems[:4])}{more}",
            hint=f"compare {CHECKPOINT_JSON} beside it, or use another checkpoint",
        )


def require_finite(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise CheckpointError, which names the first tensor with NaN or infinity: no result of it would be finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{where}: {name} has values that are not finite (NaN or infinity): the network would make NaN of every"
                " label map",
                hint="the training that wrote it had diverged; use an earlier checkpoint",
            )


def is_finite(module: nn.Module) -> bool:
    """Whether every parameter and statistic of a module is a finite number."""
    floating = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in floating]).all())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
