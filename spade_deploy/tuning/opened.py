"""A candidate that is open: its graphs are opened as they are needed, and none is used before its images were judged.

The images are those of the golden maps, made on this machine. A processor or a library that computes wrongly is found
here, whatever it was like where the artifact was exported.
"""

from __future__ import annotations

import logging
from typing import cast

from spade_deploy.artifact import LABEL, Artifact, one_by_one
from spade_deploy.engines.base import Runtime, TableRuntime
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ValidationFailedError
from spade_deploy.metrics.judge import Judge
from spade_deploy.metrics.tolerances import tolerance_for
from spade_deploy.spec import GraphChoice, GraphKind
from spade_deploy.tuning.record import EngineChoice, GoldenCheck, Notebook
from spade_deploy.tuning.wish import Wish, name_of

_LOG = logging.getLogger(__name__)


class Opened:
    """One candidate. notebook: has what earlier checks found, and gets each new one."""

    def __init__(self, wish: Wish, candidate: EngineChoice, notebook: Notebook) -> None:
        self.candidate = candidate
        self.wish, self._notebook = wish, notebook
        self._graphs: dict[GraphKind, Runtime] = {}
        exported = candidate.precision.exported
        found = [one for one in wish.artifact.manifest.graphs if one.precision is exported]
        self._lookup = next((one for one in found if one.kind is GraphKind.LOOKUP), None)

    @property
    def name(self) -> str:
        """The engine and the precision, for people: 'OpenVINO bf16'."""
        return name_of(self.candidate)

    @property
    def is_open(self) -> bool:
        """Whether one of its graphs is open."""
        return bool(self._graphs)

    @property
    def has_both(self) -> bool:
        """Whether the artifact has a lookup graph beside the dense one."""
        return self._lookup is not None

    @property
    def manifest_share(self) -> float | None:
        """The break-even of the lookup graph that was measured at export, in ONNX Runtime."""
        return None if self._lookup is None else self._lookup.break_even_share

    def main_kind(self, share: float | None) -> GraphKind:
        """The graph that is opened first; share: the break-even, if one was measured in this engine."""
        if self.wish.graph is GraphChoice.AUTO:
            return GraphKind.LOOKUP if (self.manifest_share if share is None else share) else GraphKind.DENSE
        return GraphKind(str(self.wish.graph))

    def graph(self, kind: GraphKind) -> Runtime:
        """A graph, ready to run. Raises ValidationFailedError if its images are wrong here, and the engine's errors."""
        if kind not in self._graphs:
            wish, candidate = self.wish, self.candidate
            known = self._notebook.record.check_of(candidate, kind)
            if known is None or not known.failures:
                runtime = open_runtime(wish.artifact, candidate.precision, candidate.backend, wish.threads, str(kind))
                self._graphs[kind] = runtime
            if known is None:
                known = self._check(runtime, kind)
                self._notebook.add(known)
            if known.failures:
                raise ValidationFailedError(
                    f"the images of {self.name} {kind} are wrong on this machine: {'; '.join(known.failures)}",
                    hint="`spade validate` says more; please report it with what `spade doctor` prints",
                )
        return self._graphs[kind]

    def runtime(self, share: float | None) -> Runtime:
        """What runs: the graph that was asked for, or with `auto` the one that is faster for each map.

        share: the break-even that was measured in this engine; the manifest's if it is None. The dense graph beside a
        lookup graph is opened, and checked, when the first map needs it. If it is wrong, the lookup graph runs all.
        """
        kind = self.main_kind(share)
        main = self.graph(kind)
        if kind is GraphKind.DENSE or self.wish.graph is not GraphChoice.AUTO:
            return main
        found = self.manifest_share if share is None else share
        assert found is not None  # else the main graph would be the dense one
        return AutoRuntime(cast(TableRuntime, main), self._dense_beside, found)

    def close(self, *, except_for: GraphKind | None = None) -> None:
        """Close every graph that is open, or all but one."""
        for kind in [kind for kind in self._graphs if kind is not except_for]:
            self._graphs.pop(kind).close()

    def _dense_beside(self) -> Runtime:
        try:
            return self.graph(GraphKind.DENSE)
        except ValidationFailedError as error:
            _LOG.warning("%s; every map runs on the lookup graph", error.message)
            return self.graph(GraphKind.LOOKUP)

    def _check(self, runtime: Runtime, kind: GraphKind) -> GoldenCheck:
        golden = self.wish.artifact.golden()
        judge = _judge(self.wish.artifact, self.candidate, kind)
        outputs = zip(*(one_by_one(arrays) for arrays in (golden.inputs, golden.outputs)), strict=True)
        for inputs, expected in outputs:
            judge.add(inputs[LABEL], expected, runtime.run(inputs))
        verdict = judge.verdict()
        return GoldenCheck(self.candidate, kind, verdict.failures, verdict.decided.psnr_db)


def _judge(artifact: Artifact, candidate: EngineChoice, kind: GraphKind) -> Judge:
    """The judge of a graph in an engine, with the tolerance of the precision that it runs in."""
    manifest = artifact.manifest
    goal = artifact.graph(candidate.precision.exported, kind).min_psnr_db
    tolerance = tolerance_for(candidate.precision, manifest.rounding, goal)
    return Judge(manifest.generator.labels, candidate.precision, manifest.rounding, tolerance)
