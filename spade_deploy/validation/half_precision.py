"""Judge an fp16 graph in real half precision, which is emulated on a validation's inputs and on stress maps.

ONNX Runtime's CPU kernels and OpenVINO compute an fp16 graph in float32, so their results prove nothing about a GPU.
The emulation is in `half_emulation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

from spade_deploy.artifact import LABEL, Arrays, Artifact, Graph
from spade_deploy.engines.base import Runtime
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CPU
from spade_deploy.errors import MissingDependencyError, NotFoundError, RuntimeUnavailableError
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.metrics.differences import OutputDiff
from spade_deploy.metrics.judge import Judge
from spade_deploy.metrics.tolerances import STRESS_MIN_PSNR_DB
from spade_deploy.progress import Progress
from spade_deploy.retrieval.bank_file import bank_of
from spade_deploy.spec import Precision
from spade_deploy.validation.half_emulation import Emulated, EmulatedGraph

_OVERFLOWS = "overflows"
MOST_INPUTS = 8
"""How many label maps of a folder are emulated at most; each takes about twice as long as in ONNX Runtime."""


@dataclass(frozen=True)
class StressResult:
    """The result of one stress map."""

    name: str
    """What the map shows."""
    psnr_db: float | None
    """The PSNR against the reference; None if there is no error, or no reference."""
    is_judged: bool
    """Whether there was a reference that is right itself; without one, only overflow is looked for."""
    failures: tuple[str, ...]
    """One sentence for each limit that is exceeded."""
    own_psnr_db: float | None = None
    """The PSNR of the reference itself against the same weights in float64, where that is why the map is not judged."""


@dataclass(frozen=True)
class HalfVerdict:
    """Whether a graph is right in real half precision."""

    failures: tuple[str, ...] = ()
    """One sentence for each failure; empty if the graph is right, or nothing was emulated."""
    diff: OutputDiff | None = None
    """The figures over the first inputs of the validation; `diff.images` says how many."""
    stress: tuple[StressResult, ...] = ()
    """The results of the stress maps."""
    keep: tuple[str, ...] = ()
    """The unit that overflows first on each map; kept in float32 it would not."""
    skipped: str | None = None
    """Why nothing was emulated; then nothing is known of real half precision, and all other fields are empty."""

    @property
    def flags(self) -> str:
        """The options of `spade export` that help."""
        return " ".join(f"--keep-fp32 {name}" for name in self.keep)

    @property
    def worst_stress_db(self) -> float | None:
        """The lowest PSNR on a stress map; None if no map was compared, or none differs from the reference."""
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
        unfit = [one.own_psnr_db for one in self.stress if one.own_psnr_db is not None]
        if unfit:
            worst += (
                f"; on {len(unfit)} of them overflow alone was looked for, since float32 itself is as far as"
                f" {min(unfit):.1f} dB from float64 there"
            )
        return f"in real half precision, emulated: {said}, no overflow on {maps}{worst}"

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": None if self.skipped is not None else not self.failures,
            "skipped": self.skipped,
            "failures": list(self.failures),
            "keep_fp32": list(self.keep),
            "figures": None if self.diff is None else self.diff.to_json(),
            "stress": [
                {
                    "map": one.name,
                    "psnr_db": one.psnr_db,
                    "judged": one.is_judged,
                    "float32_psnr_db": one.own_psnr_db,
                    "failures": list(one.failures),
                }
                for one in self.stress
            ],
        }


@dataclass
class HalfJudge:
    """Emulates one graph and judges what it gives. Raises what `EmulatedGraph` raises."""

    artifact: Artifact
    """The artifact."""
    graph: Graph
    """The fp16 graph that is judged."""
    _judge: Judge = field(init=False)
    _overflows: dict[str, list[str]] = field(init=False, default_factory=dict)
    _stress: list[StressResult] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        with self.artifact.vouched(self.graph.file) as path:
            self._emulated = EmulatedGraph(path)
        self._bank = bank_of(self.artifact)
        self._labels, self._rounding = self.artifact.manifest.generator.labels, self.artifact.manifest.rounding
        self._judge = Judge(self._labels, Precision.FP16, self._rounding)

    def add(self, inputs: Arrays, expected: Arrays) -> None:
        """Judge one input of the validation, with N = 1, against `pixels`, `image` and `logits` of the reference."""
        found = self._run(inputs)
        self._note_overflow(found, f"input {self._judge.images + 1}")
        self._judge.add(inputs[LABEL], expected, found.outputs)

    def add_stress(
        self, name: str, inputs: Arrays, expected: Arrays | None, own_psnr_db: Callable[[], float | None] = lambda: None
    ) -> None:
        """Judge one stress map. expected: the reference's outputs; with None only overflow is looked for.

        own_psnr_db: the PSNR of the reference itself, against float64. It is asked for a map that fails. Where it is
        under the limit as well, no image of the map is right, and only overflow counts. Instance norm makes such maps:
        of a map of one class every channel is constant, and what it divides is the rounding error alone.
        """
        found = self._run(inputs)
        psnr_db = None
        failures: Sequence[str] = [_OVERFLOWS] if self._note_overflow(found, name) else []
        if expected is not None:
            one = Judge.of_stress_map(self._labels, self._rounding)
            one.add(inputs[LABEL], expected, found.outputs)
            verdict = one.verdict()
            psnr_db = verdict.decided.psnr_db
            if not failures and verdict.failures:
                own = own_psnr_db()
                if own is not None and own < STRESS_MIN_PSNR_DB:
                    self._stress.append(StressResult(name, None, False, (), own))
                    return
                failures = verdict.failures
        self._stress.append(StressResult(name, psnr_db, expected is not None, tuple(failures)))

    def verdict(self) -> HalfVerdict:
        """The verdict on everything that was added; at least one input."""
        failures, keep = [], []
        for first, places in self._overflows.items():
            more = f" and {len(places) - 1} other maps" if len(places) > 1 else ""
            unit = self._emulated.unit_of(first)
            what = f"{first} overflows" if unit is None else f"{unit} overflows (--keep-fp32 {unit})"
            failures.append(f"{what} on {places[0]}{more}")
            keep += [] if unit is None else [unit]
        verdict = self._judge.verdict()
        failures = failures or [*verdict.failures]
        failures += [f"{one.name}: {why}" for one in self._stress for why in one.failures if why != _OVERFLOWS]
        return HalfVerdict(tuple(failures), verdict.diff, tuple(self._stress), tuple(dict.fromkeys(keep)))

    def _run(self, inputs: Arrays) -> Emulated:
        return self._emulated.run(graph_inputs(self.artifact.manifest.generator, self.graph.kind, inputs, self._bank))

    def _note_overflow(self, found: Emulated, where: str) -> bool:
        """Whether anything overflowed. Only the first tensor is reported, as the others follow from it.

        An overflow counts even if the image looks right: tanh makes 1 of infinity.
        """
        if found.overflows:
            self._overflows.setdefault(found.overflows[0], []).append(where)
        return bool(found.overflows)


def stress_failures(verdict: HalfVerdict | None) -> Sequence[str]:
    """The names of the stress maps that a graph failed on."""
    return () if verdict is None else tuple(one.name for one in verdict.stress if one.failures)


def computes_half_in_float32(runtime: Runtime) -> bool:
    """Whether a runtime, as those of a CPU do, computes an fp16 graph in float32, which proves nothing about a GPU."""
    return isinstance(runtime, OpenVinoRuntime) or (isinstance(runtime, OrtRuntime) and runtime.provider == CPU)


class Trusted(Protocol):
    """The reference, of which only the outputs are needed here."""

    def images(self, inputs: Arrays) -> Arrays:
        """`pixels`, `image` and `logits`. Raises NotFoundError where they are not known."""

    def own_psnr_db(self, inputs: Arrays) -> float | None:
        """The PSNR of its own image in float32 against float64; None where both are equal, or it is not known."""


class HalfPrecisionCheck:
    """Emulates the fp16 graphs that a CPU runs in a validation; all other graphs pass by.

    stress: the maps that are emulated beside the inputs of the validation.
    """

    def __init__(self, artifact: Artifact, reference: Trusted, stress: tuple[StressMap, ...]) -> None:
        self.stress = stress
        self._artifact, self._reference = artifact, reference
        self._expected: dict[str, Arrays | None] = {}
        self._own: dict[str, float | None] = {}

    def is_needed(self, graph: Graph, runtime: Runtime) -> bool:
        """Whether the runtime computes an fp16 graph in float32, so that it has to be emulated as well."""
        return graph.precision is Precision.FP16 and computes_half_in_float32(runtime)

    def verdict(self, graph: Graph, compared: Iterable[tuple[Arrays, Arrays]], progress: Progress) -> HalfVerdict:
        """The verdict on a graph, or the reason why it cannot be emulated.

        compared: inputs of the validation, each with the outputs of the reference; the first MOST_INPUTS are emulated.
        """
        try:
            judge = HalfJudge(self._artifact, graph)
        except (MissingDependencyError, RuntimeUnavailableError) as error:
            return HalfVerdict(skipped=error.message)
        for inputs, expected in islice(compared, MOST_INPUTS):
            judge.add(inputs, expected)
        for done, one in enumerate(self.stress, start=1):
            judge.add_stress(one.name, one.inputs, self._images(one), partial(self._own_psnr_db, one))
            progress.count(f"{graph.name} in real half precision, stress maps", done, len(self.stress))
        return judge.verdict()

    def _own_psnr_db(self, one: StressMap) -> float | None:
        if one.name not in self._own:
            self._own[one.name] = self._reference.own_psnr_db(one.inputs)
        return self._own[one.name]

    def _images(self, one: StressMap) -> Arrays | None:
        if one.name not in self._expected:
            try:
                self._expected[one.name] = self._reference.images(one.inputs)
            except NotFoundError:  # the golden outputs have no stress maps
                self._expected[one.name] = None
        return self._expected[one.name]
