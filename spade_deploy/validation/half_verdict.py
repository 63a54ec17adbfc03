"""Right or wrong where half precision is real: an fp16 graph, emulated on a validation's inputs and on stress maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spade_deploy.artifact import IMAGE, LABEL, LOGITS, PIXELS, Arrays, Artifact, Graph
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.judge import (
    DiffAccumulator,
    Judge,
    OutputDiff,
    Tolerance,
    logit_margin,
    tolerance_for,
)
from spade_deploy.spec import Precision
from spade_deploy.validation.half_emulation import Emulated, EmulatedGraph

STRESS_MIN_PSNR_DB = 40.0
"""Held on each stress map, where a reference is known. Five less than on ordinary maps: noise has larger activations
and so larger roundings. Measured worst 54.6 dB: pix2pixHD, one class alone."""
_OVERFLOWS = "overflows"
MOST_INPUTS = 8
"""Of a folder of label maps, as many are emulated as well: each takes about twice its time in ONNX Runtime."""


@dataclass(frozen=True)
class StressResult:
    """One stress map. psnr_db: None where there is no error or no reference, see `is_judged`."""

    name: str
    psnr_db: float | None
    is_judged: bool
    failures: tuple[str, ...]


@dataclass(frozen=True)
class HalfVerdict:
    """What was found; `failures` is empty where the graph is right in real half precision.

    diff: over the first inputs of the validation, `images` of them. keep: the unit that overflows first, if any does.
    skipped: why nothing was emulated; all else is empty then, and nothing is known of real half precision.
    """

    failures: tuple[str, ...] = ()
    diff: OutputDiff | None = None
    stress: tuple[StressResult, ...] = ()
    keep: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def flags(self) -> str:
        """The options of `spade export` that help."""
        return " ".join(f"--keep-fp32 {name}" for name in self.keep)

    @property
    def worst_stress_db(self) -> float | None:
        """The lowest PSNR on a stress map; None where no map was compared, or none differs."""
        return min((one.psnr_db for one in self.stress if one.psnr_db is not None), default=None)

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"real half precision was not emulated: {self.skipped}"
        assert self.diff is not None
        if self.failures:
            return f"in real half precision, emulated: {'; '.join(self.failures)}"
        said = "no difference" if self.diff.psnr_db is None else f"{self.diff.psnr_db:.1f} dB"
        maps = f"{self.diff.images} input{'s' if self.diff.images > 1 else ''} and {len(self.stress)} stress maps"
        worst = "" if self.worst_stress_db is None else f"; on the worst of these {self.worst_stress_db:.1f} dB"
        return f"in real half precision, emulated: {said}, no overflow on {maps}{worst}"

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": None if self.skipped is not None else not self.failures,
            "skipped": self.skipped,
            "failures": list(self.failures),
            "keep_fp32": list(self.keep),
            "figures": None if self.diff is None else self.diff.to_json(),
            "stress": [
                {"map": one.name, "psnr_db": one.psnr_db, "judged": one.is_judged, "failures": list(one.failures)}
                for one in self.stress
            ],
        }


@dataclass
class HalfJudge:
    """Runs the emulation beside a validation. Raises what `EmulatedGraph` raises."""

    artifact: Artifact
    graph: Graph
    _judge: Judge = field(init=False)
    _all: DiffAccumulator = field(init=False)
    _overflows: dict[str, list[str]] = field(init=False, default_factory=dict)
    _stress: list[StressResult] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        with self.artifact.vouched(self.graph.file) as path:
            self._emulated = EmulatedGraph(path)
        labels = self.artifact.manifest.generator.labels
        self._names = tuple(labels.name_of(label_id) for label_id in range(labels.num_ids))
        self._rounding = self.artifact.manifest.rounding
        self._margin = logit_margin(Precision.FP16, self._rounding)
        self._judge, self._all = Judge(self._names, self._margin), DiffAccumulator(self._names)

    def add(self, inputs: Arrays, expected: Arrays) -> None:
        """One input of the validation, N of 1, and `pixels`, `image` and `logits` of the reference."""
        if self._all.images == MOST_INPUTS:
            return
        found = self._run(inputs)
        self._note_overflow(found, f"input {self._all.images + 1}")
        trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found.outputs[IMAGE], found.outputs[PIXELS])
        self._all.add(inputs[LABEL], trusted, candidate)
        self._judge.add(inputs[LABEL], expected[LOGITS], trusted, candidate)

    def add_stress(self, name: str, inputs: Arrays, expected: Arrays | None) -> None:
        """One stress map; expected: None where the reference cannot be asked, and overflow alone is looked for."""
        found = self._run(inputs)
        psnr_db = None
        failures = [_OVERFLOWS] if self._note_overflow(found, name) else []
        if expected is not None:
            trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found.outputs[IMAGE], found.outputs[PIXELS])
            one = Judge(self._names, self._margin)
            one.add(inputs[LABEL], expected[LOGITS], trusted, candidate)
            diff = one.result()
            psnr_db = diff.psnr_db
            if not failures:
                failures = diff.failures(Tolerance(min_psnr_db=STRESS_MIN_PSNR_DB))
        self._stress.append(StressResult(name, psnr_db, expected is not None, tuple(failures)))

    def verdict(self) -> HalfVerdict:
        """After one input at least."""
        failures, keep = [], []
        for first, places in self._overflows.items():
            more = f" and {len(places) - 1} other maps" if len(places) > 1 else ""
            unit = self._emulated.unit_of(first)
            what = f"{first} overflows" if unit is None else f"{unit} overflows (--keep-fp32 {unit})"
            failures.append(f"{what} on {places[0]}{more}")
            keep += [] if unit is None else [unit]
        if not failures:
            failures = self._judge.failures(tolerance_for(Precision.FP16, self._rounding))
        failures += [f"{one.name}: {why}" for one in self._stress for why in one.failures if why != _OVERFLOWS]
        return HalfVerdict(tuple(failures), self._all.result(), tuple(self._stress), tuple(dict.fromkeys(keep)))

    def _run(self, inputs: Arrays) -> Emulated:
        return self._emulated.run(graph_inputs(self.artifact.manifest.generator, self.graph.kind, inputs))

    def _note_overflow(self, found: Emulated, where: str) -> bool:
        """Whether anything overflowed; what came first is what is to be mended, all else follows from it.

        It counts whatever the image looks like: tanh makes 1 of infinity.
        """
        if found.overflows:
            self._overflows.setdefault(found.overflows[0], []).append(where)
        return bool(found.overflows)


def stress_failures(verdict: HalfVerdict | None) -> Sequence[str]:
    """The names of the stress maps that a graph failed on."""
    return () if verdict is None else tuple(one.name for one in verdict.stress if one.failures)
