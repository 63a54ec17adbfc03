"""Compute features of images with an ONNX network that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.metrics.onnx_images import ImageModel

FIELD = "extractor"

KNOWN: dict[str, Mapping[str, Any]] = {
    "b811c8dbb77928b4e06592c96d90ec0e940dcc085630ab753d9780b91825f680": {
        "name": "efficientnet_lite0",
        "mean": 127.0,
        "std": 128.0,
        "size": [224, 224],
        "output": "features",
    },
}
"""Files by their SHA-256. `is_inception`: the 2015 Inception weights that alone make a Frechet distance an FID; no
public ONNX file of them has a digest that could be relied on, so there is none here. `spade eval` has them in the form
of the published PyTorch file: `evaluation/published/inception.py`."""


class OnnxExtractor:
    """An ONNX network whose output is taken as features.

    The output is N x D, or N x C x h x w, of which `features` takes the mean over positions. It is the one that the
    facts name, else the one that is called `features`, else the only one.
    given: the facts that the user states, of mean, std, size and output; None is no fact. They overrule those that
    `onnx_images` finds. Raises NotFoundError, ConfigError, MissingDependencyError.
    """

    def __init__(self, path: Path, given: Mapping[str, Any] | None = None) -> None:
        self._model = ImageModel(path, FIELD, given or {}, KNOWN)
        self.output = self._choose_output()
        self.is_inception = bool(KNOWN.get(self._model.sha256, {}).get("is_inception", False))

    @property
    def name(self) -> str:
        """The name of these features: 'efficientnet_lite0 features'."""
        known = KNOWN.get(self._model.sha256, {})
        return f"{known.get('name', self._model.path.stem)} {self.output}"

    @property
    def frechet_name(self) -> str:
        """The name of a Frechet distance of these features: 'FID' only if the network is the 2015 Inception."""
        return "FID" if self.is_inception else f"Frechet distance ({self.name})"

    @property
    def kernel_name(self) -> str:
        return "KID" if self.is_inception else f"kernel distance ({self.name})"

    def maps(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Run the network: pixels N x H x W x 3 -> its output, N x D or N x C x h x w."""
        found = self._model.run(pixels, self.output)
        if found.ndim not in (2, 4):
            raise ConfigError(
                f"{self._model.where}: output {self.output} is {found.shape}; it must be N x D or N x C x h x w"
            )
        if not np.isfinite(found).all():
            raise ConfigError(f"{self._model.where}: output {self.output} has values that are not finite")
        return found.astype(np.float64)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """N x H x W x 3 -> N x D."""
        return pooled(self.maps(pixels))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **self._model.describe(), "output": self.output, "is_inception": self.is_inception}

    def _choose_output(self) -> str:
        names = list(self._model.outputs)
        wanted = self._model.facts.get("output")
        chosen = wanted if wanted is not None else "features" if "features" in names else names[0]
        if chosen not in names or (wanted is None and len(names) > 1 and chosen != "features"):
            found = f"{quoted(chosen)} is not one of" if chosen not in names else "which one is not known of"
            raise ConfigError(
                f"{self._model.where}: output: {found} {', '.join(names)}",
                hint="name it with `extractor_output`",
            )
        return str(chosen)


def pooled(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """N x C x h x w -> N x C, the mean over positions; N x D stays."""
    features: NDArray[np.float64] = maps if maps.ndim == 2 else maps.mean(axis=(2, 3))
    return features
