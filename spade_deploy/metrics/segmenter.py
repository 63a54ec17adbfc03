"""Find the classes of pixels with an ONNX segmenter, the user's own or one of `spade eval --train-segmenter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import ConfigError, quoted
from spade_deploy.labels.files import resize_nearest
from spade_deploy.metrics.onnx_images import ImageModel
from spade_deploy.spec import LabelSpec

FIELD = "segmenter"
NO_CLASS = -1


class OnnxSegmenter:
    """An ONNX network that takes images and gives N x C x h x w logits or N x h x w ids.

    The output is the one that the facts name, else the one that is called `logits` or `ids`, else the only one.
    labels: the label set whose ids are given. The network's own classes are named by the fact `labels`, in the file
    beside it or in its metadata, and matched by name; a class without a match counts as wrong. Without names class n
    is label n. Raises NotFoundError, ConfigError, MissingDependencyError.
    """

    def __init__(self, path: Path, labels: LabelSpec, given: Mapping[str, Any] | None = None) -> None:
        self._model = ImageModel(path, FIELD, given or {}, {})
        self.labels = labels
        names = list(self._model.outputs)
        preferred = [name for name in ("logits", "ids") if name in names]
        self.output = str(self._model.facts.get("output") or (preferred or names)[0])
        if self.output not in names or (len(names) > 1 and "output" not in self._model.facts and not preferred):
            raise ConfigError(
                f"`{FIELD}` {path}: it is not known which of its outputs {', '.join(names)} has the classes",
                hint=f'write {path.with_suffix(".json")}: {{"output": "NAME"}} beside the mean and std',
            )
        self._mapping = self._map_classes()

    @property
    def name(self) -> str:
        return str(self._model.facts.get("name", self._model.path.stem))

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that the file and the JSON beside it say."""
        return self._model.facts

    def predict(self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """N x H x W x 3 -> N x height x width label ids; -1 stands for a class that the label set does not have.

        size: of the result, H x W if left out. Logits are resized bilinearly before the largest one is taken, ids to
        the nearest pixel.
        """
        size = size or (int(pixels.shape[1]), int(pixels.shape[2]))
        found = self._model.run(pixels, self.output)
        if found.ndim == 4 and np.issubdtype(found.dtype, np.floating):
            ids = np.stack([_resized_logits(logits, size).argmax(0) for logits in found])
        elif found.ndim == 3 and np.issubdtype(found.dtype, np.integer):
            ids = np.stack([resize_nearest(image, size) for image in found.astype(np.int32)])
        else:
            raise ConfigError(
                f"{self._model.where}: output {self.output} is {found.dtype} {found.shape};"
                " needed are N x C x h x w logits or N x h x w integer ids"
            )
        classes = max(int(ids.max()) + 1, found.shape[1] if found.ndim == 4 else 0)
        return self._mapping_for(classes, is_logits=found.ndim == 4)[np.where(ids < 0, classes, ids)]

    def describe(self) -> dict[str, Any]:
        kept = {name: self.facts[name] for name in ("score", "trained_on", "steps") if name in self.facts}
        unmatched = None if self._mapping is None else int((self._mapping < 0).sum())
        return {
            "name": self.name,
            **self._model.describe(),
            "output": self.output,
            "classes_without_label": unmatched,
            **kept,
        }

    def _map_classes(self) -> NDArray[np.int32] | None:
        """The label id of each class, found by the names; None if the file has no names."""
        names = self._model.facts.get("labels")
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{self._model.where}: labels is {quoted(names)}, not a list of names")
        ids = {self.labels.name_of(n).casefold(): n for n in range(self.labels.num_labels)}
        mapping = np.array([ids.get(name.casefold(), NO_CLASS) for name in names], np.int32)
        if (mapping < 0).all():
            raise ConfigError(
                f"{self._model.where}: none of its classes ({quoted(names[:4])}, ...) is one of the label"
                f" set's ({', '.join(self.labels.name_of(n) for n in range(min(4, self.labels.num_labels)))}, ...)",
                hint="take a segmenter of this label set, or `train_segmenter`",
            )
        return mapping

    def _mapping_for(self, classes: int, *, is_logits: bool) -> NDArray[np.int32]:
        """The mapping with one more entry, for numbers that are no class."""
        mapping = self._mapping
        if mapping is None:
            if classes > self.labels.num_ids:
                raise ConfigError(
                    f"{self._model.where}: has {classes} classes, the label set has {self.labels.num_labels},"
                    " and it does not name its classes",
                    hint=f"name its classes in {self._model.path.with_suffix('.json')} as labels: [...]",
                )
            mapping = np.arange(classes, dtype=np.int32)
        elif classes > len(mapping) or (is_logits and classes < len(mapping)):
            raise ConfigError(f"{self._model.where}: has {classes} classes, but names {len(mapping)}")
        mapping = mapping[:classes]
        return np.append(mapping, NO_CLASS).astype(np.int32)


def _resized_logits(logits: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """C x h x w -> C x height x width."""
    values = np.ascontiguousarray(logits, np.float32)
    if values.shape[1:] == size:
        return values
    planes = [Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR) for plane in values]
    return np.stack([np.asarray(plane) for plane in planes])
