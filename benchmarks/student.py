"""How good students of the shipped Earth model are, beside their teacher, and what each of them costs.

    python benchmarks/student.py RUN... --extractor FEATURES.onnx [--work DIR]

RUN: runs or checkpoints that `spade distill earth` trained; docs/students.md has the recipes. All are judged with their
teacher on the test split as `spade eval` does: Frechet and kernel distance over the extractor's features, segmentation
consistency with a segmenter that is trained on the real tiles of the training split. Each is exported, which proves the
export, and its float32 graphs run the test split's label maps in ONNX Runtime and OpenVINO, one thread, all models in
turns. Writes results/earth-students.json and docs/images/earth-students.png; with times also a plot beside the picture,
in which the students of earlier results can stand, too (`--also`).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from earth_sheet import LABEL_MAP, REAL_PHOTO, judged, parser_of, sheet
from PIL import Image
from printed import Printed

from spade_deploy.artifact import LABEL, PIXELS, Artifact
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.evaluation import EvalResult
from spade_deploy.files.atomic import atomic_file, write_json
from spade_deploy.files.reading import read_json
from spade_deploy.labels.earth import cut, earth_labels, earth_tiles
from spade_deploy.labels.files import colorize
from spade_deploy.lookup.cost import dense_macs, lookup_macs, mean_windows
from spade_deploy.networks.build import count_parameters
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, read_checkpoint_info, resolve_checkpoint
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.shipped import save_shipped
from spade_deploy.training.presets import preset

TEACHER = "earth"
ENGINES = tuple((backend, graph) for backend in ("cpu", "openvino") for graph in ("dense", "lookup"))
MAPS, ROUNDS, PICTURES = 8, 15, 5
SCALE = 1.25


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, "that keeps the exports")
    parser.add_argument("students", type=Path, nargs="+")
    parser.add_argument("--distances-only", action="store_true", help="no export, no times, no segmenter")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of timing; each is one run of a map by every graph")
    parser.add_argument("--result", default="earth-students.json", help="name of the JSON; the pictures have it, too")
    parser.add_argument("--also", type=Path, nargs="*", default=(), help="earlier results, for the plot alone")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        checkpoints = {TEACHER: teacher_checkpoint(work)}
        checkpoints |= {name_of(run): resolve_checkpoint(run, Path("runs")) for run in asked.students}
        facts = {name: model_facts(checkpoint) for name, checkpoint in checkpoints.items()}
        times = {} if asked.distances_only else measured_times(exported(checkpoints, work), asked.rounds)
        result = judged(
            list(checkpoints.values()), asked, work, train_segmenter=not asked.distances_only, pictures=PICTURES
        )
    models = {name: {**facts[name], **(costs(times, name) if times else {})} for name in checkpoints}
    value = {"models": models, "times_ms": times, "threads": 1, "evaluation": without_places(result)}
    write_json(asked.out / asked.result, {**value, "machine": describe_machine()})
    stem = Path(asked.result).stem
    picture(result, list(checkpoints)).save(asked.images / f"{stem}.png")
    rows = dict(zip(checkpoints, result.rows, strict=True))
    if times:
        write_plot([value, *(read_json(path) for path in asked.also)], asked.images / f"{stem}-plot.png")
    for name, row in rows.items():
        figures = {what: row.figure(what) for what in result.measured()}
        told = {what: round(value, 4) for what, value in figures.items() if value is not None}
        print(name, told, {what: models[name].get(what) for what in ("fastest", "fastest_ms", "share_of_teacher")})


def without_places(result: EvalResult) -> dict[str, Any]:
    """The evaluation as JSON, without the folders of this machine."""
    value = result.to_json()
    for row in (*value["models"], *value["references"]):
        row["path"] = None
        for name, found in (row.get("settings") or {}).items():
            if name.endswith("_file") and found:
                row["settings"][name] = Path(found).name
    return value


def name_of(run: Path) -> str:
    """The name of a run, with the step where a checkpoint is named."""
    return f"{run.resolve().parent.parent.name}, {run.name}" if run.name.startswith("step_") else run.resolve().name


def teacher_checkpoint(work: Path) -> Path:
    """The shipped model as a checkpoint, so that it can be exported as the students are."""
    checkpoint = checkpoint_folder(work / TEACHER, 0)
    if not checkpoint.exists():
        save_shipped(checkpoint, preset(TEACHER))
    return checkpoint


def model_facts(checkpoint: Path) -> dict[str, Any]:
    """Widths, size and multiply-adds of a model; the lookup's are the mean over the test split's label maps."""
    loaded = load_generator(checkpoint)
    spec, train = loaded.spec, loaded.info.train or {}
    maps = np.stack([cut(tile)[0] for tile in earth_tiles("test")])
    parameters = count_parameters(loaded.module)
    told = ("batch_size", "lr_generator", "lr_discriminator", "weight_l1", "weight_perceptual", "ema_decay", "amp")
    return {
        "step": loaded.info.step,
        "generator_sha256": loaded.info.generator_sha256,
        "teacher_sha256": (loaded.info.teacher or ("", ""))[1],
        "base_channels": spec.base_channels,
        "hidden_channels": spec.hidden_channels,
        "parameters": parameters,
        "weights_float16_bytes": 2 * parameters,
        "dense_macs": dense_macs(spec),
        "lookup_macs": lookup_macs(spec, mean_windows(spec, maps)),
        "training": {name: train.get(name) for name in told} | {"distill": train.get("distill")},
    }


def exported(checkpoints: dict[str, Path], work: Path) -> dict[str, Artifact]:
    """A validated float32 artifact of every model. One that is there, of the same weights, is kept."""
    found = {}
    for name, checkpoint in checkpoints.items():
        out = work / "artifacts" / name.replace(", ", "-")
        if out.exists():
            kept = Artifact.open(out)
            if kept.manifest.source.generator_sha256 == read_checkpoint_info(checkpoint).generator_sha256:
                found[name] = kept
                continue
        request = ReleaseRequest(checkpoint=checkpoint, out=out, tune=False)
        found[name] = export_checkpoint(request, runs_dir=work, progress=Printed()).artifact
    return found


def measured_times(artifacts: dict[str, Artifact], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each run by model and engine. In a round every graph runs one map, in an order that rotates."""
    maps = [cut(tile)[0][None] for tile in earth_tiles("test")]
    maps = [maps[place * len(maps) // MAPS] for place in range(MAPS)]
    times: dict[str, dict[str, list[float]]] = {name: {} for name in artifacts}
    with ExitStack() as stack:
        runtimes = [
            (name, f"{backend} {graph}", stack.enter_context(open_runtime(artifact, None, backend, 1, graph)))
            for name, artifact in artifacts.items()
            for backend, graph in ENGINES
        ]
        for _, _, runtime in runtimes:
            for one in maps:
                runtime.run({LABEL: one}, [PIXELS])
        for number in range(rounds):
            shift = number % len(runtimes)
            for name, engine, runtime in runtimes[shift:] + runtimes[:shift]:
                began = time.perf_counter()
                runtime.run({LABEL: maps[number % MAPS]}, [PIXELS])
                times[name].setdefault(engine, []).append(1e3 * (time.perf_counter() - began))
    return times


def costs(times: dict[str, dict[str, list[float]]], name: str) -> dict[str, Any]:
    """The fastest engine of a model by its median, and its share of the teacher's time by the teacher's fastest.

    The share is the median of the shares of each round, in which both ran the same map.
    """
    best = {model: min(own, key=lambda engine: statistics.median(own[engine])) for model, own in times.items()}
    own, teacher = times[name][best[name]], times[TEACHER][best[TEACHER]]
    shares = [one / other for one, other in zip(own, teacher, strict=True)]
    by_engine = {
        engine: statistics.median(a / b for a, b in zip(times[name][engine], times[TEACHER][engine], strict=True))
        for engine in times[name]
    }
    medians = {engine: statistics.median(values) for engine, values in times[name].items()}
    return {
        "fastest": best[name],
        "fastest_ms": medians[best[name]],
        "share_of_teacher": statistics.median(shares),
        "median_ms": medians,
        "share_by_engine": by_engine,
    }


def picture(result: EvalResult, names: Sequence[str]) -> Image.Image:
    """A row a tile: label map, teacher, students, photo."""
    rows = [(colorize(one.label, earth_labels()), *one.images.values(), one.photo) for one in result.strips]
    return sheet((LABEL_MAP, *names, REAL_PHOTO), rows, round(result.strips[0].photo.shape[0] * SCALE))


def write_plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Kernel distance, with its 95 % interval, against the share of the time of the teacher, which is shown once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    most, shown = 0.0, set[str]()
    for value in results:
        rows = {row["generator_sha256"]: row for row in value["evaluation"]["models"]}
        for name, facts in value["models"].items():
            row = rows[facts["generator_sha256"]]
            if row["kernel"] is None or facts["generator_sha256"] in shown:
                continue
            shown.add(facts["generator_sha256"])
            kernel, half = row["kernel"]["value"], row["intervals_95"]["kernel"]
            text = f"base {facts['base_channels']}, hidden {facts['hidden_channels']}"
            text = f"teacher: {text}" if name == TEACHER else f"{text}, step {facts['step']}"
            axes.errorbar([facts["share_of_teacher"]], [kernel], [half], fmt="o", capsize=3, label=text)
            most = max(most, kernel + half)
    axes.set_xlim(0, 1.2)
    axes.set_ylim(0, 1.1 * most)
    axes.set_xlabel("share of the teacher's time, fastest engine of each, one thread")
    axes.set_ylabel("kernel distance to held-out photos")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
