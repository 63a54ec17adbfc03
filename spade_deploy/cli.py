"""The command line: one function a command, which parses, calls one function and prints. No logic.

Nothing heavy is imported before a command needs it: `spade --help` answers in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    print_estimate,
    print_evaluation,
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
from spade_deploy.errors import SpadeError, system_error
from spade_deploy.files.atomic import beside
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.printable import one_line
from spade_deploy.spec import Architecture, Flavour, NormType, Precision, ShapeProfile, Upsampling, parse_size

if TYPE_CHECKING:
    from spade_deploy.training.session import Session


class Backend(StrEnum):
    """What runs an artifact."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    ORT_TENSORRT = "ort-tensorrt"


class FirstInput(StrEnum):
    """What the generator's first layer is fed."""

    SEGMAP = "segmap"
    NOISE = "noise"


class Resize(StrEnum):
    """What happens to label maps of another size."""

    MODEL = "model"
    NEVER = "never"


class _Commands(TyperGroup):
    """Prints what a user can mend as one message; anything else is a defect and keeps its traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        check_terminal_size()  # the help, too, is wrapped by it
        return super().main(*args, **options)

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


class _TrainCommand(TyperCommand):
    """Lets --resume stand alone: then the newest run is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for index, arg in enumerate(args):
            is_bare = index + 1 == len(args) or args[index + 1].startswith("-")
            if arg == "--resume" and is_bare:
                args = [*args[: index + 1], "newest", *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)


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
data_app = typer.Typer(no_args_is_help=True, help="Write the embedded demo data set as ordinary folders.")
app.add_typer(data_app, name="data", rich_help_panel="The main job")

RunsDir = Annotated[Path, typer.Option("--runs", help="Folder of runs, in which the newest is looked for.")]
DATA, NETWORK, LEARNING = "Data", "Network", "Losses and rates"
SPEED, MEASURING = "Speed and memory", "Measuring while it trains"
INT8 = "int8"
JUDGES = "Judges"
DEFAULT_RUNS = Path("runs")
SHOWN_OF_A_RUN = (("over time", "timeline.png"), ("as a film", "samples.gif"), ("metrics", "metrics.png"))


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


@app.command(cls=_TrainCommand, rich_help_panel="The main job")
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA, help="earth (embedded, for a CPU), coco, ade20k, cityscapes, facades or custom."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="Folder of the data set, in the preset's official layout.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(rich_help_panel=DATA, help="custom: folder of label maps.")] = None,
    images: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="custom: folder of photos, paired by stem.")
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="custom: folder of instance maps; adds an edge channel.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(rich_help_panel=DATA, help="custom: classes are 0..N-1.")] = None,
    dontcare: Annotated[
        bool | None,
        typer.Option("--dontcare/--no-dontcare", rich_help_panel=DATA, help="custom: 255 in label maps means unknown."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Length of the run in epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=LEARNING, help="Samples a step.")] = None,
    size: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="HEIGHTxWIDTH in pixels, such as 256x512.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", rich_help_panel=DATA, help="Mirror half of the samples.")
    ] = None,
    load_size: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Samples are resized to this, then cropped at random.")
    ] = None,
    generator: Annotated[
        Architecture | None,
        typer.Option(rich_help_panel=NETWORK, help="spade, or a baseline of its paper: pix2pixhd, crn."),
    ] = None,
    vae: Annotated[
        bool,
        typer.Option("--vae", rich_help_panel=NETWORK, help="A style vector, and an encoder that finds it in photos."),
    ] = False,
    first_input: Annotated[
        FirstInput | None,
        typer.Option(rich_help_panel=NETWORK, help="What the first layer is fed: the segmap, or noise (an ablation)."),
    ] = None,
    base_channels: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Width of the generator; the paper has 64.")
    ] = None,
    hidden_channels: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Width inside SPADE; the paper has 128.")
    ] = None,
    kernel_size: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Of the convolutions inside SPADE: 1, 3 or 5.")
    ] = None,
    norm: Annotated[NormType | None, typer.Option(rich_help_panel=NETWORK, help="Normalisation inside SPADE.")] = None,
    spectral_norm: Annotated[
        bool | None, typer.Option("--spectral-norm/--no-spectral-norm", rich_help_panel=NETWORK)
    ] = None,
    upsampling: Annotated[
        Upsampling | None, typer.Option(rich_help_panel=NETWORK, help="Doublings: normal 5, more 6, most 7.")
    ] = None,
    discriminator_scales: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Patch discriminators, each on a halved image.")
    ] = None,
    discriminator_layers: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Convolutions of each before its scores.")
    ] = None,
    discriminator_channels: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Width of the discriminator; the paper has 64.")
    ] = None,
    gan_mode: Annotated[
        str | None, typer.Option(rich_help_panel=LEARNING, help="Adversarial loss: hinge, ls, original or wgan.")
    ] = None,
    discriminator_steps: Annotated[
        int | None, typer.Option(rich_help_panel=LEARNING, help="Steps of the discriminator for one of the generator.")
    ] = None,
    lr_generator: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Learning rate of the generator.")
    ] = None,
    lr_discriminator: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Learning rate of the discriminator.")
    ] = None,
    ttur: Annotated[
        bool, typer.Option("--ttur/--no-ttur", rich_help_panel=LEARNING, help="Two time scales, or one rate of 2e-4.")
    ] = True,
    betas: Annotated[str | None, typer.Option(rich_help_panel=LEARNING, help="Adam's, such as 0,0.9.")] = None,
    decay_start: Annotated[
        float | None,
        typer.Option(rich_help_panel=LEARNING, help="Share of the run after which the rates fall; 1 is never."),
    ] = None,
    weight_l1: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Weight of the pixels' L1 loss.")
    ] = None,
    weight_kl: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Weight of the encoder's KL divergence (--vae).")
    ] = None,
    weight_feature_matching: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Weight of feature matching.")
    ] = None,
    weight_perceptual: Annotated[
        float | None, typer.Option(rich_help_panel=LEARNING, help="Weight of the perceptual loss.")
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(rich_help_panel=LEARNING, help="Perceptual loss with downloaded weights: vgg19 (paper) or vgg16."),
    ] = None,
    perceptual_file: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=LEARNING,
            help="VGG16 or VGG19 weights: torchvision's, or Caffe's as .npz; switches that loss on.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(rich_help_panel=LEARNING, help="Of the weights and the order of the samples.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(rich_help_panel=DATA, help="Loading processes; 0 loads in this one.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep_checkpoints: Annotated[int | None, typer.Option(help="How many of the newest are kept.")] = None,
    sample_every: Annotated[int | None, typer.Option(help="Steps between sample grids.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between rows of losses.csv.")] = None,
    device: Annotated[str | None, typer.Option(rich_help_panel=SPEED, help="auto, cpu, cuda or cuda:1.")] = None,
    amp: Annotated[
        str | None, typer.Option(rich_help_panel=SPEED, help="Mixed precision: off, bf16, or fp16 with a loss scaler.")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last", rich_help_panel=SPEED, help="Memory layout; on if left out."
        ),
    ] = None,
    compile_: Annotated[
        bool | None,
        typer.Option("--compile", rich_help_panel=SPEED, help="Through torch.compile; needs a C++ compiler."),
    ] = None,
    modulation: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED, help="dense, or lookup: gamma and beta once for each pattern of labels; exact."
        ),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(rich_help_panel=SPEED, help="Compute a step's batch in N parts: less memory.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=LEARNING, help="Deploy the moving average of the generator: decay, such as 0.999."
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", rich_help_panel=SPEED, help="Deterministic algorithms alone; slower."),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(rich_help_panel=MEASURING, help="Steps between measurements on held-out samples.")
    ] = None,
    eval_samples: Annotated[int | None, typer.Option(rich_help_panel=MEASURING, help="How many samples; 64.")] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(rich_help_panel=MEASURING, help="ONNX feature extractor: Frechet and kernel distance."),
    ] = None,
    segmenter: Annotated[
        Path | None, typer.Option(rich_help_panel=MEASURING, help="ONNX segmenter: mean IoU and accuracy.")
    ] = None,
    best_by: Annotated[
        str | None, typer.Option(rich_help_panel=MEASURING, help="Keep the checkpoint that is best by this metric.")
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", rich_help_panel=MEASURING, help="Also write TensorBoard event files."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Begin with a generator's weights: a run, a checkpoint, or earth (shipped)."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Predict memory and time of this training, and stop.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The run's name; numbered by itself otherwise.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[RUN]", help="Go on with a run; without a value with the newest.")
    ] = None,
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Train a generator; without options on the embedded Earth data, for a CPU."""
    with _needs("train"):
        from spade_deploy.training import request, session
        from spade_deploy.training.processes import join as distributed

        asked = request.TrainRequest(
            data=request.DataRequest(
                preset,
                data,
                labels,
                images,
                instances,
                num_labels,
                dontcare,
                parse_size(size) if size else None,
                parse_size(load_size) if load_size else None,
                flip,
            ),
            generator={
                "architecture": generator,
                "base_channels": base_channels,
                "hidden_channels": hidden_channels,
                "kernel_size": kernel_size,
                "norm": norm,
                "spectral_norm": spectral_norm,
                "upsampling": upsampling,
            },
            train={
                "steps": steps,
                "epochs": epochs,
                "batch_size": batch_size,
                "lr_generator": lr_generator,
                "lr_discriminator": lr_discriminator,
                "betas": request.parse_betas(betas) if betas else None,
                "decay_start": decay_start,
                "gan_mode": gan_mode,
                "discriminator_steps": discriminator_steps,
                "weight_l1": weight_l1,
                "weight_kl": weight_kl,
                "weight_feature_matching": weight_feature_matching,
                "weight_perceptual": weight_perceptual,
                "perceptual_file": perceptual_file,
                "seed": seed,
                "workers": workers,
                "save_every": save_every,
                "keep_checkpoints": keep_checkpoints,
                "sample_every": sample_every,
                "log_every": log_every,
                "device": device,
                "amp": amp,
                "channels_last": channels_last,
                "compile": compile_,
                "modulation": modulation,
                "accumulate": accumulate,
                "ema_decay": ema,
                "init": init,
                "deterministic": deterministic,
                "eval_every": eval_every,
                "eval_samples": eval_samples,
                "extractor": extractor,
                "segmenter": segmenter,
                "best_by": best_by,
                "tensorboard": tensorboard,
            },
            discriminator={
                "scales": discriminator_scales,
                "layers": discriminator_layers,
                "base_channels": discriminator_channels,
            },
            ttur=ttur,
            vae=vae,
            first_input=first_input,
            perceptual=perceptual,
        )
        if estimate:
            print_estimate(*session.foretell(asked, runs_dir=runs, resume=resume))
            raise typer.Exit
        with distributed.join_world() as world:
            _train(session.start(asked, runs_dir=runs, name=name, resume=resume, world=world))


def _train(started: Session) -> None:
    """Train what is ready, and say what came of it."""
    out = stdout()
    out.print(f"training {started.run}: {started.described}")
    for note in started.notes:
        out.print(f"  note: {note}")
    with training_bar() if started.world.is_main else nullcontext(lambda _: None) as report:
        result = started.train(report)
    for note in result.notes:
        out.print(f"  note: {note}")
    for skipped in result.skipped[:5]:
        out.print(f"  skipped: {skipped}")
    if len(result.skipped) > 5:
        out.print(f"  note: {len(result.skipped)} samples were skipped; all are in {result.run / 'skipped.txt'}")
    out.print(f"trained {result.step} steps in {duration(result.seconds)}")
    print_places(
        ("checkpoint", result.checkpoint),
        ("samples", result.run / "samples"),
        ("losses", result.run / "losses.png"),
        *((what, result.run / file) for what, file in SHOWN_OF_A_RUN if (result.run / file).is_file()),
        *((("label maps to try", started.example_labels),) if started.example_labels else ()),
    )
    print_next("spade export --fp16")


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
        Resize,
        typer.Option(help="model: every map is resized to the model's size, nearest. never: its own size must fit."),
    ] = Resize.MODEL,
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
        from spade_deploy.engines.base import Backend as RuntimeBackend

        with _needs("export"):
            from spade_deploy.validation.precision_search import search_failures
        with busy("searching") as tell:
            searches = search_failures(
                opened,
                found,
                RuntimeBackend(backend.value),
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


@app.command("eval", rich_help_panel="Check")
def eval_(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs, checkpoints, artifacts or folders of images, compared in one report; the newest run if left"
            " out.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="Folder of the data set; the training's own if left out.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Its layout: earth, coco, ade20k and so on.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(rich_help_panel=DATA, help="Label maps instead of a data set.")] = None,
    images: Annotated[Path | None, typer.Option(rich_help_panel=DATA, help="Real photos of them, by stem.")] = None,
    instances: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="Their instance maps, paired by stem.")
    ] = None,
    num_labels: Annotated[
        int | None, typer.Option(rich_help_panel=DATA, help="For folders of images alone: classes are 0..N-1.")
    ] = None,
    dontcare: Annotated[
        bool | None, typer.Option("--dontcare/--no-dontcare", rich_help_panel=DATA, help="And 255 means unknown.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="train, val or test; the held-out one if left out.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="HEIGHTxWIDTH instead of the models' own.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(rich_help_panel=DATA, help="At most so many, evenly spaced; all if left out.")
    ] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(rich_help_panel=JUDGES, help="ONNX network for the Frechet and kernel distances of its features."),
    ] = None,
    extractor_mean: Annotated[
        str | None, typer.Option(rich_help_panel=JUDGES, help="Its normalisation, of pixels 0..255: 127, or R,G,B.")
    ] = None,
    extractor_std: Annotated[str | None, typer.Option(rich_help_panel=JUDGES, help="(pixels - mean) / std.")] = None,
    extractor_size: Annotated[
        str | None, typer.Option(rich_help_panel=JUDGES, help="HEIGHTxWIDTH that images are resized to for it.")
    ] = None,
    extractor_output: Annotated[
        str | None, typer.Option(rich_help_panel=JUDGES, help="Its output to take, where it has several.")
    ] = None,
    segmenter: Annotated[
        Path | None,
        typer.Option(rich_help_panel=JUDGES, help="ONNX segmenter: does it see in the images what was asked for?"),
    ] = None,
    train_segmenter: Annotated[
        bool,
        typer.Option(
            "--train-segmenter", rich_help_panel=JUDGES, help="Train one on the real photos, once a data set."
        ),
    ] = False,
    segmenter_steps: Annotated[int | None, typer.Option(rich_help_panel=JUDGES, help="Length of its training.")] = None,
    styles: Annotated[
        int, typer.Option(rich_help_panel=JUDGES, help="Images of one label map whose diversity is measured.")
    ] = 0,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run its best checkpoint, by --best-by of its training; not the newest.")
    ] = False,
    backend: Annotated[Backend, typer.Option(help="What runs the models.")] = Backend.AUTO,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 4,
    seed: Annotated[int, typer.Option(help="Of styles and of the kernel distance's subsets.")] = 0,
    pictures: Annotated[int, typer.Option(help="Samples that the page shows.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of evaluation.json and evaluation.html.")] = Path("evaluation"),
    runs: RunsDir = DEFAULT_RUNS,
) -> None:
    """Judge models by their images of held-out label maps; several at once are compared in one report."""
    from spade_deploy import evaluation
    from spade_deploy.engines.base import Backend as RuntimeBackend

    asked = evaluation.request_from_flags(
        models or (),
        evaluation.DataFlags(
            preset, data, labels, images, instances, num_labels, dontcare, split, parse_size(size) if size else None
        ),
        {"mean": extractor_mean, "std": extractor_std, "size": extractor_size, "output": extractor_output},
        samples=samples,
        extractor=extractor,
        segmenter=segmenter,
        train_segmenter=train_segmenter,
        segmenter_steps=segmenter_steps,
        styles=styles,
        best=best,
        backend=RuntimeBackend(backend.value),
        batch_size=batch_size,
        seed=seed,
        pictures=pictures,
    )
    with locked(out, "evaluating"):
        with _needs("train,export,cpu"), step_bar() as (on_step, on_progress):
            found = evaluation.evaluate(asked, runs_dir=runs, on_step=on_step, on_progress=on_progress)
        print_evaluation(found, evaluation.write_report(found, out))
    if extractor is None and segmenter is None and not train_segmenter:
        print_next("spade eval --train-segmenter   (what the images show), --extractor FILE.onnx (how real they look)")
    if found.all_skipped:
        stderr().print(styled(f"{len(found.all_skipped)} files could not be used and were skipped", "red"))
        for reason in found.all_skipped[:20]:
            stderr().print(f"  {reason}")
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


@data_app.command("earth")
def data_earth(
    out: Annotated[Path, typer.Argument(help="Where train/, val/ and test/ go.", show_default=False)],
) -> None:
    """Write satellite photos and land-cover label maps: OUT/{train,val,test}/{labels,images}/."""
    from spade_deploy.labels.earth import write_earth

    with locked(out, "writing the Earth data set"), count_bar("writing") as report:
        counts = write_earth(out, report)
    counted = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test"))
    written = f": {counted} pairs ({counts['written']} files written now)"
    stdout().print(line("the Earth data set is in ", styled(one_line(out), "bold"), written))
    print_next(f"spade infer {out / 'test' / 'labels'} photos/")


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
        if (peers := sys.modules.get("spade_deploy.training.processes.peers")) is not None:
            peers.end_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
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
