"""Measure a generator while it learns, on the same held-out samples each time, so that steps can be compared.

The generator that a checkpoint would deploy is measured. The figures come from few samples: they order the checkpoints
of a run. How good the chosen one is, `spade eval` says on all of the held-out data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spade_deploy.errors import ConfigError
from spade_deploy.metrics import (
    HIGHER_IS_BETTER,
    ConfusionMatrix,
    OnnxExtractor,
    OnnxSegmenter,
    PixelError,
    frechet_distance,
    kernel_distance,
)
from spade_deploy.metrics.unfit import BY_EXTRACTOR, BY_SEGMENTER, unfit_judges
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch, SampleSource, validation_labels

BATCH = 8
ALWAYS = ("l1", "psnr")


class Evaluator:
    """Measures a generator on `eval_samples` evenly spaced samples of `held_out`, or as many as there are.

    It always measures l1 and psnr; frechet and kernel with `setup.train.extractor`, miou and accuracy with its
    segmenter. The samples and their photos' features are read and computed when they are first needed, and kept.
    Raises NotFoundError, ConfigError, MissingDependencyError for an extractor or a segmenter that cannot be used.
    """

    def __init__(self, setup: Setup, held_out: SampleSource) -> None:
        config, self._labels = setup.train, setup.generator.labels
        self._held_out, self._count, self._seed = held_out, config.eval_samples, config.seed
        self._batch_size = min(BATCH, config.batch_size)
        self._extractor = OnnxExtractor(config.extractor) if config.extractor is not None else None
        self._segmenter = OnnxSegmenter(config.segmenter, self._labels) if config.segmenter is not None else None
        self._samples: Batch | None = None
        self._real: NDArray[np.float64] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics that `evaluate` returns, in its order."""
        distances = BY_EXTRACTOR if self._extractor is not None else ()
        return (*distances, *(BY_SEGMENTER if self._segmenter is not None else ()), *ALWAYS)

    def direction(self, name: str) -> str:
        """'lower' or 'higher': which values of a metric are better. Raises ConfigError for one that is not computed."""
        if name not in self.names:
            needed = {**dict.fromkeys(BY_EXTRACTOR, "extractor"), **dict.fromkeys(BY_SEGMENTER, "segmenter")}
            raise ConfigError(
                f"`best_by`: {name!r} is not measured; measured are {', '.join(self.names)}",
                hint=f"{name} needs `{needed[name]}` FILE.onnx" if name in needed else None,
            )
        return "higher" if HIGHER_IS_BETTER[name] else "lower"

    def unfit(self) -> dict[str, str]:
        """The metrics whose judge fails on the held-out photos themselves, and why: nothing can be chosen by them."""
        sums = None
        if self._segmenter is not None:
            matrix = ConfusionMatrix(self._labels.num_labels)
            for batch in self._batches():
                pixels = photo_pixels(batch.photo)
                matrix.add(batch.label.numpy().astype(np.int64), self._segmenter.predict(pixels))
            sums = matrix.sums
        return unfit_judges(sums, self._real_features() if self._extractor is not None else None)

    def evaluate(self, generate: Callable[[Batch], Tensor]) -> dict[str, float]:
        """generate: a batch of label maps -> uint8 N x H x W x 3. Returns each of `names`."""
        errors, matrix, features = PixelError(), ConfusionMatrix(self._labels.num_labels), []
        for batch in self._batches():
            made, real = generate(batch).cpu().numpy(), photo_pixels(batch.photo)
            errors.add(made, real)
            if self._segmenter is not None:
                matrix.add(batch.label.numpy().astype(np.int64), self._segmenter.predict(made))
            if self._extractor is not None:
                features.append(self._extractor.features(made))
        found = {"l1": errors.l1, "psnr": errors.psnr}
        if self._segmenter is not None:
            found = {"miou": matrix.miou, "accuracy": matrix.accuracy, **found}
        if self._extractor is not None:
            fake, known = np.concatenate(features), self._real_features()
            distances = frechet_distance(fake, known).value, kernel_distance(fake, known, seed=self._seed).value
            found = {**dict(zip(BY_EXTRACTOR, distances, strict=True)), **found}
        return found

    def _real_features(self) -> NDArray[np.float64]:
        if self._real is None:
            assert self._extractor is not None  # the caller has one
            photos = (photo_pixels(batch.photo) for batch in self._batches())
            self._real = np.concatenate([self._extractor.features(pixels) for pixels in photos])
        return self._real

    def _batches(self) -> Iterator[Batch]:
        if self._samples is None:
            label, instance, photo = validation_labels(self._held_out, self._count)
            self._samples = Batch(label, instance, photo, stems=())
        whole = self._samples
        for first in range(0, len(whole.label), self._batch_size):
            part = slice(first, first + self._batch_size)
            instance = whole.instance[part] if whole.instance is not None else None
            yield Batch(whole.label[part], instance, whole.photo[part], stems=())


def photo_pixels(photo: Tensor) -> NDArray[np.uint8]:
    """N x 3 x H x W in [-1, 1] -> N x H x W x 3: the very pixels that were read.

    They are rounded. `to_pixels` truncates, which is right for what a generator made; some pixels of a photo would lose
    1 by it.
    """
    return ((photo + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
