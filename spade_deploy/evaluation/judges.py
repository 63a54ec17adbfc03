"""The networks that judge images, as the measuring needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spade_deploy.metrics import OnnxSegmenter


class Extractor(Protocol):
    """A network whose features distances are measured between."""

    @property
    def name(self) -> str: ...

    @property
    def frechet_name(self) -> str: ...

    @property
    def kernel_name(self) -> str: ...

    def maps(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """N x H x W x 3 -> N x D or N x C x h x w."""

    def describe(self) -> dict[str, Any]: ...


class Perceptual(Protocol):
    """A network that tells how different two images look."""

    @property
    def name(self) -> str: ...

    def distances(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Two times N x H x W x 3 -> N."""

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Judges:
    """The networks that judge the images, and their settings."""

    extractor: Extractor | None
    """The network for features, between which distances are measured. None measures no distances."""
    segmenter: OnnxSegmenter | None
    """The network that finds the class of each pixel. None measures no classes."""
    num_labels: int
    """How many classes there are."""
    seed: int = 0
    """The seed of the random styles and of the random subsets of the kernel distance."""
    batch_size: int = 4
    """How many images are made and judged at once."""
    perceptual: Perceptual | None = None
    """LPIPS, between each image and its photo, and between styles without an extractor. None measures none."""
