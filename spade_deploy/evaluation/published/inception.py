"""The Inception network of 2015, whose 2048 pooled features define FID (Heusel et al., 2017).

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), as TensorFlow's file
inception-2015-12-05 computes it: average pooling counts no padding, the last block pools by the maximum, and images are
resized to 299 x 299 by TensorFlow 1's bilinear rule, without antialiasing. The names of the weights are those of the
published PyTorch file, so it loads as it is; the classifier in it is not needed. The TorchScript file that StyleGAN's
metrics and clean-fid use is the same network as a program: it resizes and normalises by itself, and is run as it is.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import CheckpointError, reason_of
from spade_deploy.evaluation.published.files import (
    INCEPTION,
    INCEPTION_SCRIPT,
    Published,
    find_any,
    read_tensors,
)
from spade_deploy.files.reading import sha256_of_bytes

SIDE = 299
FEATURES = 2048
BATCH = 8
RESIZE = "bilinear as TensorFlow 1, without antialiasing"

Step = tuple[str, int, tuple[int, int], int]
"""A convolution: the end of its name, output channels, kernel, stride. At stride 1 it keeps the size."""


def _step(name: str, channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1) -> Step:
    return name, channels, (kernel, kernel) if isinstance(kernel, int) else kernel, stride


def _double(name: str, channels: int) -> list[Step]:
    return [_step(f"{name}_1", 64), _step(f"{name}_2", channels, 3), _step(f"{name}_3", channels, 3)]


def _early(pooled: int) -> tuple[list[list[Step]], str, int]:
    """Blocks of 35 x 35: the branches, the pooling, and the channels of the branch that pools."""
    branches = [
        [_step("1x1", 64)],
        [_step("5x5_1", 48), _step("5x5_2", 64, 5)],
        _double("3x3dbl", 96),
    ]
    return branches, "average", pooled


def _middle(width: int) -> tuple[list[list[Step]], str, int]:
    """Blocks of 17 x 17, whose long kernels are split into 1 x 7 and 7 x 1."""
    row, column = (1, 7), (7, 1)
    branches = [
        [_step("1x1", 192)],
        [_step("7x7_1", width), _step("7x7_2", width, row), _step("7x7_3", 192, column)],
        [
            _step("7x7dbl_1", width),
            _step("7x7dbl_2", width, column),
            _step("7x7dbl_3", width, row),
            _step("7x7dbl_4", width, column),
            _step("7x7dbl_5", 192, row),
        ],
    ]
    return branches, "average", 192


SMALLER = ([[_step("3x3", 384, 3, 2)], [*_double("3x3dbl", 96)[:2], _step("3x3dbl_3", 96, 3, 2)]], "down", 0)
"""35 x 35 -> 17 x 17."""
SMALLEST = (
    [
        [_step("3x3_1", 192), _step("3x3_2", 320, 3, 2)],
        [
            _step("7x7x3_1", 192),
            _step("7x7x3_2", 192, (1, 7)),
            _step("7x7x3_3", 192, (7, 1)),
            _step("7x7x3_4", 192, 3, 2),
        ],
    ],
    "down",
    0,
)
"""17 x 17 -> 8 x 8."""


def _late(pooling: str) -> tuple[list[list[Step]], str, int]:
    """Blocks of 8 x 8. Two of their branches end in a fork: the steps `a` and `b` read the same input."""
    fork_3 = [_step("3x3_1", 384), _step("3x3_2a", 384, (1, 3)), _step("3x3_2b", 384, (3, 1))]
    fork_double = [
        _step("3x3dbl_1", 448),
        _step("3x3dbl_2", 384, 3),
        _step("3x3dbl_3a", 384, (1, 3)),
        _step("3x3dbl_3b", 384, (3, 1)),
    ]
    return [[_step("1x1", 320)], fork_3, fork_double], pooling, 192


BLOCKS = {
    "Mixed_5b": _early(32),
    "Mixed_5c": _early(64),
    "Mixed_5d": _early(64),
    "Mixed_6a": SMALLER,
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": SMALLEST,
    "Mixed_7b": _late("average"),
    "Mixed_7c": _late("maximum"),
}
STEM = (
    ("Conv2d_1a_3x3", 32, 2, 0),
    ("Conv2d_2a_3x3", 32, 1, 0),
    ("Conv2d_2b_3x3", 64, 1, 1),
    ("Conv2d_3b_1x1", 80, 1, 0),
    ("Conv2d_4a_3x3", 192, 1, 0),
)
"""Name, channels, stride and padding of the first convolutions; after the third and the fifth the maximum is pooled."""


class Convolution(nn.Module):
    """A convolution, batch norm and ReLU."""

    def __init__(self, width: int, channels: int, kernel: tuple[int, int], stride: int, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, whose outputs are concatenated, the pooled one last."""

    def __init__(self, width: int, branches: list[list[Step]], pooling: str, pooled: int) -> None:
        super().__init__()
        self.branches, self.pooling, self.channels = branches, pooling, 0
        for branch in branches:
            inner = width
            for name, channels, kernel, stride in branch:
                padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else 0
                self.add_module(f"branch{name}", Convolution(inner, channels, kernel, stride, padding))
                inner = inner if name.endswith("a") else channels  # `b` reads what `a` reads
            self.channels += channels * (2 if name.endswith("b") else 1)
        if pooled:
            self.branch_pool = Convolution(width, pooled, (1, 1), 1, 0)
        self.channels += pooled or width

    def forward(self, x: Tensor) -> Tensor:
        found = [output for branch in self.branches for output in self._branch(branch, x)]
        return torch.cat([*found, self._pool(x)], 1)

    def _branch(self, branch: list[Step], x: Tensor) -> list[Tensor]:
        ends = []
        for name, *_ in branch:
            output = self.get_submodule(f"branch{name}")(x)
            if name[-1] in "ab":
                ends.append(output)
            else:
                x = output
        return ends or [x]

    def _pool(self, x: Tensor) -> Tensor:
        if self.pooling == "down":
            return functional.max_pool2d(x, 3, 2)
        if self.pooling == "maximum":
            pooled = functional.max_pool2d(x, 3, 1, 1)
        else:
            pooled = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        output: Tensor = self.branch_pool(pooled)
        return output


class Inception(nn.Module):
    """The network up to its pooled features."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for name, channels, stride, padding in STEM:
            side = int(name[-1])
            self.add_module(name, Convolution(width, channels, (side, side), stride, padding))
            width = channels
        for name, (branches, pooling, pooled) in BLOCKS.items():
            block = Block(width, branches, pooling, pooled)
            self.add_module(name, block)
            width = block.channels

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: N x 3 x H x W, float, 0..255. Returns N x 2048."""
        x = (resized(pixels, SIDE, SIDE) - 128) / 128
        for index, (name, *_) in enumerate(STEM):
            x = self.get_submodule(name)(x)
            if index in (2, 4):
                x = functional.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """N x C x H x W -> N x C x height x width, bilinear as TensorFlow 1: output y is read at y H / height exactly."""
    for axis, size in ((2, height), (3, width)):
        old = image.shape[axis]
        places = torch.arange(size, dtype=torch.float32, device=image.device) * (old / size)
        low = places.floor().long().clamp(max=old - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = (places - low).to(image.dtype).view(shape)
        first = image.index_select(axis, low)
        image = first + (image.index_select(axis, (low + 1).clamp(max=old - 1)) - first) * share
    return image


class InceptionFeatures:
    """The extractor whose Frechet distance is called FID.

    folder: where a published file lies, see `files.find_any`. choices: the published files; INCEPTION and
    INCEPTION_SCRIPT if None. Raises NotFoundError, CheckpointError.
    """

    name = "Inception 2015 pool3"
    frechet_name = "FID"
    kernel_name = "KID"

    def __init__(self, folder: Path | None = None, choices: Sequence[Published] | None = None) -> None:
        file, self.path = find_any("fid", choices or (INCEPTION, INCEPTION_SCRIPT), folder)
        self.sha256 = file.sha256
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = _own_network(self.path) if self.path.suffix == ".pth" else _program(self.path, file)
        self._network = network.eval().requires_grad_(False).to(self._device)

    def maps(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """N x H x W x 3 -> N x 2048."""
        found = []
        with torch.inference_mode():
            for first in range(0, len(pixels), BATCH):
                part = torch.from_numpy(np.ascontiguousarray(pixels[first : first + BATCH])).to(self._device)
                features = self._network(part.permute(0, 3, 1, 2).float())
                found.append(features.reshape(len(part), FEATURES).double().cpu().numpy())
        return np.concatenate(found)

    def describe(self) -> dict[str, Any]:
        """The facts that a report must name so that its figures can be repeated."""
        return {
            "name": self.name,
            "file": self.path.name,
            "sha256": self.sha256,
            "output": f"pool3, {FEATURES} features",
            "is_inception": True,
            "preprocessing": {"mean": [128.0] * 3, "std": [128.0] * 3, "size": [SIDE, SIDE], "resize": RESIZE},
        }


class Program(nn.Module):
    """A TorchScript program whose argument `return_features` leaves the classifier out."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: N x 3 x H x W, float, 0..255. Returns the features of N images."""
        features: Tensor = self.script(pixels, return_features=True)
        return features


def _own_network(path: Path) -> nn.Module:
    network = Inception()
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    network.load_state_dict(read_tensors(path, wanted, "the published Inception weights"), strict=False)
    return network


def _program(path: Path, file: Published) -> nn.Module:
    """The program in a TorchScript file. It is code, so the very bytes that are loaded are compared with the digest."""
    content = path.read_bytes()
    if sha256_of_bytes(content) != file.sha256:
        raise CheckpointError(f"{path} changed while it was read", hint=f"download {file.url} again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of TorchScript as a whole
            return Program(torch.jit.load(io.BytesIO(content), map_location="cpu"))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is not loaded by PyTorch {torch.__version__}: {reason_of(error)}",
            hint=f"take {INCEPTION.names[0]} instead: {INCEPTION.url}",
        ) from error
