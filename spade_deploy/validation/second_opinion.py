"""A second opinion: NVIDIA's Polygraphy compares the images that two runtimes make with the same graph.

`spade validate` compares a graph with PyTorch, and `metrics/judge.py` decides. Here the same graph runs in two
runtimes, such as ONNX Runtime and TensorRT, and another tool compares names, shapes and values of their outputs, so
that any difference comes from a runtime. The limits, and the values that are left out, are those of the judge.
Polygraphy is imported only when it is needed; nothing that serves images needs it.
"""

from __future__ import annotations

import importlib
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, LOGITS, PIXELS, Arrays, Artifact, Graph, input_tensors, one_by_one
from spade_deploy.engines.base import Backend, Runtime, check_inputs
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ConfigError, MissingDependencyError
from spade_deploy.metrics.judge import mismatch_of
from spade_deploy.metrics.tolerances import Tolerance, is_undecided, logit_margin, tolerance_for

OLDEST = (0, 53, 4)
"""The first version that knows TensorRT 11 and takes the options that are used here."""
_INSTALL = "pip install --upgrade polygraphy"


@dataclass(frozen=True)
class OutputVerdict:
    """Polygraphy's verdict on one output, over all images."""

    name: str
    """The name of the output."""
    passed: bool
    """Whether the difference is within `limit`."""
    max_abs: float
    """The largest absolute difference."""
    mean_abs: float
    """The mean absolute difference."""
    statistic: str
    """'max' or 'mean': which of the two was held to `limit`."""
    limit: float
    """The largest allowed difference."""

    def __str__(self) -> str:
        value = self.max_abs if self.statistic == "max" else self.mean_abs
        return f"{self.name} {self.statistic} {value:.2g} {'<=' if self.passed else 'is over'} {self.limit:.2g}"


@dataclass(frozen=True)
class ComparatorVerdict:
    """Polygraphy's verdict on two runtimes."""

    version: str
    """The version of Polygraphy."""
    reference: str
    """The name of the runtime that was trusted."""
    candidate: str
    """The name of the runtime that was judged."""
    images: int
    """How many images were compared."""
    outputs: tuple[OutputVerdict, ...]
    """The verdict on each output."""

    @property
    def passed(self) -> bool:
        return all(output.passed for output in self.outputs)

    def __str__(self) -> str:
        images = f"{self.images} image{'s' if self.images > 1 else ''}"
        return (
            f"Polygraphy {self.version}: {self.candidate} {'agrees' if self.passed else 'does not agree'} with"
            f" {self.reference} on {images} ({', '.join(map(str, self.outputs))})"
        )


def compare_graph(artifact: Artifact, graph: Graph, candidate: Runtime) -> ComparatorVerdict:
    """Polygraphy's verdict on a runtime of a graph, such as an engine, against ONNX Runtime on the CPU.

    On the artifact's golden inputs, with the tolerance of the graph's precision. Raises as `polygraphy_compare`.
    """
    require_polygraphy()
    golden, rounding = artifact.golden(), artifact.manifest.rounding
    undecided = is_undecided(golden.outputs[LOGITS], logit_margin(graph.precision, rounding))
    tolerance = tolerance_for(graph.precision, rounding, graph.min_psnr_db)
    with open_runtime(artifact, graph.precision, Backend.CPU, graph=str(graph.kind)) as reference:
        return polygraphy_compare(reference, candidate, golden.inputs, tolerance, undecided)


def polygraphy_compare(
    reference: Runtime,
    candidate: Runtime,
    inputs: Mapping[str, NDArray[Any]],
    tolerance: Tolerance,
    undecided: NDArray[np.bool_] | None = None,
) -> ComparatorVerdict:
    """Run both on the same label maps, one at a time, and let Polygraphy's Comparator judge image and pixels.

    inputs: a dense graph's, by name, N of each, for a lookup graph too. tolerance: what each of the two may differ by
    from PyTorch; from each other they may differ by twice that. undecided: N x 3 x H x W, values of the image that
    rounding alone decides (`tolerances.is_undecided`), which are left out.
    Raises MissingDependencyError without Polygraphy, InputRefusedError, ConfigError, and what the runtimes raise.
    """
    version = require_polygraphy()
    comparator, logger = _module("comparator"), _module("logger").G_LOGGER
    if candidate.spec != reference.spec:
        raise ConfigError(f"{candidate.name} and {reference.name} are of different models: there is nothing to compare")
    check_inputs(reference.spec, inputs)
    statistic, limits = _limits(tolerance)
    feeds = [OrderedDict(one) for one in one_by_one(inputs)]
    runners = [
        make_runner(runtime, f"{role}: {runtime.name}", undecided)
        for role, runtime in (("reference", reference), ("candidate", candidate))
    ]
    with logger.verbosity(logger.CRITICAL):  # it would print every step
        results = comparator.Comparator.run(runners, data_loader=feeds)
        by_image = [(dict(one), dict(other)) for one, other in zip(results[0][1], results[1][1], strict=True)]
        if any(mismatch_of(one, other) is not None for one, other in by_image):
            # Of outputs with different shapes Polygraphy has no figures.
            outputs = tuple(OutputVerdict(name, False, np.inf, np.inf, statistic, limits[name]) for name in limits)
        else:
            outputs = _compared(comparator.Comparator, results, statistic, limits)
    return ComparatorVerdict(version, reference.name, candidate.name, len(feeds), outputs)


def _compared(comparator: Any, results: Any, statistic: str, limits: dict[str, float]) -> tuple[OutputVerdict, ...]:
    judge = _module("comparator").SimpleCompareFunc(
        atol=limits, rtol=dict.fromkeys(limits, 0.0), check_error_stat=statistic
    )
    with np.errstate(all="ignore"):  # of infinities, which it counts as a failure
        # A mean is over all images, as in a tolerance; a maximum holds for every one.
        (judged,) = comparator.compare_accuracy(results, compare_func=judge, check_average=statistic == "mean")
        (by_image,) = judged.values()
        verdicts = [judged.average_results()] if statistic == "mean" else by_image
    return tuple(
        OutputVerdict(
            name,
            all(bool(verdict[name]) for verdict in verdicts),
            float(np.max([image[name].max_absdiff for image in by_image])),
            float(np.mean([image[name].mean_absdiff for image in by_image])),
            statistic,
            limit,
        )
        for name, limit in limits.items()
    )


def make_runner(runtime: Runtime, name: str, undecided: NDArray[np.bool_] | None = None) -> Any:
    """A Polygraphy runner of a runtime that is open; whoever opened the runtime closes it.

    It takes a dense graph's inputs. undecided: of one image after another, see `polygraphy_compare`.
    """
    common = _module("common")
    base: Any = _module("backend.base").BaseRunner

    class RuntimeRunner(base):  # type: ignore[misc]
        """`run` as `infer`."""

        def __init__(self) -> None:
            super().__init__(name=name)
            self._images = 0

        def activate_impl(self) -> None:
            self._images = 0

        def get_input_metadata_impl(self) -> Any:
            metadata = common.TensorMetadata()
            for tensor in input_tensors(runtime.spec):
                metadata.add(tensor.name, np.dtype(tensor.dtype), tensor.shape)
            return metadata

        def infer_impl(self, feed_dict: Arrays) -> Any:
            start = time.perf_counter()
            found = runtime.run(feed_dict)
            self.inference_time = time.perf_counter() - start
            outputs = OrderedDict((output, found[output]) for output in (IMAGE, PIXELS))
            if undecided is not None:
                count = len(found[IMAGE])
                _blank(outputs, undecided[self._images : self._images + count])
                self._images += count
            return outputs

    return RuntimeRunner()


def require_polygraphy() -> str:
    """Polygraphy's version. Raises MissingDependencyError where it is missing or too old."""
    try:
        version = str(importlib.import_module("polygraphy").__version__)
    except ImportError as error:
        raise MissingDependencyError("Polygraphy is not installed: it compares two runtimes", hint=_INSTALL) from error
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingDependencyError(f"Polygraphy {version} is too old; {oldest} or newer is needed", hint=_INSTALL)
    return version


def _module(name: str) -> Any:  # it has no types
    return importlib.import_module(f"polygraphy.{name}")


def _limits(tolerance: Tolerance) -> tuple[str, dict[str, float]]:
    """The statistic, and each output's limit, that follow from both runtimes being within `tolerance`."""
    statistic, limit = tolerance.of_two_runtimes()
    # An image of [-1, 1] becomes pixels of 0..255; truncation adds less than one step.
    return statistic, {IMAGE: limit, PIXELS: 127.5 * limit + 1}


def _blank(outputs: Arrays, undecided: NDArray[np.bool_]) -> None:
    # What is not finite stays: that is no rounding.
    image, pixels = outputs[IMAGE], outputs[PIXELS]
    outputs[IMAGE] = np.where(undecided & np.isfinite(image), np.float32(0), image)
    outputs[PIXELS] = np.where(undecided.transpose(0, 2, 3, 1), np.uint8(0), pixels)
