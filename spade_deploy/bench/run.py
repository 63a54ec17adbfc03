"""How a bench proceeds: inputs, workers, validation, rounds."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from spade_deploy.artifact import LABEL, Artifact, Golden, one_by_one
from spade_deploy.bench.candidates import Candidate
from spade_deploy.bench.comparison import ImageComparison
from spade_deploy.bench.entries import ColdStart, Entry, Round, Run, Status
from spade_deploy.bench.files import BaselineFiles
from spade_deploy.bench.job import Job, read_arrays, write_arrays
from spade_deploy.bench.judging import judge
from spade_deploy.bench.machine import describe_machine
from spade_deploy.bench.process import Worker, WorkerError
from spade_deploy.bench.request import BenchPlan, BenchRequest
from spade_deploy.bench.result import BenchResult
from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.files.temporary import scratch_folder
from spade_deploy.machine.cores import at_most_cores, usable_cores
from spade_deploy.machine.memory import busy_seconds
from spade_deploy.progress import SILENT, Progress
from spade_deploy.tuning.timing import in_turn

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
    threads = at_most_cores(plan.threads or usable_cores(), "threads")
    golden = artifact.golden()
    with scratch_folder("bench") as folder, ExitStack() as stack:
        files = BaselineFiles(artifact, folder, plan, progress)
        jobs = _jobs(artifact, plan, golden, folder, threads)
        references, no_references = _reference_images(files, jobs)
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
        images = ImageComparison(references, folder)
        done = _measure(live, entries, images, plan, progress)
        for one in live:
            if one.entry.candidate not in entries:
                entries[one.entry.candidate] = _finish(one, images)
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
        no_references=no_references,
        entries=tuple(entries[candidate] for candidate in plan.candidates),
    )


def _jobs(artifact: Artifact, plan: BenchPlan, golden: Golden, folder: Path, threads: int) -> list[Job]:
    case_files = tuple(write_arrays(folder / f"case-{k}.npz", case) for k, case in enumerate(plan.cases))
    singles = enumerate(one_by_one(golden.inputs))
    golden_files = tuple(write_arrays(folder / f"golden-{k}.npz", single) for k, single in singles)
    return [
        Job(
            candidate=candidate,
            artifact=artifact.path,
            manifest_sha256=artifact.manifest.to_json()["manifest_sha256"],
            spec=artifact.manifest.generator,
            backend=str(plan.backend),
            threads=threads,
            checkpoint=None,
            model=None,
            cases=case_files,
            golden=golden_files,
            golden_outputs=folder / f"answers-{number}.npz",
        )
        for number, candidate in enumerate(plan.candidates)
    ]


def _reference_images(files: BaselineFiles, jobs: list[Job]) -> tuple[tuple[Path, ...], str]:
    """The reference's image of each case, and why there are none if so."""
    plan = files.plan
    if not any(job.candidate.is_baseline for job in jobs):
        return (), ""  # an artifact alone needs no PyTorch
    try:
        seen = replace(jobs[0], cases=jobs[0].cases[: plan.rounds])
        return files.reference_images(seen), ""
    except SpadeError as error:
        return (), error.message


def _start(
    files: BaselineFiles, job: Job, artifact: Artifact, golden: Golden, folder: Path, stack: ExitStack
) -> _Live | Entry:
    candidate = job.candidate
    try:
        with ExitStack() as until_it_is_right:
            worker = until_it_is_right.enter_context(Worker(files.give(job), folder))
            worker.start()
            verdict = None
            if candidate.makes_images:
                worker.ask(do="golden")
                ran = replace(candidate, precision=worker.precision)
                verdict = judge(artifact, ran, golden, read_arrays(job.golden_outputs))
                if verdict.failures:
                    reason = f"its images are wrong: {'; '.join(verdict.failures)}"
                    return Entry(
                        candidate, Status.WRONG, worker.runtime, reason, verdict=verdict, precision=worker.precision
                    )
            worker.ask(do="run", case=0)  # a warm-up, since the golden inputs may have another size
            stack.push(until_it_is_right.pop_all())
    except SpadeError as error:
        return Entry(candidate, Status.FAILED, reason=error.message, hint=error.hint)
    except Exception as error:  # an exporter raises dozens of types; only the baseline that needs it has no figure
        return Entry(candidate, Status.FAILED, reason=f"{type(error).__name__}: {reason_of(error)}")
    entry = Entry(candidate, Status.MEASURED, worker.runtime, verdict=verdict, precision=worker.precision)
    return _Live(worker, entry)


def _measure(
    live: list[_Live],
    entries: dict[Candidate, Entry],
    images: ImageComparison,
    plan: BenchPlan,
    progress: Progress,
) -> list[Round]:
    """Run the rounds and return those that were done. A candidate that dies counts as failed and runs no more."""
    done: list[Round] = []
    end = None if plan.limit_s is None else time.monotonic() + plan.limit_s
    while live and len(done) < plan.rounds and (not done or end is None or time.monotonic() < end):
        case = len(done) % len(plan.cases)
        running = [one for one in live if one.entry.candidate not in entries]
        done.append(Round(case, _one_round(running, entries, images, len(done), case)))
        progress.count("round", len(done), plan.rounds)
    return done


def _one_round(
    live: list[_Live], entries: dict[Candidate, Entry], images: ImageComparison, number: int, case: int
) -> float:
    """Run one round. Returns the share of the machine that other processes used."""
    before, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    cpu_s = 0.0
    for one in in_turn(live, number):
        time.sleep(SETTLE_S)
        candidate = one.entry.candidate
        image_to = images.image_to(candidate, case)
        try:
            answer = one.worker.ask(do="run", case=case, image_to=None if image_to is None else str(image_to))
        except WorkerError as error:
            entries[candidate] = Entry(candidate, Status.FAILED, one.entry.runtime, error.message, error.hint)
            continue
        cpu_s += answer["all_cpu_s"]
        one.runs.append(Run(number, answer["seconds"], answer["cpu_s"], answer["patterns_s"], answer["graph"]))
        wrong = None if image_to is None else images.add(candidate, case, image_to)
        if wrong is not None:
            entries[candidate] = replace(one.entry, status=Status.WRONG, reason=wrong)
    after, wall = busy_seconds(), time.perf_counter() - start
    cpu_s += time.process_time() - own
    return max(0.0, after - before - cpu_s) / (wall * (os.cpu_count() or 1))


def _finish(one: _Live, images: ImageComparison) -> Entry:
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
        psnr_db=images.found.get(one.entry.candidate, {}),
        runs=tuple(one.runs),
    )
