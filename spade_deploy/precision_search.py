"""Which units a half-precision graph must keep in float32 to be within its tolerance where it really runs: a bisection.

The ranges that an export measures (`export/precision.py`) find what half precision cannot hold. What a runtime makes of
a graph may fail all the same: it fuses, adds up in half precision, or takes another algorithm. So here a graph is
exported, built and judged with one set of units in float32 after another, until a smallest set is found.

Polygraphy's `debug precision` goes the same way but cannot be used: it sets the precision of a layer in a TensorRT
network, which TensorRT 11 does not have any more. A strongly typed network has the types of its ONNX graph, so that
each trial is a graph of its own. Its units are those that `spade export --fp16 --keep-fp32 UNIT` takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from spade_deploy.artifact import (
    IMAGE,
    LABEL,
    LOGITS,
    PIXELS,
    Arrays,
    Artifact,
    Graph,
    graph_file,
    timing_cache_path,
    write_golden,
    write_manifest,
)
from spade_deploy.build import BuildRequest, build
from spade_deploy.compare import DiffAccumulator, decided_only, logit_margin, tolerance_for, too_undecided
from spade_deploy.engines.runtime import GraphChoice, Runtime, open_runtime
from spade_deploy.engines.trt_library import load_library
from spade_deploy.errors import ConfigError, ExportError, NotFoundError
from spade_deploy.export.deploy_model import unit_names
from spade_deploy.export.onnx_graph import write_onnx
from spade_deploy.export.pipeline import MODELS, model_inputs, run_reference
from spade_deploy.runs import find_checkpoint_by_digest, resolve_checkpoint
from spade_deploy.spec import GraphKind, Precision, RoundingError
from spade_deploy.training.checkpoint import load_generator
from spade_deploy.training.networks import SpadeGenerator

MOST_TRIALS = 32
"""Enough for four units of fourteen; a trial on a card is an export and a build, half a minute at full size."""


class Direction(StrEnum):
    """Which units are put in float32 first: forward those near the input, reverse those near the output."""

    FORWARD = "forward"
    REVERSE = "reverse"


@dataclass(frozen=True)
class Trial:
    """One graph that was judged: what it kept in float32, and what was wrong with it; nothing where it passed."""

    kept: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class PrecisionSearch:
    """What was found. All units in the order they run.

    held: kept from the outset. found: to be kept beside them; empty where the graph passes without.
    is_minimal: no unit of `found` can be left out; False where the trials were used up before that was certain.
    """

    held: tuple[str, ...]
    found: tuple[str, ...]
    trials: tuple[Trial, ...]
    is_minimal: bool

    def __str__(self) -> str:
        count = f"{len(self.trials)} trial{'s' if len(self.trials) > 1 else ''}"
        if not self.found:
            return f"half precision is within its tolerance here as it is ({count})"
        rest = "" if self.is_minimal else "; fewer may do, the trials were used up"
        return f"keep {', '.join(self.found)} in float32 ({count}{rest})"

    @property
    def flags(self) -> str:
        """The options of `spade export` that keep them."""
        return " ".join(f"--keep-fp32 {name}" for name in self.found)


FailuresWith = Callable[[tuple[str, ...]], Sequence[str]]
"""Units kept in float32, in order -> what is wrong with a graph that keeps just them, in sentences; empty: nothing."""


def find_layers_to_keep(
    units: Sequence[str],
    failures_with: FailuresWith,
    *,
    held: Collection[str] = (),
    direction: Direction = Direction.REVERSE,
    most_trials: int = MOST_TRIALS,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> PrecisionSearch:
    """A set of units, none of which can be left out, with which nothing is wrong.

    units: all there are, in the order they run. held: those that stay float32 in every trial.
    The smallest run of units from one end that helps is found by bisection. Its last unit is needed, the others may
    not be: with that unit kept, the search goes on among them until what is needed helps alone. m needed units of n
    take about m (log2 n + 1) + 2 trials. Where a unit more can make things worse, the set found is still one that
    was judged good. Raises ExportError where not even all units in float32 help.
    """
    if most_trials < 2:
        raise ConfigError(f"trials: {most_trials} is not 2 or more: without any unit and with all of them")
    trials = _Trials(units, failures_with, tuple(name for name in units if name in held), most_trials, on_trial)
    order = [name for name in units if name not in held]
    if direction is Direction.REVERSE:
        order.reverse()
    if trials.fails([]) and trials.fails(order):
        raise ExportError(
            f"no unit helps: with all {len(units)} in float32 it is still wrong: {'; '.join(trials.last.failures)}",
            hint="half precision is not to blame; `spade validate` names the first tensor that is wrong",
        )
    try:
        found = _leave_out(_bisect(order, trials), trials)
        is_minimal = True
    except _OutOfTrialsError:
        found, is_minimal = trials.smallest_good(), False
    return PrecisionSearch(
        trials.held, tuple(name for name in units if name in found), tuple(trials.done.values()), is_minimal
    )


def _bisect(order: Sequence[str], trials: _Trials) -> list[str]:
    # At all times `needed` and `rest` together are good.
    needed, rest = list[str](), list(order)
    while trials.fails(needed):
        low, high = 0, len(rest)  # the first `low` of the rest do not help, the first `high` do
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if trials.fails([*needed, *rest[:middle]]) else (low, middle)
        needed.append(rest[high - 1])
        rest = rest[: high - 1]
    return needed


def _leave_out(needed: list[str], trials: _Trials) -> list[str]:
    """Without the units that turn out not to be needed: there are none, unless a unit more made something worse."""
    for name in list(needed):
        without = [other for other in needed if other != name]
        if not trials.fails(without):
            needed = without
    return needed


class _OutOfTrialsError(Exception):
    pass


@dataclass
class _Trials:
    """Every set is judged once."""

    units: Sequence[str]
    failures_with: FailuresWith
    held: tuple[str, ...]
    most: int
    on_trial: Callable[[Trial], None]
    done: dict[frozenset[str], Trial] = field(default_factory=dict)

    def fails(self, kept: Collection[str]) -> bool:
        key = frozenset(kept)
        if key not in self.done:
            if len(self.done) == self.most:
                raise _OutOfTrialsError
            names = tuple(name for name in self.units if name in key or name in self.held)
            self.done[key] = Trial(names, tuple(self.failures_with(names)))
            self.on_trial(self.done[key])
        return not self.done[key].passed

    @property
    def last(self) -> Trial:
        return list(self.done.values())[-1]

    def smallest_good(self) -> frozenset[str]:
        return min((kept for kept, trial in self.done.items() if trial.passed), key=len)


Run = Callable[[Arrays], Arrays]
"""A dense graph's inputs by name -> `pixels` and `image`."""
Candidates = Callable[[tuple[str, ...]], AbstractContextManager[Run]]
"""Units kept in float32 -> the half-precision model that keeps them, ready to run."""


@dataclass(frozen=True)
class Evidence:
    """What trials are judged on, as `spade validate` judges.

    inputs: of a dense graph by name, N of each. reference: `pixels`, `image` and `logits` of the untouched module.
    """

    inputs: Arrays
    reference: Arrays
    rounding: RoundingError

    def failures(self, run: Run) -> tuple[str, ...]:
        """One sentence for each limit of a half-precision graph that is passed; one image is run at a time."""
        judged = DiffAccumulator(tuple(f"label {number}" for number in range(int(self.inputs[LABEL].max()) + 1)))
        margin = logit_margin(Precision.FP16, self.rounding)
        undecided = 0.0
        count = len(self.inputs[LABEL])
        for index in range(count):
            inputs, expected = (
                {name: array[index : index + 1] for name, array in arrays.items()}
                for arrays in (self.inputs, self.reference)
            )
            found = run(inputs)
            trusted, candidate = (expected[IMAGE], expected[PIXELS]), (found[IMAGE], found[PIXELS])
            decided, share = decided_only(expected[LOGITS], margin, trusted, candidate)
            judged.add(inputs[LABEL], trusted, decided)
            undecided += share / count
        limits = tolerance_for(Precision.FP16, self.rounding)
        return (*judged.result().failures(limits), *too_undecided(undecided))


def search_precision(
    artifact: Artifact,
    *,
    kind: GraphKind,
    open_candidate: Callable[[Artifact], Runtime],
    inputs: Arrays | None = None,
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    direction: Direction = Direction.REVERSE,
    most_trials: int = MOST_TRIALS,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> PrecisionSearch:
    """Find what the half-precision graph of an artifact must keep beside what it keeps already.

    open_candidate: opens the half-precision graph of a trial's artifact where the original failed, see
    `tensorrt_opener`. inputs: those that it failed on, by name; None: the artifact's golden ones.
    checkpoint: the weights that were exported; by default they are looked for by their digest.
    Raises ArtifactError where there is no such graph, ConfigError, NotFoundError, ExportError, and what
    `open_candidate` raises.
    """
    graph = artifact.graph(Precision.FP16, kind)
    generator = _exported_generator(artifact, checkpoint, runs_dir)
    golden = artifact.golden()
    reference = golden.outputs if inputs is None else run_reference(generator, inputs)
    evidence = Evidence(golden.inputs if inputs is None else inputs, reference, artifact.manifest.rounding)
    candidates = runtime_candidates(generator, kind, artifact, open_candidate)

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        with candidates(kept) as run:
            return evidence.failures(run)

    return find_layers_to_keep(
        unit_names(generator.spec),
        failures_with,
        held=graph.kept_fp32,
        direction=direction,
        most_trials=most_trials,
        on_trial=on_trial,
    )


def torch_candidates(generator: SpadeGenerator, kind: GraphKind) -> Candidates:
    """The deploy model itself in eager PyTorch on the CPU: no export and no build, for what fails there already."""

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        model = MODELS[kind](generator, fp16=True, keep_fp32=kept)

        def run(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                pixels, image = model(*model_inputs(model, inputs))
            return {PIXELS: pixels.numpy(), IMAGE: image.numpy()}

        yield run

    return candidate


def runtime_candidates(
    generator: SpadeGenerator, kind: GraphKind, like: Artifact, open_candidate: Callable[[Artifact], Runtime]
) -> Candidates:
    """Every trial is exported into an artifact of its own, which is gone after it.

    like: the artifact whose half-precision graph is in question. open_candidate: opens that of a trial.
    """

    @contextmanager
    def candidate(kept: tuple[str, ...]) -> Iterator[Run]:
        with TemporaryDirectory(prefix="spade-trial-") as name:
            folder, file = Path(name), graph_file(Precision.FP16, kind)
            write_onnx(MODELS[kind](generator, fp16=True, keep_fp32=kept), folder / file)
            golden = like.golden()
            write_golden(folder, golden.inputs, golden.outputs)
            facts = like.manifest
            trial = write_manifest(
                folder,
                generator=facts.generator,
                graphs=(Graph(file, Precision.FP16, kept, kind=kind),),
                source=facts.source,
                versions=facts.versions,
                rounding=facts.rounding,
            )
            with open_candidate(Artifact(folder, trial)) as runtime:
                yield runtime.run

    return candidate


def tensorrt_opener(artifact: Artifact, request: BuildRequest) -> Callable[[Artifact], Runtime]:
    """For `search_precision` and `runtime_candidates`: builds a trial's engine as `request` says, and opens it.

    The timing cache of `artifact` serves all trials: most layers of one were timed in the one before.
    """
    cache = request.timing_cache or timing_cache_path(artifact, load_library(request.flavour).flavour)

    def open_engine(trial: Artifact) -> Runtime:
        kind = trial.manifest.graphs[0].kind
        choice = GraphChoice(kind.value)
        build(trial, replace(request, precision=Precision.FP16, graph=choice, timing_cache=cache))
        return open_runtime(trial, Precision.FP16, "tensorrt", graph=choice)

    return open_engine


def usual_trials(units: int, needed: int) -> int:
    """How many trials it takes at most to find `needed` of `units`, where a unit more never makes anything worse."""
    return 2 + needed * (math.ceil(math.log2(max(2, units))) + 1) + max(0, needed - 1)


def _exported_generator(artifact: Artifact, checkpoint: Path | None, runs_dir: Path) -> SpadeGenerator:
    digest = artifact.manifest.source.generator_sha256
    if checkpoint is not None:
        path: Path | None = resolve_checkpoint(checkpoint, runs_dir)
    else:
        path = find_checkpoint_by_digest(digest, near=artifact.path, runs_dir=runs_dir)
    if path is None:
        raise NotFoundError(
            f"the checkpoint that {artifact.path} was exported from was not found in {runs_dir}",
            hint="give --checkpoint: every trial is an export of its weights",
        )
    loaded = load_generator(path)
    if loaded.info.generator_sha256 != digest:
        raise ConfigError(
            f"--checkpoint {path}: its weights ({loaded.info.generator_sha256[:16]}...) are not those that were exported"
            f" ({digest[:16]}...)",
            hint="leave --checkpoint out: the right one is looked for",
        )
    return loaded.module
