"""The result of a validation: the verdict on each graph of an artifact, and images to look at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import Graph
from spade_deploy.errors import ValidationFailedError
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.metrics.differences import OutputDiff
from spade_deploy.metrics.tolerances import UNDECIDED, Tolerance
from spade_deploy.spec import RoundingError
from spade_deploy.tuning.break_even import BreakEven
from spade_deploy.validation.half_precision import HalfVerdict


@dataclass(frozen=True)
class SampleImages:
    """One image for the report."""

    label: NDArray[Any]
    """The label map, H x W ids."""
    reference: NDArray[np.uint8]
    """The pixels of the reference, H x W x 3."""
    candidates: Mapping[str, NDArray[np.uint8]]
    """The pixels of each graph by its name, H x W x 3."""
    photo: NDArray[np.uint8] | None = None
    """The real photo of the label map, H x W x 3; None where there is none."""


@dataclass(frozen=True)
class GraphResult:
    """The verdict on one graph."""

    graph: Graph
    """The graph."""
    runtime: str
    """The name of the runtime that ran it."""
    diff: OutputDiff
    """The figures over all values."""
    tolerance: Tolerance
    """The limits that it was held to."""
    failures: tuple[str, ...]
    """One sentence for each limit that is exceeded, also in `half`; empty if the graph passed."""
    decided: OutputDiff | None = None
    """The figures over the values that the verdict is over; None where these are all values."""
    undecided_share: float = 0.0
    """The share of values that rounding alone decides (`tolerances.is_undecided`); the verdict is over the others."""
    diverges_at: str | None = None
    """For a graph that failed, the first wrong tensor, or why it could not be found."""
    second_opinion: str | None = None
    """For a TensorRT engine, Polygraphy's comparison with ONNX Runtime, or why there is none."""
    seconds: tuple[float, ...] = ()
    """How long the runtime took for each image, in the order of the inputs."""
    half: HalfVerdict | None = None
    """For an fp16 graph that a CPU ran, the verdict on it in emulated real half precision."""

    break_even: BreakEven | None = None
    """For a lookup graph, its times beside the dense graph's, if the request asked for them."""

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def median_seconds(self) -> float | None:
        """The median time of an image; of several, the first one is left out, since a runtime warms up in it."""
        return statistics.median(self.seconds[1:] or self.seconds) if self.seconds else None

    @property
    def judged(self) -> OutputDiff:
        """The figures that the verdict is over."""
        return self.diff if self.decided is None else self.decided

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the verdict leaves out, and why, in a sentence each; empty if every error is held to a limit."""
        found = []
        if self.undecided_share > 0:
            found.append(
                f"{self.undecided_share:.3g} of all values, with errors up to {self.diff.max_abs:.3g}: rounding alone"
                " decides them, as the logit is closer to zero there than its rounding error"
            )
        if self.tolerance.max_abs is None and self.judged.max_abs > UNDECIDED:
            found.append(
                f"the max error of {self.judged.max_abs:.3g}: single values have no limit in {self.graph.precision},"
                f" which is held to {self._held_to()}"
            )
        return tuple(found)

    def _held_to(self) -> str:
        limits = {"mean error": self.tolerance.mean_abs, "PSNR": self.tolerance.min_psnr_db}
        limits["SSIM"] = self.tolerance.min_ssim
        return ", ".join(name for name, limit in limits.items() if limit is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            "precision": self.graph.precision,
            "kind": self.graph.kind,
            "runtime": self.runtime,
            "median_seconds_per_image": self.median_seconds,
            "passed": self.passed,
            "failures": list(self.failures),
            "left_out_of_the_verdict": list(self.left_out),
            "undecided_share": self.undecided_share,
            "diverges_at": self.diverges_at,
            "second_opinion": self.second_opinion,
            "real_half_precision": None if self.half is None else self.half.to_json(),
            "tolerance": self.tolerance.to_json(),
            "figures": self.diff.to_json(),
            "judged_figures": self.judged.to_json(),
        }


@dataclass(frozen=True)
class ValidationReport:
    """All verdicts on one artifact."""

    artifact: Path
    """The folder of the artifact."""
    reference: str
    """The name of the reference, for people."""
    inputs: str
    """The label maps that the graphs were run on, for people."""
    rounding: RoundingError
    """The float32 error that eager PyTorch itself has."""
    results: tuple[GraphResult, ...]
    """The verdict on each graph."""
    samples: tuple[SampleImages, ...]
    """Images for the report."""
    skipped: tuple[str, ...] = ()
    """A sentence for each label map that could not be read."""
    stress: tuple[StressMap, ...] = ()
    """The maps that half precision was emulated on besides the inputs."""

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "reference": self.reference,
            "inputs": self.inputs,
            "rounding_of_the_reference": asdict(self.rounding),
            "skipped": list(self.skipped),
            "graphs": [result.to_json() for result in self.results],
        }

    def require_passed(self) -> None:
        """Raise ValidationFailedError, with every failure, unless all graphs passed."""
        failed = [result for result in self.results if not result.passed]
        if not failed:
            return
        lines = []
        for result in failed:
            where = f"; {result.diverges_at}" if result.diverges_at else ""
            lines.append(f"{result.name} ({result.runtime}): {'; '.join(result.failures)}{where}")
        raise ValidationFailedError(
            f"{self.artifact} is not what was trained: " + " | ".join(lines),
            hint=self._next_step(failed),
        )

    def _next_step(self, failed: list[GraphResult]) -> str:
        halves = [result.half for result in failed if result.half is not None]
        flags = " ".join(dict.fromkeys(half.flags for half in halves if half.keep))
        if flags:
            return f"keep in float32 what overflows: spade export --fp16 {flags}; or export in float32 alone"
        if all(result.half is not None and len(result.failures) == len(result.half.failures) for result in failed):
            search = f"spade validate {self.artifact} --find-precision"
            return f"`{search}` finds what must stay float32; or export in float32 alone"
        return "do not deploy it; export again, and report the layer that is named if it fails again"
