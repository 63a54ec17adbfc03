"""What somebody asks of `auto` on a CPU, and the candidates that could do it here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import RuntimeRequest
from spade_deploy.engines.open import ENGINES, Engine
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.settings import check_one_of
from spade_deploy.spec import Backend, GraphChoice, GraphKind, Precision, PrecisionChoice
from spade_deploy.tuning.record import EngineChoice

DEFAULT_MIN_PSNR_DB = 45.0
"""The PSNR that `fastest` asks for if nothing else is said: the eye sees no difference."""
ON_A_CPU = (Precision.FP32, Precision.BF16, Precision.INT8)
"""The precisions that `fastest` chooses from. No CPU engine computes in fp16: such a graph only converts more."""


@dataclass(frozen=True)
class Wish:
    """A request for a runtime on a CPU."""

    artifact: Artifact
    """What runs."""
    precision: Precision | None
    """The precision that was named; None if none was, or the fastest is wanted."""
    min_psnr_db: float | None
    """The PSNR that the fastest precision has to reach; None if the fastest is not asked for."""
    backend: str
    """The engine that was named, or `auto`."""
    threads: int | None
    """The number of CPU threads; None is one a core."""
    graph: GraphChoice
    """The graph that was asked for."""
    images: int | None
    """How many images will be made; None for many."""

    @property
    def usual(self) -> Precision:
        """The precision that runs if none is named."""
        return self.artifact.graph().precision

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that may run."""
        if self.min_psnr_db is not None:
            return tuple(dict.fromkeys((self.usual, *ON_A_CPU)))
        return (self.precision or self.usual,)

    @property
    def hints(self) -> tuple[Precision, ...]:
        """The precisions that are measured only to say that they would be faster."""
        is_free = self.precision is None and self.min_psnr_db is None and self.usual is Precision.FP32
        return (Precision.BF16,) if is_free else ()

    def allows(self, candidate: EngineChoice) -> bool:
        """Whether a candidate is of an engine and a precision that may run."""
        return candidate.precision in self.precisions and self.backend in (Backend.AUTO, candidate.backend)

    def candidates(self, precisions: Iterable[Precision]) -> list[EngineChoice]:
        """What can run these precisions here, ONNX Runtime before OpenVINO. Only now engines are asked for bf16."""
        return [
            EngineChoice(engine.backend, precision)
            for precision in precisions
            for engine in ENGINES
            if self._can_run(engine, precision)
        ]

    def _can_run(self, engine: Engine, precision: Precision) -> bool:
        if not engine.on_cpu or self.backend not in (Backend.AUTO, engine.backend):
            return False
        if precision is Precision.BF16 and not engine.has_bf16:
            return False
        kind = GraphKind.LOOKUP if self.graph is GraphChoice.LOOKUP else GraphKind.DENSE
        there = [(graph.precision, graph.kind) for graph in self.artifact.manifest.graphs]
        if (precision.exported, kind) not in there:
            return False
        request = RuntimeRequest(self.artifact, engine.backend, precision, self.threads, self.graph)
        try:
            return bool(engine.load().can_run(request))
        except SpadeError:  # it is installed, but does not load; who asks for it by name is told why
            return False


def engine_of(candidate: EngineChoice) -> Engine:
    """The engine of a candidate."""
    return next(engine for engine in ENGINES if engine.backend == candidate.backend)


def name_of(candidate: EngineChoice) -> str:
    """A candidate's name for people: 'OpenVINO bf16'."""
    return f"{engine_of(candidate).title} {candidate.precision}"


def parse_precision(
    precision: Precision | PrecisionChoice | str | None, min_psnr_db: float | None
) -> tuple[Precision | None, float | None]:
    """The precision that is named, None for the fastest; and the PSNR that the fastest has to reach, else None.

    Raises ConfigError for an unknown name, and for a PSNR without `fastest`.
    """
    if precision is not None:
        check_one_of("precision", str(precision), PrecisionChoice)
    if precision == PrecisionChoice.FASTEST:
        least = DEFAULT_MIN_PSNR_DB if min_psnr_db is None else min_psnr_db
        if not 0 < least < float("inf"):
            raise ConfigError(f"`min_psnr_db`: {least:g} is not a positive number of decibels")
        return None, least
    if min_psnr_db is not None:
        raise ConfigError(
            "`min_psnr_db` says which precisions `precision` fastest may take; no other setting uses it",
            hint="add `precision` fastest, or leave `min_psnr_db` out",
        )
    return (None if precision is None else Precision(str(precision))), None
