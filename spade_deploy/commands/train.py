"""`spade train`: train a generator, go on with a run, predict what a training needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spade_deploy.commands import output
from spade_deploy.commands.config_file import ConfigCommand, ConfigFile, as_yaml
from spade_deploy.commands.console import (
    clock_time,
    duration,
    note,
    print_next,
    print_places,
    print_settings,
    stdout,
)
from spade_deploy.commands.options import MAIN, RunsFolder, command, needed
from spade_deploy.commands.progress import training_bar
from spade_deploy.commands.request_options import Option
from spade_deploy.fields import to_json
from spade_deploy.progress import SILENT
from spade_deploy.runs.layout import BEST_JSON
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.estimate import Estimate
    from spade_deploy.training.request import TrainRequest
    from spade_deploy.training.session import Asked, Session

SHOWN_OF_A_RUN = (("over time", "timeline.png"), ("as a film", "samples.gif"), ("metrics", "metrics.png"))
"""The files of a run that are named when it ends, if they exist."""

SHOWN_SKIPPED = 5
"""How many of the samples that were skipped are named; the run's skipped.txt has all."""


@dataclass(frozen=True, kw_only=True)
class TrainCall:
    """Which run is trained, and whether it is only estimated."""

    estimate: bool = setting(False, help="Predict memory and time of this training, then exit.")
    name: str | None = setting(None, help="Name of the run; default: numbered automatically.")
    resume: str | None = setting(
        None, help="Resume a run; without a value, the newest one.", metavar="[RUN]", bare="newest"
    )


def _requests() -> tuple[type, ...]:
    from spade_deploy.cluster.train import RayTraining
    from spade_deploy.training.request import TrainRequest

    return TrainRequest, ConfigFile, TrainCall, RunsFolder, RayTraining


@command("train", panel=MAIN, requests=_requests, needs="train", kind=ConfigCommand)
def train(asked: TrainRequest, file: ConfigFile, call: TrainCall, place: RunsFolder, cluster: RayTraining) -> None:
    """Train a generator. Without options, it trains on the embedded Earth data, sized for a CPU."""
    if is_only_told(asked, file, call, place.runs, train.settings):
        return
    if cluster.ray is not None:
        with needed("ray"):
            train_on_ray(asked, call, place.runs, cluster, ("train",), train.settings)
        return
    run_session(asked, call, place.runs)


def is_only_told(asked: Asked, file: ConfigFile, call: TrainCall, runs: Path, settings: list[Option]) -> bool:
    """Print the settings or the estimate of a training, where that is asked for; whether it was."""
    from spade_deploy.training import session

    if file.print_config:
        print_settings(as_yaml(settings, session.complete_request(asked, runs_dir=runs, resume=call.resume)))
    elif call.estimate:
        print_estimate(*session.estimate_run(asked, runs_dir=runs, resume=call.resume))
    return file.print_config or call.estimate


def run_session(asked: Asked, call: TrainCall, runs: Path) -> None:
    """Train in this process, and with those that torchrun started beside it, and print the results."""
    from spade_deploy.training import session
    from spade_deploy.training.processes.join import join_world

    with join_world() as world:
        if not world.is_main:
            output.leave_to_main()
        _run(session.start(asked, runs_dir=runs, name=call.name, resume=call.resume, world=world))


def _run(started: Session) -> None:
    out = stdout()
    out.print(f"training {started.run}: {started.described}")
    for text in started.notes:
        note(text)
    with training_bar() if started.world.is_main else nullcontext(SILENT) as progress:
        result = started.train(progress)
    for text in result.notes:
        note(text)
    found = {
        "run": result.run,
        "described": started.described,
        "step": result.step,
        "seconds": result.seconds,
        "checkpoint": result.checkpoint,
        "skipped": list(result.skipped),
    }
    _print_result(found, started.example_labels)


def _print_result(found: Mapping[str, Any], example_labels: Path | None = None) -> None:
    """Report what a training made, and say where it is. found: what `--json` prints."""
    output.report(found)
    run, skipped, out = Path(found["run"]), found["skipped"], stdout()
    for one in skipped[:SHOWN_SKIPPED]:
        out.print(f"  skipped: {one}")
    if len(skipped) > SHOWN_SKIPPED:
        note(f"{len(skipped)} samples were skipped; all are in {run / 'skipped.txt'}")
    out.print(f"trained {found['step']} steps in {duration(found['seconds'])}")
    print_places(
        ("checkpoint", Path(found["checkpoint"])),
        ("samples", run / "samples"),
        ("losses", run / "losses.png"),
        *((what, run / file) for what, file in SHOWN_OF_A_RUN if (run / file).is_file()),
        *((("label maps to try", example_labels),) if example_labels else ()),
    )
    best = ("--best",) if (run / BEST_JSON).is_file() else ()
    print_next("spade", "export", run, *best, "--fp16")


def train_on_ray(
    asked: Asked,
    call: TrainCall,
    runs: Path,
    cluster: RayTraining,
    command: tuple[str, ...],
    settings: Sequence[Option],
) -> None:
    """Name or find the run, so that every start of the processes goes on with the same one, and train it on Ray.

    command: the words behind `spade` that each process begins with; its other settings are written to a file.
    """
    from spade_deploy.cluster import train as cluster_train
    from spade_deploy.runs import new_run, newest_run_to_resume, resolve_checkpoint
    from spade_deploy.training import session

    runs = runs.absolute()
    whole = session.complete_request(asked, runs_dir=runs, resume=None if call.name is not None else call.resume)
    named = ("--resume", "--runs", str(runs))
    if call.resume is None:
        run = new_run(runs, call.name, whole.data.preset_name)
        options: tuple[str, ...] = ("--name", run.name, *named)
    elif call.name is not None:
        session.check_resumes_newest(call.name, call.resume)
        run = runs / call.name
        run.mkdir(parents=True, exist_ok=True)
        options = ("--name", call.name, *named)
    else:
        place = newest_run_to_resume(runs) if call.resume == session.NEWEST else Path(call.resume)
        run = resolve_checkpoint(place, runs).parent.parent.absolute()
        options = ("--resume", str(run), *named[1:])
    words = (*command, *options, "--json", "--config")
    start = cluster_train.Start(str(run), words, as_yaml(settings, asked), str(Path.cwd()))
    with training_bar() as progress:
        found = cluster_train.train_on_ray(cluster, start, progress)
    _print_result(found)


def print_estimate(described: str, found: Estimate) -> None:
    """Print the memory and time that a training will need, and how these were estimated."""
    out = stdout()
    output.report({"described": described, **to_json(found), "seconds": found.seconds, "fits": found.fits})
    out.print(f"would train: {described}")
    memory, shapes = found.memory_bytes, found.from_shapes
    how = "measured in a separate process" if found.is_measured else "estimated from the shapes"
    parts = f"{_gigabytes(shapes.weights)} weights, {_gigabytes(shapes.learning)} gradients and Adam's moments"
    rows = [("memory", f"{_gigabytes(memory)} per process, {how}")]
    rows.append(("shapes", f"{_gigabytes(shapes.total)}: {parts}, {_gigabytes(shapes.activations)} activations"))
    if found.free_bytes is not None:
        verdict = "fits" if found.fits else "does NOT fit"
        rows.append(("free", f"{_gigabytes(found.free_bytes)} on {found.device}: {verdict}"))
    if found.seconds_per_step is not None:
        rows.append(("time", f"{found.seconds_per_step:.2f} s per step on {found.device}"))
        if found.seconds is not None:
            rows[-1] = ("time", f"{rows[-1][1]}, {clock_time(found.seconds)} for {found.steps} steps")
    for what, value in rows:
        out.print(f"  {what:<8}  {value}")
    for text in found.notes:
        note(text)
    if found.fits is False:
        out.print("  less memory: --accumulate N, --amp bf16, a smaller --batch-size or --size")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
