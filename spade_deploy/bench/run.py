"""The order of a bench on one page: inputs, workers, validation, rounds."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from spade_deploy.artifact import LABEL, Arrays, Artifact, Golden
from spade_deploy.bench.candidates import Candidate, Kind
from spade_deploy.bench.job import Job, read_arrays, write_arrays
from spade_deploy.bench.judging import judge
from spade_deploy.bench.machine import busy_seconds, describe_machine
from spade_deploy.bench.process import Worker, WorkerError
from spade_deploy.bench.result import BenchResult, ColdStart, Entry, Round, Run, Status
from spade_deploy.engines.base import Backend, parse_backend
from spade_deploy.errors import ConfigError, MissingDependencyError, NotFoundError, SpadeError, reason_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.machine.cores import at_most_cores, usable_cores
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint

DEFAULT_ROUNDS = 20
MAX_ROUNDS = 1_000_000
SETTLE_S = 0.02
"""Before each run: threads that wait for work spin for some milliseconds before they sleep."""


@dataclass
class _Live:
    """A candidate while it is measured."""

    worker: Worker
    entry: Entry
    runs: list[Run] = field(default_factory=list)


def bench(
    artifact: Artifact,
    candidates: Sequence[Candidate],
    cases: Sequence[Arrays],
    *,
    names: Sequence[str] | None = None,
    rounds: int = DEFAULT_ROUNDS,
    threads: int | None = None,
    backend: Backend | str = Backend.AUTO,
    checkpoint: Path | None = None,
    runs_dir: Path = Path("runs"),
    plain_onnx: Path | None = None,
    limit_s: float | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    on_round: Callable[[int, int], None] = lambda *_: None,
) -> BenchResult:
    """Measure candidates side by side: in each round every one of them runs the same case once.

    cases: batches of the graph's inputs, all of one shape, run in turn. names: theirs, for the result.
    threads: of every candidate on the CPU; the cores that may be used if None, and never more.
    checkpoint: for baselines; looked for by the artifact's digest if None. plain_onnx: a plain export that is kept
    between calls: read where it is there, else written. limit_s: no round begins later than this.
    A candidate that fails or is wrong is in the result, and the others go on. Raises ConfigError, NotFoundError.
    """
    _check(candidates, cases, rounds, threads, backend)
    threads = usable_cores() if threads is None else at_most_cores(threads, "threads")
    golden = artifact.golden()
    with scratch_folder("bench") as folder, ExitStack() as stack:
        files = _Files(artifact, folder, checkpoint, runs_dir, plain_onnx, on_step)
        jobs = _jobs(artifact, candidates, cases, golden, folder, threads, str(backend))
        live: list[_Live] = []
        entries: dict[Candidate, Entry] = {}
        for number, job in enumerate(jobs):
            on_step(f"{job.candidate.name}: first image, golden inputs")
            started = _start(files, job, artifact, golden, folder / f"worker-{number}", stack)
            if isinstance(started, _Live):
                live.append(started)
            else:
                entries[job.candidate] = started
        on_step(f"{rounds} rounds of {len(live)} candidates")
        done = _measure(live, entries, len(cases), rounds, limit_s, on_round)
        for one in live:
            if one.entry.candidate not in entries:
                entries[one.entry.candidate] = _finish(one)
    label = cases[0][LABEL]
    return BenchResult(
        artifact=artifact.path,
        digest=artifact.manifest.to_json()["manifest_sha256"],
        batch_size=label.shape[0],
        height=label.shape[1],
        width=label.shape[2],
        threads=jobs[0].threads,
        backend=str(backend),
        machine=describe_machine(),
        cases=tuple(names) if names is not None else tuple(f"case {number}" for number in range(len(cases))),
        rounds=tuple(done),
        entries=tuple(entries[candidate] for candidate in candidates),
    )


def _check(
    candidates: Sequence[Candidate],
    cases: Sequence[Arrays],
    rounds: int,
    threads: int | None,
    backend: Backend | str,
) -> None:
    if not candidates or not cases:
        raise ConfigError("there is nothing to measure: no candidates or no label maps")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads: {threads} is not a positive number")
    if not 1 <= rounds <= MAX_ROUNDS:
        raise ConfigError(f"--rounds: {rounds} is not in 1..{MAX_ROUNDS}")
    parse_backend(str(backend))
    shapes = {case[LABEL].shape for case in cases}
    if len(shapes) > 1:
        raise ConfigError(f"the label maps of one bench have one shape; found {sorted(shapes)}")


def _jobs(
    artifact: Artifact,
    candidates: Sequence[Candidate],
    cases: Sequence[Arrays],
    golden: Golden,
    folder: Path,
    threads: int,
    backend: str,
) -> list[Job]:
    case_files = tuple(write_arrays(folder / f"case-{k}.npz", case) for k, case in enumerate(cases))
    count = len(golden.inputs[LABEL])
    singles = [{name: array[k : k + 1] for name, array in golden.inputs.items()} for k in range(count)]
    golden_files = tuple(write_arrays(folder / f"golden-{k}.npz", single) for k, single in enumerate(singles))
    return [
        Job(
            candidate=candidate,
            artifact=artifact.path,
            manifest_sha256=artifact.manifest.to_json()["manifest_sha256"],
            spec=artifact.manifest.generator,
            backend=backend,
            threads=threads,
            checkpoint=None,
            plain_onnx=None,
            cases=case_files,
            golden=golden_files,
            golden_outputs=folder / f"answers-{number}.npz",
        )
        for number, candidate in enumerate(candidates)
    ]


@dataclass
class _Files:
    """What baselines need, found or made when the first of them asks."""

    artifact: Artifact
    folder: Path
    checkpoint: Path | None
    runs_dir: Path
    plain_onnx: Path | None
    on_step: Callable[[str], None]

    def give(self, job: Job) -> Job:
        """The job with its files. Raises SpadeError where a baseline's cannot be had."""
        if not job.candidate.is_baseline:
            return job
        if job.candidate.kind in (Kind.PLAIN, Kind.OPENVINO):
            return replace(job, plain_onnx=self._plain())
        return replace(job, checkpoint=self._found_checkpoint())

    def _found_checkpoint(self) -> Path:
        if importlib.util.find_spec("torch") is None:
            raise MissingDependencyError("PyTorch is not installed", hint="pip install 'spade-deploy[export]'")
        digest = self.artifact.manifest.source.generator_sha256
        if self.checkpoint is not None:
            return resolve_checkpoint(self.checkpoint, self.runs_dir)
        found = find_checkpoint_by_digest(digest, near=self.artifact.path, runs_dir=self.runs_dir)
        if found is None:
            raise NotFoundError(f"the checkpoint that was exported is not in {self.runs_dir}", hint="give --checkpoint")
        self.checkpoint = found
        return found

    def _plain(self) -> Path:
        path = self.plain_onnx or self.folder / "plain.onnx"
        if not path.exists():
            checkpoint = self._found_checkpoint()
            self.on_step("plain export of the untouched module")
            from spade_deploy.bench.plain_export import write_plain_export

            write_plain_export(checkpoint, path)
        return path


def _start(
    files: _Files, job: Job, artifact: Artifact, golden: Golden, folder: Path, stack: ExitStack
) -> _Live | Entry:
    candidate = job.candidate
    try:
        with ExitStack() as until_it_is_right:
            worker = until_it_is_right.enter_context(Worker(files.give(job), folder))
            worker.start()
            verdict = None
            if candidate.kind is not Kind.BOUND:
                worker.ask(do="golden")
                verdict = judge(artifact, candidate, golden, read_arrays(job.golden_outputs))
                if verdict.failures:
                    reason = f"its images are wrong: {'; '.join(verdict.failures)}"
                    return Entry(candidate, Status.WRONG, worker.runtime, reason, verdict=verdict)
            worker.ask(do="run", case=0)  # warm: golden inputs may be of another size
            stack.push(until_it_is_right.pop_all())
    except SpadeError as error:
        return Entry(candidate, Status.FAILED, reason=error.message, hint=error.hint)
    except Exception as error:  # an exporter raises dozens of types; only the baseline that needs it has no figure
        return Entry(candidate, Status.FAILED, reason=f"{type(error).__name__}: {reason_of(error)}")
    return _Live(worker, Entry(candidate, Status.MEASURED, worker.runtime, verdict=verdict))


def _measure(
    live: list[_Live],
    entries: dict[Candidate, Entry],
    num_cases: int,
    rounds: int,
    limit_s: float | None,
    on_round: Callable[[int, int], None],
) -> list[Round]:
    """Rounds that were done; a candidate that dies in one is entered as failed, and left out from then on."""
    done: list[Round] = []
    end = None if limit_s is None else time.monotonic() + limit_s
    while live and len(done) < rounds and (not done or end is None or time.monotonic() < end):
        case = len(done) % num_cases
        others = _one_round([one for one in live if one.entry.candidate not in entries], entries, len(done), case)
        done.append(Round(case, others))
        on_round(len(done), rounds)
    return done


def _one_round(live: list[_Live], entries: dict[Candidate, Entry], number: int, case: int) -> float | None:
    """Returns the share of the machine that other processes had."""
    shift = number % max(1, len(live))
    order = [*live[shift:], *live[:shift]]
    before, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    cpu_s = 0.0
    for one in order if number % 2 == 0 else reversed(order):
        time.sleep(SETTLE_S)
        try:
            answer = one.worker.ask(do="run", case=case)
        except WorkerError as error:
            candidate = one.entry.candidate
            entries[candidate] = Entry(candidate, Status.FAILED, one.entry.runtime, error.message, error.hint)
            continue
        cpu_s += answer["cpu_s"]
        one.runs.append(Run(number, answer["seconds"], answer["patterns_s"], answer["graph"]))
    after, wall = busy_seconds(), time.perf_counter() - start
    if before is None or after is None:
        return None
    cpu_s += time.process_time() - own
    return max(0.0, after - before - cpu_s) / (wall * (os.cpu_count() or 1))


def _finish(one: _Live) -> Entry:
    worker = one.worker
    try:
        peak = worker.ask(do="stop")["peak_memory_bytes"]
    except WorkerError as error:
        return Entry(one.entry.candidate, Status.FAILED, one.entry.runtime, error.message, error.hint)
    return replace(
        one.entry,
        cold_start=ColdStart(worker.imports_s, worker.load_s, worker.first_run_s),
        imports_bytes=worker.imports_bytes,
        peak_memory_bytes=peak,
        runs=tuple(one.runs),
    )
