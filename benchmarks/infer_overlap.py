"""`spade infer` against the bare session: what reading, resizing, encoding and writing cost where they overlap.

Both sides run in turn in one process on the same graph, the same label maps and the same session options, batch 1.
The bare side is plain onnxruntime over arrays that are ready in memory, and throws the pixels away. The other side is
`infer`, from PNG files to PNG files. Opening the session is in neither; each round opens new ones, in an order that
alternates, and its ratio compares neighbours in time. Before anything is timed, the pixels of both must be equal.
What other processes take is watched on Linux: a round of which they had more than 4 % of the machine is disturbed, kept
in the results but out of the medians, and done again for as long as --patience lasts.

Weights are random: no arithmetic depends on their values. Images of an untrained model are nearly black or white,
though, and quick to compress, so the last layer is scaled until they take as many bytes as photos do:
`result_bytes_per_pixel` says how many; those of the demo data set take 1.4 to 1.7 (10th to 90th percentile).

    python benchmarks/infer_overlap.py [--case earth] [--rounds 9] [--out benchmarks/results/infer_overlap.json]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Arrays, Artifact, Source
from spade_deploy.bench.machine import describe_machine
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.files.atomic import write_json
from spade_deploy.images.image_file import read_photo
from spade_deploy.inference import InferRequest, infer
from spade_deploy.labels.files import read_instance_map, read_label_map, synthetic_label_maps
from spade_deploy.machine.memory import busy_seconds
from spade_deploy.networks.spade import SpadeGenerator, make_segmap
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision

GOAL = 0.9
"""The least share of the bare session's throughput that is worth having."""
QUIET = 0.04
CONTRAST = 0.2


@dataclass(frozen=True)
class Case:
    """A generator, how many label maps, and the size of their files (None: that of the model)."""

    spec: GeneratorSpec
    images: int
    file_size: tuple[int, int] | None = None


EARTH = GeneratorSpec(LabelSpec(17), base_channels=16, hidden_channels=32, height=128, width=128)
COCO = GeneratorSpec(LabelSpec(182, has_dontcare=True, has_edges=True), base_channels=32, hidden_channels=64)
CASES = {
    "earth": Case(EARTH, 60),
    "earth, files of 512 x 512": Case(EARTH, 60, file_size=(512, 512)),
    "coco": Case(COCO, 8),
}


@dataclass(frozen=True)
class Setup:
    """An artifact, its label files, and the same as arrays of batch 1 in the order of the files."""

    artifact: Artifact
    labels: Path
    instances: Path | None
    out: Path
    arrays: list[Arrays]


@dataclass(frozen=True)
class Round:
    """Seconds for all images on both sides; others: the machine's share that other processes had, if it is known."""

    bare_s: float
    infer_s: float
    others: float | None

    @property
    def ratio(self) -> float:
        """Throughput of `infer` over that of its neighbour in time."""
        return self.bare_s / self.infer_s

    @property
    def is_quiet(self) -> bool:
        return self.others is None or self.others <= QUIET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="all of them by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patience", type=float, default=300, help="seconds a case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "infer_overlap.json")
    arguments = parser.parse_args()
    names = arguments.case or list(CASES)
    results = {}
    for name in names:
        results[name] = measure(name, CASES[name], arguments.rounds, arguments.patience)
        write_json(arguments.out, {"machine": describe_machine(), "goal": GOAL, "cases": results})
    print(f"written to {arguments.out}")


def measure(name: str, case: Case, rounds: int, patience_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder), case)
        bytes_per_pixel = validate(setup)
        one_round(setup, bare_first=True)  # warms caches and clocks
        done: list[Round] = []
        end = time.monotonic() + patience_s
        while len(done) < rounds or (time.monotonic() < end and sum(entry.is_quiet for entry in done) < rounds):
            done.append(one_round(setup, bare_first=len(done) % 2 == 0))
    quiet = [entry for entry in done if entry.is_quiet]
    counted = quiet if len(quiet) >= rounds else done
    bare_s, infer_s, ratio = (
        statistics.median(getattr(entry, what) for entry in counted) for what in ("bare_s", "infer_s", "ratio")
    )
    print(
        f"{name}: bare {case.images / bare_s:.2f}, infer {case.images / infer_s:.2f} images/s, ratio {ratio:.3f},"
        f" of {len(counted)} rounds ({len(quiet)} quiet ones of {len(done)})",
        flush=True,
    )
    return {
        "generator": case.spec.to_json(),
        "images": case.images,
        "file_size": case.file_size,
        "result_bytes_per_pixel": bytes_per_pixel,
        "bare_images_per_s": case.images / bare_s,
        "infer_images_per_s": case.images / infer_s,
        "ratio": ratio,
        "reaches_goal": ratio >= GOAL,
        "quiet_rounds_alone": counted is quiet,
        "rounds": [{**asdict(entry), "ratio": entry.ratio, "is_quiet": entry.is_quiet} for entry in done],
    }


def one_round(setup: Setup, *, bare_first: bool) -> Round:
    before, own_before, start = busy_seconds(), time.process_time(), time.perf_counter()
    if bare_first:
        bare_s, infer_s = bare_seconds(setup), infer_seconds(setup)
    else:
        infer_s, bare_s = infer_seconds(setup), bare_seconds(setup)
    after, own, wall = busy_seconds(), time.process_time() - own_before, time.perf_counter() - start
    if before is None or after is None:
        return Round(bare_s, infer_s, None)
    return Round(bare_s, infer_s, max(0.0, after - before - own) / (wall * (os.cpu_count() or 1)))


def bare_seconds(setup: Setup) -> float:
    session = open_session(setup.artifact)
    start = time.perf_counter()
    for inputs in setup.arrays:
        session.run([PIXELS], inputs)
    return time.perf_counter() - start


def infer_seconds(setup: Setup) -> float:
    shutil.rmtree(setup.out, ignore_errors=True)
    summary = infer(setup.artifact, InferRequest(setup.labels, setup.out, instances=setup.instances, backend="cpu"))
    if summary.written != len(setup.arrays):
        raise SystemExit(f"only {summary.written} images were written: {summary.failures}")
    return summary.seconds


def validate(setup: Setup) -> float:
    """No figure without it: the files of `infer` hold the bare session's pixels. Returns their bytes per pixel."""
    infer_seconds(setup)
    session = open_session(setup.artifact)
    results = sorted(setup.out.iterdir())
    for result, inputs in zip(results, setup.arrays, strict=True):
        (pixels,) = session.run([PIXELS], inputs)
        if not np.array_equal(read_photo(result), pixels[0]):
            raise SystemExit(f"{result} does not hold the session's pixels")
    pixels_in_all = sum(inputs[LABEL].size for inputs in setup.arrays)
    return sum(result.stat().st_size for result in results) / pixels_in_all


def open_session(artifact: Artifact) -> Any:
    path = artifact.path_of(artifact.graph(Precision.FP32).file)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def make_setup(folder: Path, case: Case) -> Setup:
    spec = case.spec
    artifact = make_artifact(folder / "artifact", spec)
    size = (spec.height, spec.width)
    ids, regions = synthetic_label_maps(spec.labels, *(case.file_size or size), case.images, seed=1)
    labels, instances = folder / "labels", folder / "instances"
    arrays: list[Arrays] = []
    for number, (label, instance) in enumerate(zip(ids, regions, strict=True)):
        file = write_png(labels / f"{number:04d}.png", label)
        inputs: Arrays = {LABEL: read_label_map(file, spec.labels, size)[None]}
        if spec.labels.has_edges:
            # 16 bits, as such files are; the ids of objects say their class too, as in Cityscapes.
            file = write_png(instances / file.name, (instance + 200 * label.astype(np.uint16)).astype(np.uint16))
            inputs[INSTANCE] = read_instance_map(file, size)[None]
        arrays.append(inputs)
    return Setup(artifact, labels, instances if spec.labels.has_edges else None, folder / "out", arrays)


def write_png(path: Path, ids: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(ids).save(path)
    return path


def make_artifact(folder: Path, spec: GeneratorSpec) -> Artifact:
    torch.manual_seed(0)
    generator = SpadeGenerator(spec).eval()
    folder.mkdir()
    ids, regions = synthetic_label_maps(spec.labels, spec.height, spec.width, 1, seed=0)
    scale_last_layer(generator, torch.from_numpy(ids), torch.from_numpy(regions))
    export_artifact(
        generator,
        folder,
        ExportRequest(
            precisions=[Precision.FP32],
            golden_inputs={LABEL: ids, **({INSTANCE: regions} if spec.labels.has_edges else {})},
            source=Source("benchmark", None, "train", "0" * 64),
        ),
    )
    return Artifact.open(folder)


def scale_last_layer(generator: SpadeGenerator, label: torch.Tensor, instance: torch.Tensor) -> None:
    """In place: each colour gets mean 0 and deviation CONTRAST before the tanh."""
    seen: list[torch.Tensor] = []
    hook = generator.conv_img.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        generator(make_segmap(label, instance, generator.spec.labels))
        mean, deviation = seen[0].mean((0, 2, 3)), seen[0].std((0, 2, 3))
        last = generator.conv_img
        assert last.bias is not None  # SPADE's last layer has one
        last.weight *= (CONTRAST / deviation)[:, None, None, None]
        last.bias.sub_(mean).mul_(CONTRAST / deviation)
    hook.remove()


if __name__ == "__main__":
    main()
