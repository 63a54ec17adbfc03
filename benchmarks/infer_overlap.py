"""`spade infer` against the bare session: what decoding, resizing, encoding and writing cost where they overlap.

Both run in turn in one process, on the same artifact, the same label maps and the same ONNX Runtime settings. The bare
side runs a session over arrays that are ready in memory, and throws the pixels away; the other side is `infer` from
PNG files to PNG files. Loading is in neither. Weights are random: no arithmetic depends on their values.

    python benchmarks/infer_overlap.py [--case earth] [--rounds 9] [--out benchmarks/results/infer_overlap.json]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spade_deploy.artifact import LABEL, PIXELS, Artifact, Source
from spade_deploy.atomic import write_json
from spade_deploy.engines.runtime import open_runtime
from spade_deploy.export.pipeline import export_artifact
from spade_deploy.inference import infer
from spade_deploy.label_map import label_dtype, synthetic_label_maps
from spade_deploy.spec import GeneratorSpec, LabelSpec, Precision
from spade_deploy.training.networks import SpadeGenerator


@dataclass(frozen=True)
class Case:
    """A generator, how many label maps, and the size of their files (None: that of the model)."""

    spec: GeneratorSpec
    images: int
    batch_size: int = 1
    file_size: tuple[int, int] | None = None


EARTH = GeneratorSpec(LabelSpec(17), base_channels=16, hidden_channels=32, height=128, width=128)
LARGE = GeneratorSpec(LabelSpec(17), base_channels=32, hidden_channels=64, height=256, width=256)
CASES = {
    "earth": Case(EARTH, 40),
    "earth, batch 4": Case(EARTH, 40, batch_size=4),
    "earth, files of 512 x 512": Case(EARTH, 40, file_size=(512, 512)),
    "large": Case(LARGE, 10),
}


@dataclass
class Figures:
    """Images a second, one entry a round."""

    bare: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the rounds' own ratios: what slows the machine for a while slows both sides of a round."""
        return statistics.median(ours / bare for ours, bare in zip(self.infer, self.bare, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="all of them by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "infer_overlap.json")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.case or CASES:
        figures = measure(CASES[name], arguments.rounds)
        bare, ours = statistics.median(figures.bare), statistics.median(figures.infer)
        print(f"{name}: bare {bare:.1f}, infer {ours:.1f} images/s; ratio {figures.ratio:.3f}")
        results[name] = {
            "images": CASES[name].images,
            "batch_size": CASES[name].batch_size,
            "file_size": CASES[name].file_size,
            "generator": CASES[name].spec.to_json(),
            "bare_images_per_s": bare,
            "infer_images_per_s": ours,
            "ratio": figures.ratio,
            "rounds": asdict(figures),
        }
    write_json(arguments.out, {"machine": machine(), "load_when_done": os.getloadavg(), "cases": results})
    print(f"written to {arguments.out}")


def measure(case: Case, rounds: int) -> Figures:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = make_artifact(folder / "artifact", case.spec)
        height, width = case.file_size or (case.spec.height, case.spec.width)
        ids, _ = synthetic_label_maps(case.spec.labels, height, width, case.images, seed=1)
        (folder / "labels").mkdir()
        for number, label in enumerate(ids):
            Image.fromarray(label).save(folder / "labels" / f"{number:04d}.png")
        small, _ = synthetic_label_maps(case.spec.labels, case.spec.height, case.spec.width, case.images, seed=1)
        figures = Figures()
        for round_number in range(rounds + 1):
            bare = bare_session(artifact, small.astype(label_dtype(case.spec.labels)), case.batch_size)
            out = folder / "out"
            summary = infer(artifact, folder / "labels", out, batch_size=case.batch_size)
            if summary.written != case.images:
                raise SystemExit(f"{summary.failures}")
            shutil.rmtree(out)
            if round_number:  # the first round warms caches and clocks
                figures.bare.append(bare)
                figures.infer.append(summary.images_per_s)
        return figures


def bare_session(artifact: Artifact, labels: np.ndarray, batch_size: int) -> float:
    with open_runtime(artifact) as runtime:
        start = time.perf_counter()
        for first in range(0, len(labels), batch_size):
            runtime.run({LABEL: labels[first : first + batch_size]}, [PIXELS])
        return len(labels) / (time.perf_counter() - start)


def make_artifact(folder: Path, spec: GeneratorSpec) -> Artifact:
    torch.manual_seed(0)
    folder.mkdir()
    ids, _ = synthetic_label_maps(spec.labels, spec.height, spec.width, 1, seed=0)
    export_artifact(
        SpadeGenerator(spec).eval(),
        folder,
        precisions=[Precision.FP32],
        golden_inputs={LABEL: ids},
        source=Source("benchmark", None, "train", "0" * 64),
    )
    return Artifact.open(folder)


def machine() -> dict[str, object]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("spade-deploy", "onnxruntime", "numpy", "pillow")},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
