"""How a bench proceeds: inputs, workers, validation, rounds."""

from __future__ import annotations

import importlib.util
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from spade_deploy.artifact import LABEL, Artifact, Golden
from spade_deploy.bench.candidates import Candidate, Kind
from spade_deploy.bench.job import Job, read_arrays, write_arrays
from spade_deploy.bench.judging import judge
from spade_deploy.bench.machine import busy_seconds, describe_machine
from spade_deploy.bench.process import Worker, WorkerError
from spade_deploy.bench.request import BenchPlan, BenchRequest
from spade_deploy.bench.result import BenchResult, ColdStart, Entry, Round, Run, Status
from spade_deploy.errors import MissingDependencyError, NotFoundError, SpadeError, reason_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.machine.cores import at_most_cores, usable_cores
from spade_deploy.progress import SILENT, Progress
from spade_deploy.runs.folders import find_checkpoint_by_digest, resolve_checkpoint

SETTLE_S = 0.02
"""The pause before each run: threads of the run before spin for some milliseconds before they sleep."""


@dataclass
class _Live:
    """A candidate while it is measured."""

    worker: Worker
    """Its process."""

    entry: Entry
    """What is known of the candidate so far."""

    runs: list[Run] = field(default_factory=list)
    """Its runs, round by round."""


def bench_artifact(
    artifact: Artifact,
    request: BenchRequest | None = None,
    *,
    runs_dir: Path = Path("runs"),
    progress: Progress = SILENT,
) -> BenchResult:
    """Measure an artifact's graphs side by side, and the baselines that are asked for, each in a process of its own.

    runs_dir: where the checkpoint of baselines is looked for. Raises ConfigError, ArtifactError, NotFoundError,
    LabelMapError; a candidate that fails or is wrong is in the result.
    """
    return run_plan(artifact, (request or BenchRequest()).plan(artifact, runs_dir), progress)


def run_plan(artifact: Artifact, plan: BenchPlan, progress: Progress = SILENT) -> BenchResult:
    """Measure the candidates of a plan side by side: in each round every one of them runs the same case once.

    A candidate that fails or is wrong is in the result, and the others go on. Raises NotFoundError.
    """
    threads = usable_cores() if plan.threads is None else at_most_cores(plan.threads, "threads")
    golden = artifact.golden()
    with scratch_folder("bench") as folder, ExitStack() as stack:
        files = _Files(artifact, folder, plan, progress)
        jobs = _jobs(artifact, plan, golden, folder, threads)
        live: list[_Live] = []
        entries: dict[Candidate, Entry] = {}
        for number, job in enumerate(jobs):
            progress.step(f"{job.candidate.name}: first image, golden inputs")
            started = _start(files, job, artifact, golden, folder / f"worker-{number}", stack)
            if isinstance(started, _Live):
                live.append(started)
            else:
                entries[job.candidate] = started
        progress.step(f"{plan.rounds} rounds of {len(live)} candidates")
        done = _measure(live, entries, len(plan.cases), plan.rounds, plan.limit_s, progress)
        for one in live:
            if one.entry.candidate not in entries:
                entries[one.entry.candidate] = _finish(one)
    label, names = plan.cases[0][LABEL], plan.names
    return BenchResult(
        artifact=artifact.path,
        digest=artifact.manifest.to_json()["manifest_sha256"],
        batch_size=label.shape[0],
        height=label.shape[1],
        width=label.shape[2],
        threads=threads,
        backend=str(plan.backend),
        machine=describe_machine(),
        cases=tuple(names) if names is not None else tuple(f"case {number}" for number in range(len(plan.cases))),
        rounds=tuple(done),
        entries=tuple(entries[candidate] for candidate in plan.candidates),
    )


def _jobs(artifact: Artifact, plan: BenchPlan, golden: Golden, folder: Path, threads: int) -> list[Job]:
    case_files = tuple(write_arrays(folder / f"case-{k}.npz", case) for k, case in enumerate(plan.cases))
    count = len(golden.inputs[LABEL])
    singles = [{name: array[k : k + 1] for name, array in golden.inputs.items()} for k in range(count)]
    golden_files = tuple(write_arrays(folder / f"golden-{k}.npz", single) for k, single in enumerate(singles))
    return [
        Job(
            candidate=candidate,
            artifact=artifact.path,
            manifest_sha256=artifact.manifest.to_json()["manifest_sha256"],
            spec=artifact.manifest.generator,
            backend=str(plan.backend),
            threads=threads,
            checkpoint=None,
            plain_onnx=None,
            cases=case_files,
            golden=golden_files,
            golden_outputs=folder / f"answers-{number}.npz",
        )
        for number, candidate in enumerate(plan.candidates)
    ]


@dataclass
class _Files:
    """The files that baselines need. They are found or made when the first baseline asks for them."""

    artifact: Artifact
    """The artifact that is measured."""

    folder: Path
    """The folder of a plain export that is not kept."""

    plan: BenchPlan
    """The plan, which says where the files are looked for."""

    progress: Progress
    """It is told of each step."""

    checkpoint: Path | None = None
    """The checkpoint, once it was found."""

    def give(self, job: Job) -> Job:
        """The job with the paths of its files. Raises SpadeError if a file of a baseline cannot be found or made."""
        if not job.candidate.is_baseline:
            return job
        if job.candidate.kind in (Kind.PLAIN, Kind.OPENVINO):
            return replace(job, plain_onnx=self._plain())
        return replace(job, checkpoint=self._found_checkpoint())

    def _found_checkpoint(self) -> Path:
        if importlib.util.find_spec("torch") is None:
            raise MissingDependencyError("PyTorch is not installed", hint="pip install 'spade-deploy[export]'")
        if self.checkpoint is None:
            self.checkpoint = self._look_for_checkpoint()
        return self.checkpoint

    def _look_for_checkpoint(self) -> Path:
        runs_dir = self.plan.runs_dir
        if self.plan.checkpoint is not None:
            return resolve_checkpoint(self.plan.checkpoint, runs_dir)
        digest = self.artifact.manifest.source.generator_sha256
        found = find_checkpoint_by_digest(digest, near=self.artifact.path, runs_dir=runs_dir)
        if found is None:
            raise NotFoundError(f"the checkpoint that was exported is not in {runs_dir}", hint="give `checkpoint`")
        return found

    def _plain(self) -> Path:
        path = self.plan.plain_onnx or self.folder / "plain.onnx"
        if not path.exists():
            checkpoint = self._found_checkpoint()
            self.progress.step("plain export of the untouched module")
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
            worker.ask(do="run", case=0)  # a warm-up, since the golden inputs may have another size
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
    progress: Progress,
) -> list[Round]:
    """Run the rounds and return those that were done. A candidate that dies counts as failed and runs no more."""
    done: list[Round] = []
    end = None if limit_s is None else time.monotonic() + limit_s
    while live and len(done) < rounds and (not done or end is None or time.monotonic() < end):
        case = len(done) % num_cases
        others = _one_round([one for one in live if one.entry.candidate not in entries], entries, len(done), case)
        done.append(Round(case, others))
        progress.count("round", len(done), rounds)
    return done


def _one_round(live: list[_Live], entries: dict[Candidate, Entry], number: int, case: int) -> float | None:
    """Run one round. Returns the share of the machine that other processes used, None if it is not known."""
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
