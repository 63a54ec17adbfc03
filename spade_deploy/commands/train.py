"""`spade train`: train a generator, go on with a run, predict what a training needs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import training_bar
from spade_deploy.fields import to_json
from spade_deploy.progress import SILENT
from spade_deploy.settings import setting

if TYPE_CHECKING:
    from spade_deploy.training.estimate import Estimate
    from spade_deploy.training.request import TrainRequest
    from spade_deploy.training.session import Session

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
    from spade_deploy.training.request import TrainRequest

    return TrainRequest, ConfigFile, TrainCall, RunsFolder


@command("train", panel=MAIN, requests=_requests, needs="train", kind=ConfigCommand)
def train(asked: TrainRequest, file: ConfigFile, call: TrainCall, place: RunsFolder) -> None:
    """Train a generator. Without options, it trains on the embedded Earth data, sized for a CPU."""
    from spade_deploy.training import session
    from spade_deploy.training.processes.join import join_world

    runs = place.runs
    if file.print_config:
        whole = session.complete_request(asked, runs_dir=runs, resume=call.resume)
        print_settings(as_yaml(train.settings, whole))
        return
    if call.estimate:
        print_estimate(*session.estimate_run(asked, runs_dir=runs, resume=call.resume))
        return
    with join_world() as world:
        if not world.is_main:
            output.leave_to_main()
        _train(session.start(asked, runs_dir=runs, name=call.name, resume=call.resume, world=world))


def _train(started: Session) -> None:
    """Run the training of a session that was started, and print its results."""
    out = stdout()
    out.print(f"training {started.run}: {started.described}")
    for text in started.notes:
        note(text)
    with training_bar() if started.world.is_main else nullcontext(SILENT) as progress:
        result = started.train(progress)
    for text in result.notes:
        note(text)
    for skipped in result.skipped[:SHOWN_SKIPPED]:
        out.print(f"  skipped: {skipped}")
    if len(result.skipped) > SHOWN_SKIPPED:
        note(f"{len(result.skipped)} samples were skipped; all are in {result.run / 'skipped.txt'}")
    output.report(
        {
            "run": result.run,
            "described": started.described,
            "step": result.step,
            "seconds": result.seconds,
            "checkpoint": result.checkpoint,
            "skipped": list(result.skipped),
        }
    )
    out.print(f"trained {result.step} steps in {duration(result.seconds)}")
    print_places(
        ("checkpoint", result.checkpoint),
        ("samples", result.run / "samples"),
        ("losses", result.run / "losses.png"),
        *((what, result.run / file) for what, file in SHOWN_OF_A_RUN if (result.run / file).is_file()),
        *((("label maps to try", started.example_labels),) if started.example_labels else ()),
    )
    print_next("spade", "export", result.run, "--fp16")


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
