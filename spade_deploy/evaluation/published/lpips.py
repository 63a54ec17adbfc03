"""LPIPS, version 0.1 (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018).

The features of two images after five ReLUs of AlexNet or VGG16 are scaled to length 1 at each position. The squared
differences, weighted by the learned weights of each channel, are summed over the channels, averaged over the positions
and summed over the five layers. Images are in [-1, 1] and are normalised by the paper's own shift and scale.

Packages that compute it (lpips, torchmetrics) take the backbone from torchvision. Here it is built of the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import ConfigError
from spade_deploy.evaluation.published.files import BACKBONES, LINEAR, find, read_tensors

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10
BATCH = 8
LEAST_SIDE = {"alex": 31, "vgg": 16}
"""Smaller images leave nothing for the last layer."""

Convolution = tuple[int, int, int, int, int, bool, bool]
"""Index in torchvision's `features`, output channels, kernel, stride, padding; whether the maximum is pooled before it,
and whether its ReLU is one of the five."""


def _vgg16() -> list[Convolution]:
    found: list[Convolution] = []
    index = 0
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for place in range(count):
            found.append((index, channels, 3, 1, 1, bool(index) and place == 0, place == count - 1))
            index += 2
        index += 1
    return found


NETS: dict[str, tuple[list[Convolution], tuple[int, int]]] = {
    "alex": (
        [
            (0, 64, 11, 4, 2, False, True),
            (3, 192, 5, 1, 2, True, True),
            (6, 384, 3, 1, 1, True, True),
            (8, 256, 3, 1, 1, False, True),
            (10, 256, 3, 1, 1, False, True),
        ],
        (3, 2),
    ),
    "vgg": (_vgg16(), (2, 2)),
}
"""The convolutions of each network, and the size and stride of its pooling."""


class Backbone(nn.Module):
    """The convolutions of AlexNet or VGG16; the names of the weights are torchvision's."""

    def __init__(self, net: str) -> None:
        super().__init__()
        self.layers, self.pooling = NETS[net]
        self.features = nn.ModuleDict()
        width = 3
        for index, channels, kernel, stride, padding, _, _ in self.layers:
            self.features[str(index)] = nn.Conv2d(width, channels, kernel, stride, padding)
            width = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, _, _, _, _, is_pooled, is_taken in self.layers:
            x = functional.max_pool2d(x, *self.pooling) if is_pooled else x
            x = functional.relu(self.features[str(index)](x))
            if is_taken:
                found.append(x)
        return found


class Lpips:
    """The distance of two images, and its published weights.

    net: 'alex' or 'vgg'. folder: where the files lie, see `files.find`. Raises NotFoundError, CheckpointError.
    """

    def __init__(self, net: str, folder: Path | None = None) -> None:
        self.net = net
        backbone_file, linear_file = find("lpips", [BACKBONES[net], LINEAR[net]], folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = Backbone(net)
        backbone.load_state_dict(read_tensors(backbone_file, backbone.state_dict(), f"torchvision's weights of {net}"))
        self._backbone = backbone.eval().requires_grad_(False).to(self._device)
        channels = [channels for _, channels, *_, is_taken in NETS[net][0] if is_taken]
        wanted = {f"lin{n}.model.1.weight": torch.empty(1, width, 1, 1) for n, width in enumerate(channels)}
        linear = read_tensors(linear_file, wanted, f"the learned weights of LPIPS for {net}, version 0.1")
        self._linear = [linear[name].to(self._device) for name in wanted]
        self._shift = torch.tensor(SHIFT, device=self._device).view(1, 3, 1, 1)
        self._scale = torch.tensor(SCALE, device=self._device).view(1, 3, 1, 1)

    @property
    def name(self) -> str:
        return f"LPIPS ({self.net}, version 0.1)"

    def distances(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Two times N x H x W x 3 pixels -> N distances; 0 for equal images. Raises ConfigError for tiny images."""
        least = LEAST_SIDE[self.net]
        if min(a.shape[1:3]) < least:
            raise ConfigError(f"`lpips`: images of {a.shape[1]} x {a.shape[2]} are smaller than {least} pixels")
        found = []
        with torch.inference_mode():
            for first in range(0, len(a), BATCH):
                part = slice(first, first + BATCH)
                found.append(self._distance(self._features(a[part]), self._features(b[part])))
        return np.concatenate(found)

    def _features(self, pixels: NDArray[np.uint8]) -> list[Tensor]:
        image = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2)
        features: list[Tensor] = self._backbone((image / 127.5 - 1 - self._shift) / self._scale)
        return [layer / (layer.square().sum(1, keepdim=True).sqrt() + EPSILON) for layer in features]

    def _distance(self, a: list[Tensor], b: list[Tensor]) -> NDArray[np.float64]:
        layers = [
            functional.conv2d((one - other).square(), weight).mean((1, 2, 3))
            for one, other, weight in zip(a, b, self._linear, strict=True)
        ]
        total: NDArray[np.float64] = torch.stack(layers).sum(0).double().cpu().numpy()
        return total

    def describe(self) -> dict[str, Any]:
        """The facts that a report must name so that its figures can be repeated."""
        return {
            "name": self.name,
            "backbone_sha256": BACKBONES[self.net].sha256,
            "linear_sha256": LINEAR[self.net].sha256,
        }
