"""The command line: one function a command, which parses, calls one function and prints. No logic.

Nothing heavy is imported before a command needs it: `spade --help` answers in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from spade_deploy import __version__
from spade_deploy.commands.console import (
    busy,
    check_terminal_size,
    count_bar,
    duration,
    finding_table,
    image_bar,
    line,
    print_bench,
    print_engines,
    print_error,
    print_next,
    print_places,
    print_report,
    show_notes,
    stderr,
    stdout,
    step_bar,
    styled,
    training_bar,
)
from spade_deploy.commands.data import data
from spade_deploy.commands.evaluate import evaluate
from spade_deploy.commands.train import train
from spade_deploy.errors import SpadeError, system_error
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.files.temporary import beside
from spade_deploy.printable import one_line
from spade_deploy.spec import Backend, Flavour, NormType, Precision, ResizePolicy, ShapeProfile, Upsampling, parse_size

COMMANDS: tuple[TyperCommand | TyperGroup, ...] = (train, data, evaluate)
"""The commands that are made from requests; each file in `commands/` has one or a few."""


class _Commands(TyperGroup):
    """Prints what a user can mend as one message; anything else is a defect and keeps its traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        check_terminal_size()  # the help, too, is wrapped by it
        return super().main(*args, **options)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for made in COMMANDS:
            self.commands[made.name or ""] = made

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpadeError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            told = system_error(error)
            if told is None:
                raise
            print_error(told)
            raise typer.Exit(told.exit_code) from error
        except KeyboardInterrupt:
            stderr().print(styled("stopped", "red"))
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train or import a SPADE (GauGAN) generator, export it to ONNX, prove it equal to PyTorch, run it fast.\n\n"
    "The main job, in an empty folder: [bold]spade train[/], [bold]spade export --fp16[/],"
    " [bold]spade infer labels/ out/[/]. Or all of it at once: [bold]spade demo[/].",
)

RunsDir = Annotated[Path, typer.Option("--runs", help="Folder of runs, in which the newest is looked for.")]
INT8 = "int8"
DEFAULT_RUNS = Path("runs")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"spade-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    show_notes()


@app.command("import", rich_help_panel="The main job")
def import_(
    file: Annotated[Path, typer.Argument(help="latest_net_G.pth", show_default=False)],
    preset: Annotated[
        str | None, typer.Option(help="coco, ade20k or cityscapes; told by the file if left out.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(help="A model of none of these: its number of classes.")] = None,
    dontcare: Annotated[bool, typer.Option("--dontcare", help="It has a channel for unknown pixels.")] = False,
    edges: Annotated[bool, typer.Option("--edges", help="It has an edge channel.")] = False,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH that it was trained for.")] = None,
    upsampling: Annotated[Upsampling | None, typer.Option(help="The file does not tell normal from more.")] = None,
    norm: Annotated[
        NormType | None, typer.Option(help="Of a file without running statistics: instance norm or not.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Which network of a file that holds several: generator_ema.", show_default=False)
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="latest_net_E.pth: the style encoder of a VAE, for styles of photos.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; numbered by itself otherwise.")] = None,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Make a run of a generator that NVIDIA released, or that their code trained."""
    with _needs("train"):
        from spade_deploy.runs import importer

        imported = importer.import_checkpoint(
            file,
            importer.request_from_flags(
                preset,
                num_labels,
                has_dontcare=dontcare,
                has_edges=edges,
                upsampling=upsampling,
                size=parse_size(size) if size else None,
                norm=norm,
                part=part,
            ),
            runs_dir=runs,
            name=name,
            encoder=encoder,
        )
    out = stdout()
    out.print(f"imported {one_line(file)}: {imported.described}")
    for guess in imported.guesses:
        out.print(f"  guessed: {guess}")
    for note in imported.notes:
        out.print(f"  note: {note}")
    print_places(("checkpoint", imported.checkpoint))
    print_next("spade export --fp16")


@app.command(rich_help_panel="The main job")
def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A run or a checkpoint; the newest if left out.", show_default=False)
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also a graph in half precision.")] = False,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(help="A layer that stays float32 in it: up_1; may be repeated. What overflows stays anyway."),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Not the run's newest checkpoint but its best (spade train --best-by).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The artifact's folder; RUN/artifact if left out.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label maps to validate on and to keep as golden inputs.")] = None,
    instances: Annotated[Path | None, typer.Option(help="Their instance maps, paired by stem.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", rich_help_panel=INT8, help="Also graphs with 8-bit products, of a stated quality.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=INT8, help="Label maps to calibrate on; the data set's training labels if left out."
        ),
    ] = None,
    calibrate_instances: Annotated[
        Path | None, typer.Option(rich_help_panel=INT8, help="Their instance maps, paired by stem.")
    ] = None,
    calibration_count: Annotated[
        int | None, typer.Option(rich_help_panel=INT8, help="How many of them, evenly spaced; 32 if left out.")
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=INT8,
            help="PSNR of the image against float32, in dB: the worst layers stay float32 to reach it; 35 if left out.",
        ),
    ] = None,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Fold a checkpoint, write it as ONNX, and prove it equal to PyTorch."""
    console = stdout()
    with _needs("export"):
        from spade_deploy.release.release import Int8Options, release

        int8_options = Int8Options.from_flags(int8, calibrate, calibrate_instances, calibration_count, min_psnr)
        with step_bar() as (on_step, on_progress):
            made = release(
                checkpoint,
                runs_dir=runs,
                best=best,
                out=out,
                precisions=[Precision.FP32, *([Precision.FP16] if fp16 else [])],
                keep_fp32=keep_fp32 or (),
                labels=labels,
                instances=instances,
                int8=int8_options,
                on_step=on_step,
                on_progress=on_progress,
            )
    console.print(f"exported {one_line(made.checkpoint)}")
    print_report(made.report)
    for note in made.notes:
        console.print(f"  note: {note}")
    print_places(
        ("artifact", made.artifact.path),
        *((graph.name, made.artifact.path_of(graph.file)) for graph in made.artifact.manifest.graphs),
        ("report", made.artifact.path / "report.html"),
    )
    needs_instances = made.artifact.manifest.generator.labels.has_edges
    print_next("spade infer labels/ out/" + (" --instances instances/" if needs_instances else ""))


@app.command(rich_help_panel="The main job")
def infer(
    labels: Annotated[Path, typer.Argument(help="A folder of label maps, or one of them.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where the photos go.", show_default=False)],
    artifact: Annotated[
        Path | None, typer.Option(help="An artifact or a run; the newest artifact if left out.")
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="Instance maps, paired by stem, for a model with an edge channel.")
    ] = None,
    no_instances: Annotated[bool, typer.Option("--no-instances", help="Leave the edge channel empty.")] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="The data set whose layout LABELS has; what the model was trained on if left out."),
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="fp16 on a GPU, fp32 on a CPU if left out.")] = None,
    backend: Annotated[
        Backend, typer.Option(help="auto: a TensorRT engine that fits, else CUDA, else the CPU.")
    ] = Backend.AUTO,
    resize: Annotated[
        ResizePolicy,
        typer.Option(help="model: every map is resized to the model's size, nearest. never: its own size must fit."),
    ] = ResizePolicy.MODEL,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH to run at instead of the model's size.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a run of the graph.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make results again that are there.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Of a random style, for a model with a style vector; its mean style if left out.")
    ] = None,
    style_image: Annotated[
        Path | None, typer.Option(help="A photo whose style is taken, for a model with a style encoder.")
    ] = None,
    image_format: Annotated[str, typer.Option("--format", help="png or jpg.")] = "png",
    threads: Annotated[int | None, typer.Option(help="Of the CPU; one a core if left out.")] = None,
    graph: Annotated[
        str, typer.Option(help="dense, lookup, or auto: lookup where it was measured to be faster.")
    ] = "auto",
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Make a photo of every label map in a folder."""
    from spade_deploy.artifact import Artifact
    from spade_deploy.inference import infer as run_infer
    from spade_deploy.runs.folders import resolve_artifact

    console = stdout()
    opened = Artifact.open(resolve_artifact(artifact, runs))
    with image_bar() as report:
        summary = run_infer(
            opened,
            labels,
            out,
            instances=instances,
            no_instances=no_instances,
            preset=preset,
            precision=precision,
            backend=backend,
            batch_size=batch_size,
            resize=resize,
            size=parse_size(size) if size else None,
            overwrite=overwrite,
            seed=seed,
            style_image=style_image,
            image_format=image_format,
            threads=threads,
            graph=graph,
            on_progress=report,
            on_runtime=lambda runtime: console.print(
                line(f"running {one_line(opened.path)} with ", styled(runtime, "bold"))
            ),
        )
    rate = f" ({summary.images_per_s:.1f} images/s)" if summary.written else ""
    console.print(
        line(f"wrote {summary.written} of {summary.total} images to ", styled(one_line(summary.out), "bold"), rate)
    )
    if summary.skipped:
        console.print(f"  {summary.skipped} were there already; --overwrite makes them again")
    if summary.resized:
        spec = opened.manifest.generator
        target = size or f"{spec.height}x{spec.width}"
        console.print(f"  {summary.resized} label maps were resized to {target} (nearest); --resize never refuses them")
    if summary.left_out:
        console.print(f"  {len(summary.left_out)} photos were left out; the first: {summary.left_out[0]}", markup=False)
    if summary.failures:
        for failure in summary.failures:
            stderr().print(f"  {failure.message}")
        for hint in dict.fromkeys(failure.hint for failure in summary.failures if failure.hint):
            stderr().print(f"  next: {hint}")
        stderr().print(line(styled(f"{len(summary.failures)} label maps have no result", "red"), "; the rest is done"))
        raise typer.Exit(1)


@app.command(rich_help_panel="The main job")
def build(
    artifact: Annotated[
        Path | None, typer.Argument(help="An artifact or a run; the newest if left out.", show_default=False)
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="fp16 where the artifact has it if left out.")] = None,
    graph: Annotated[str, typer.Option(help="dense, lookup, or auto: both where both are there.")] = "auto",
    profile: Annotated[
        str | None,
        typer.Option(help="MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH; one to four images of the model's size if left out."),
    ] = None,
    target: Annotated[
        Flavour | None, typer.Option(help="TensorRT where it is installed, else TensorRT for RTX, if left out.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="8.9 and the like: rtx builds ahead of time, on a machine without the card.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Memory for a layer's work: 4GiB.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0..5: build time against speed.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Read and written; one in the artifact if left out.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs with later versions of the same major TensorRT.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on all cards from Ampere on, and slower.")
    ] = False,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Compile an artifact's graphs into TensorRT engines, proved to have the precision asked for."""
    from spade_deploy.artifact import Artifact
    from spade_deploy.engines.base import parse_graph_choice
    from spade_deploy.engines.tensorrt import build as building
    from spade_deploy.engines.tensorrt.key import BuildOptions, parse_bytes
    from spade_deploy.runs.folders import resolve_artifact

    request = building.BuildRequest(
        precision=precision,
        graph=parse_graph_choice(graph),
        profile=None if profile is None else ShapeProfile.parse(profile),
        flavour=target,
        compute_capability=compute_capability,
        timing_cache=timing_cache,
        options=BuildOptions(
            optimization_level=optimization_level,
            workspace_bytes=None if workspace is None else parse_bytes(workspace),
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        ),
    )
    opened = Artifact.open(resolve_artifact(artifact, runs))
    with step_bar() as (_, on_progress):
        found = building.build_until_interrupted(
            opened, request, lambda name, what, done, total: on_progress(f"{name}: {what}", done, total)
        )
    print_engines(found)


@app.command(rich_help_panel="Check")
def validate(
    artifact: Annotated[
        Path | None, typer.Argument(help="An artifact or a run; the newest if left out.", show_default=False)
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label maps instead of the golden inputs.")] = None,
    instances: Annotated[Path | None, typer.Option(help="Their instance maps, paired by stem.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="What was exported; found by its digest if left out.")] = None,
    backend: Annotated[Backend, typer.Option(help="What runs the graphs.")] = Backend.AUTO,
    report: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    find_precision: Annotated[
        bool, typer.Option("--find-precision", help="Where an fp16 graph fails, find the layers that must stay fp32.")
    ] = False,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Compare every graph of an artifact with the untouched PyTorch module, or with its golden outputs."""
    from spade_deploy.artifact import Artifact
    from spade_deploy.files.atomic import write_json
    from spade_deploy.runs.folders import resolve_artifact
    from spade_deploy.validation.validate import validate as run_validate

    opened = Artifact.open(resolve_artifact(artifact, runs))
    with busy("validating") as tell:
        found = run_validate(
            opened,
            labels=labels,
            instances=instances,
            checkpoint=checkpoint,
            runs_dir=runs,
            backend=backend,
            on_progress=lambda precision, done, total: tell(f"validating {precision}: {done} of {total}"),
        )
    print_report(found, by_class=True)
    if report is not None:
        write_json(report, found.to_json())
        print_places(("report", report))
    if found.skipped:
        stderr().print(styled(f"{len(found.skipped)} label maps were skipped", "red"))
        for reason in found.skipped:
            stderr().print(f"  {reason}")
    if find_precision and not found.passed:
        with _needs("export"):
            from spade_deploy.validation.precision_search import search_failures
        with busy("searching") as tell:
            searches = search_failures(
                opened,
                found,
                backend,
                checkpoint=checkpoint,
                runs_dir=runs,
                on_trial=lambda name, trial: tell(f"{name}: tried with {len(trial.kept)} layers in fp32"),
            )
        for name, search in searches.items():
            stdout().print(f"{name}: {search}")
            print_next(f"spade export --fp16 {search.flags}")
    found.require_passed()
    if found.skipped:
        raise typer.Exit(1)


@app.command(rich_help_panel="Check")
def bench(
    artifact: Annotated[
        Path | None, typer.Argument(help="An artifact or a run; the newest if left out.", show_default=False)
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label maps to run; the golden inputs if left out.")] = None,
    instances: Annotated[Path | None, typer.Option(help="Their instance maps, paired by stem.")] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="May be repeated; all that are there if left out.")
    ] = None,
    graph: Annotated[
        list[str] | None, typer.Option(help="dense, lookup or auto; may be repeated; all graphs if left out.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="eager, compile, plain, openvino or all; may be repeated.")
    ] = None,
    backend: Annotated[Backend, typer.Option(help="What runs the graphs; baselines run on the CPU.")] = Backend.AUTO,
    batch_size: Annotated[int, typer.Option(help="Images a run of the graph.")] = 1,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH to run at instead of the model's size.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of every candidate; one a core if left out.")] = None,
    rounds: Annotated[int, typer.Option(help="In each, every candidate runs one batch.")] = 20,
    checkpoint: Annotated[Path | None, typer.Option(help="For baselines; found by its digest if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of bench.json and bench.png; bench/ beside the artifact.")
    ] = None,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Measure an artifact's graphs side by side: latency, images/s, memory, cold start. What is wrong has no figure."""
    from spade_deploy import bench as benching
    from spade_deploy.artifact import Artifact
    from spade_deploy.runs.folders import resolve_artifact

    opened = Artifact.open(resolve_artifact(artifact, runs))
    candidates = benching.choose_candidates(opened, precision or (), graph or (), baseline or (), backend)
    pixels = parse_size(size) if size else None
    cases = benching.read_cases(opened, labels, instances, batch_size, pixels, most=max(1, rounds) * batch_size)
    place = out if out is not None else opened.path.parent / "bench"
    with locked(place, "measuring"), busy("measuring") as tell:
        found = benching.bench(
            opened,
            candidates,
            cases,
            rounds=rounds,
            threads=threads,
            backend=backend,
            checkpoint=checkpoint,
            runs_dir=runs,
            on_step=tell,
            on_round=lambda done, total: tell(f"round {done} of {total}"),
        )
        files = benching.write_result(found, place)
    print_bench(found, files)
    found.require_right()


@app.command("check-labels", rich_help_panel="Check")
def check_labels(
    folder: Annotated[Path, typer.Argument(help="Label maps, or a data set's folder.", show_default=False)],
    preset: Annotated[
        str | None, typer.Option(help="earth, coco, ade20k, cityscapes, facades; or --num-labels.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(help="Classes are 0..N-1.")] = None,
    dontcare: Annotated[bool, typer.Option("--dontcare", help="255 means unknown.")] = False,
    images: Annotated[Path | None, typer.Option(help="The photos: pairs and sizes are checked too.")] = None,
    instances: Annotated[Path | None, typer.Option(help="The instance maps: pairs and sizes are checked too.")] = None,
    palette: Annotated[
        Path | None, typer.Option(help="Colours of RGB label maps: JSON, or lines 'R G B name'.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A code that is no finding; may be repeated.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write a corrected copy of the folder here.")] = None,
) -> None:
    """Find label maps that would train or infer wrongly; --fix converts what can be converted."""
    from spade_deploy.labels import lint as label_lint
    from spade_deploy.labels.fix import FixAction

    labels = label_lint.labels_to_check(preset, num_labels, has_dontcare=dontcare, palette=palette)
    with count_bar("checking") as report:
        found = label_lint.lint_folder(
            folder, labels, preset=preset or "custom", images_dir=images, instances_dir=instances, progress=report
        ).without(ignore or ())
    console = stdout()
    if found.findings:
        console.print(finding_table(found))
    counts = ", ".join(f"{count} {severity}s" for severity, count in found.counts().items() if count)
    console.print(f"checked {len(found.files)} label maps: {counts or 'nothing to report'}")
    is_clean = not found.errors
    if fix is not None:
        with locked(fix, "writing label maps", file=beside(fix, LOCK)), count_bar("fixing") as report:
            fixed = label_lint.fix_labels(found, fix, labels, progress=report)
        refused = [result for result in fixed if result.target is None]
        for result in fixed:
            if result.action != FixAction.COPIED:
                console.print(f"  {result.path}: {result.action}: {result.message}")
        counted = f"wrote {len(fixed) - len(refused)} of {len(fixed)} label maps to "
        console.print(line(counted, styled(one_line(fix), "bold")))
        is_clean = not refused
        print_next(f"spade check-labels {fix}" + (f" --preset {preset}" if preset else f" --num-labels {num_labels}"))
    elif any(finding.fixable for finding in found.findings):
        print_next(f"spade check-labels {folder} --fix OUT   converts what can be converted")
    if not is_clean:
        raise typer.Exit(1)


@app.command(rich_help_panel="Check")
def inspect(
    path: Annotated[Path, typer.Argument(help="An artifact, an engine, a checkpoint or a run.", show_default=False)],
    time: Annotated[
        bool, typer.Option("--time", help="Run an engine on its card, and give its layers' times.")
    ] = False,
) -> None:
    """Tell what a checkpoint, an artifact or an engine is."""
    from rich.table import Table

    from spade_deploy.inspection.describe import inspect_path

    found = inspect_path(path, with_times=time)
    console = stdout()
    table = Table(title=found.title, title_justify="left", show_header=False, box=None)
    for key, value in found.rows:
        table.add_row(styled(key, "dim"), one_line(value))
    console.print(table)
    for part in found.tables:
        table = Table(title=part.title, title_justify="left", box=None)
        for column in part.columns:
            table.add_column(column)
        for row in part.rows:
            table.add_row(*(one_line(cell) for cell in row))
        console.print()
        console.print(table)


@app.command(rich_help_panel="Check")
def doctor() -> None:
    """Tell what is installed, what really loads, and what to install for what is missing."""
    from rich.table import Table

    from spade_deploy.inspection.doctor import Status, diagnose

    marks = {
        Status.GOOD: styled("ok", "green"),
        Status.MISSING: styled("--", "yellow"),
        Status.PROBLEM: styled("!!", "red"),
    }
    table = Table(box=None, show_header=False)
    checks = diagnose()
    for check in checks:
        table.add_row(marks[check.status], check.name, check.value, styled(check.advice, "dim"))
    stdout().print(table)
    if any(check.status is Status.PROBLEM for check in checks):
        raise typer.Exit(1)


@app.command(rich_help_panel="Check")
def animate(
    run: Annotated[
        Path | None, typer.Argument(help="A run; the one with the newest checkpoint if left out.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A .gif or .mp4 file; RUN/samples.gif if left out.")] = None,
    fps: Annotated[float | None, typer.Option(help="Sample grids a second; about 8 s in all if left out.")] = None,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Make a GIF or MP4 of a run's sample grids: the same label maps, painted better and better."""
    from spade_deploy.runs.folders import newest_checkpoint
    from spade_deploy.training.records.animation import animate as make_animation

    run = run if run is not None else newest_checkpoint(runs).parent.parent
    made = make_animation(run, out if out is not None else run / "samples.gif", fps)
    stdout().print(f"{made.frames} of {made.grids} sample grids, {made.fps:.3g} a second")
    print_places(("animation", made.path))


@app.command(rich_help_panel="The main job")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Length of the training at its end.")] = None,
) -> None:
    """Do all of it with the shipped Earth model: export, proof, photos of unseen label maps, training, one gallery."""
    console = stdout()
    with _needs("train,export,cpu"):
        from spade_deploy.release.demo import run_demo

        def on_step(text: str) -> None:
            console.print(f"  {text}", style="dim")

        with locked(out, "running the demo"), training_bar() as report:
            made = run_demo(out, steps=steps, on_step=on_step, on_training=report)
    print_report(made.report)
    console.print(f"the demo took {duration(made.seconds)}, {duration(made.training_seconds)} of it training")
    print_places(
        ("gallery", made.gallery), ("artifact", made.artifact), ("photos", made.photos), ("label maps", made.labels)
    )
    print_next(f"open {made.gallery} in a browser; then, in a folder of your own: spade train")


def main() -> None:
    """The console script."""
    # Python processes that are started from here, by libraries too, import nothing from the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app()
    except SystemExit as ended:
        if (lifeline := sys.modules.get("spade_deploy.training.processes.peers")) is not None:
            lifeline.end_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """A package that is missing is an error with the extra that brings it."""
    from spade_deploy.errors import MissingDependencyError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("spade_deploy"):
            raise
        raise MissingDependencyError(
            f"{error.name} is not installed, which this command needs", hint=f"pip install 'spade-deploy[{extra}]'"
        ) from error


if __name__ == "__main__":
    main()
