"""The request for a bench, and the plan that follows from it: which candidates run, on which inputs, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.artifact import LABEL, Arrays, Artifact
from spade_deploy.bench.candidates import ALL_BASELINES, BASELINES, Candidate, choose_candidates
from spade_deploy.bench.inputs import read_cases
from spade_deploy.engines.base import parse_backend
from spade_deploy.errors import ConfigError
from spade_deploy.images.image_file import Size
from spade_deploy.labels.pairs import require_labels
from spade_deploy.settings import check_positive, check_range, check_ranges, setting
from spade_deploy.spec import MAX_BATCH, Backend, Precision, parse_size

DEFAULT_ROUNDS = 20
MAX_ROUNDS = 1_000_000


@dataclass(frozen=True)
class BenchRequest:
    """Which graphs of an artifact, and which baselines, are measured on which label maps."""

    labels: Path | None = setting(None, help="Label maps to run; default: the golden inputs.")
    instances: Path | None = setting(None, help="Instance maps of these label maps, paired by stem.")
    precisions: tuple[Precision, ...] = setting(
        (), help="Precision to measure; may be repeated; default: all in the artifact.", flag="precision"
    )
    graphs: tuple[str, ...] = setting(
        (), help="dense, lookup or auto; may be repeated; default: all graphs.", flag="graph"
    )
    baselines: tuple[str, ...] = setting(
        (), help=f"{', '.join(BASELINES)} or {ALL_BASELINES}; may be repeated.", flag="baseline"
    )
    backend: Backend | str = setting(Backend.AUTO, help="Engine that runs the graphs; baselines run on the CPU.")
    batch_size: int = setting(1, help="Batch size (images per run of the graph).", least=1, most=MAX_BATCH)
    size: Size | None = setting(None, help="HEIGHTxWIDTH to run at instead of the model's size.", parse=parse_size)
    threads: int | None = setting(None, help="Threads of every candidate; default: one per core.")
    rounds: int = setting(
        DEFAULT_ROUNDS, help="Number of rounds; in each, every candidate runs one batch.", least=1, most=MAX_ROUNDS
    )
    checkpoint: Path | None = setting(None, help="Checkpoint for the baselines; default: found by its digest.")

    def __post_init__(self) -> None:
        check_ranges(self)
        check_positive("threads", self.threads)
        parse_backend(str(self.backend))
        require_labels(self.labels, self.instances)

    def plan(self, artifact: Artifact, runs_dir: Path) -> BenchPlan:
        """The candidates and their label maps. Raises ConfigError, ArtifactError, NotFoundError, LabelMapError."""
        candidates = choose_candidates(artifact, self.precisions, self.graphs, self.baselines, self.backend)
        most = self.rounds * self.batch_size
        cases = read_cases(artifact, self.labels, self.instances, self.batch_size, self.size, most=most)
        return BenchPlan(
            candidates,
            cases,
            rounds=self.rounds,
            threads=self.threads,
            backend=self.backend,
            checkpoint=self.checkpoint,
            runs_dir=runs_dir,
        )


@dataclass(frozen=True)
class BenchPlan:
    """What a bench does: in each round every candidate runs the same case once."""

    candidates: Sequence[Candidate]
    """The candidates that are measured."""

    cases: Sequence[Arrays]
    """Batches of the graph's inputs, all of one shape, run in turn."""

    names: Sequence[str] | None = None
    """The names of the cases in the result; by default their numbers."""

    rounds: int = DEFAULT_ROUNDS
    """How many rounds there are, at most."""

    threads: int | None = None
    """CPU threads of every candidate, never more than the cores that may be used; None takes all of these."""

    backend: Backend | str = Backend.AUTO
    """What runs the artifact's graphs."""

    checkpoint: Path | None = None
    """The checkpoint that baselines load; None looks for the one with the digest that the artifact names."""

    runs_dir: Path = Path("runs")
    """The folder in which the checkpoint is looked for."""

    kept: Path | None = None
    """A folder in which the plain export, what is converted from it and the reference's images are kept between calls;
    None makes them anew each time."""

    limit_s: float | None = None
    """After so many seconds no further round begins; the first round always runs."""

    def __post_init__(self) -> None:
        if not self.candidates or not self.cases:
            raise ConfigError("there is nothing to measure: no candidates or no label maps")
        check_positive("threads", self.threads)
        check_range("rounds", self.rounds, 1, MAX_ROUNDS)
        parse_backend(str(self.backend))
        shapes = {case[LABEL].shape for case in self.cases}
        if len(shapes) > 1:
            raise ConfigError(f"the label maps of one bench have one shape; found {sorted(shapes)}")
