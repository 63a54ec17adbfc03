"""The generators and label maps that the benchmarks share. Weights are random: no time depends on their values.

Batch-norm statistics and spectral-norm vectors come from a few training-mode passes, and biases are not zero, so that
images do not saturate and a wrong graph is seen.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from printed import Printed

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, Manifest, Source, joined, rewrite_manifest
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.labels.files import (
    label_dtype,
    list_label_files,
    read_instance_map,
    resize_nearest,
    synthetic_label_maps,
)
from spade_deploy.networks.spade import SpadeGenerator, initialize, make_segmap
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import UNKNOWN_VALUE, GeneratorSpec, GraphKind, LabelSpec, Precision
from spade_deploy.tuning.break_even import measure_break_even

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "coco_stuff_sample"
RESULTS = ROOT / "benchmarks" / "results"

ADE20K = GeneratorSpec(LabelSpec(150, has_dontcare=True))
COCO = GeneratorSpec(LabelSpec(182, has_dontcare=True, has_edges=True))
SMALL = GeneratorSpec(LabelSpec(12, True, True), base_channels=8, hidden_channels=16, height=64, width=64)
"""For a run that only shows that the script works."""


def make_generator(spec: GeneratorSpec, passes: int = 3) -> SpadeGenerator:
    """A seeded generator in eval mode."""
    torch.manual_seed(0)
    generator = SpadeGenerator(spec)
    initialize(generator, gain=1.0)
    for name, parameter in generator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    side = max(spec.stride, min(128, spec.height))
    generator.train()
    with torch.no_grad():
        for seed in range(passes):
            ids, regions = synthetic_label_maps(spec.labels, side, side, 2, seed)
            instance = torch.from_numpy(regions) if spec.labels.has_edges else None
            generator(make_segmap(torch.from_numpy(ids), instance, spec.labels))
    return generator.eval()


def make_artifact(work: Path, spec: GeneratorSpec, maps: dict[str, Arrays], *, with_int8: bool = False) -> Artifact:
    """The artifact of a run in `work`, with its checkpoint: dense and lookup graphs in fp32. One that is there is kept.

    maps: the first two become the golden inputs, in the model's size. with_int8: adds int8 graphs of 35 dB, which are
    calibrated on these two.
    """
    ending = "-int8" if with_int8 else ""
    run = work / f"labels-{spec.labels.num_channels}-base-{spec.base_channels}-{spec.height}x{spec.width}{ending}"
    folder = run / "artifact"
    if not (folder / "manifest.json").exists():
        golden = joined([resized(one, spec.height, spec.width) for one in list(maps.values())[:2]])
        generator = make_generator(spec)
        info = save_checkpoint(checkpoint_folder(run, 0), generator, step=0, origin="import")
        folder.mkdir(exist_ok=True)
        exported = export_artifact(
            generator,
            folder,
            ExportRequest(
                precisions=[Precision.FP32],
                golden_inputs=golden,
                source=Source(run.name, 0, "import", info.generator_sha256),
                int8=Int8Request(golden, "the golden label maps") if with_int8 else None,
            ),
            progress=Printed(),
        )
        rewrite_manifest(folder, with_break_even(Artifact(folder, exported.manifest)))
    return Artifact.open(folder)


def with_break_even(artifact: Artifact) -> Manifest:
    """The manifest with the rule by which the runtime chooses a graph, measured as `spade export` does."""
    found = measure_break_even(artifact, Precision.FP32)
    graphs = [
        replace(graph, break_even_share=found.share) if graph.kind is GraphKind.LOOKUP else graph
        for graph in artifact.manifest.graphs
    ]
    return replace(artifact.manifest, graphs=tuple(graphs))


def coco_maps(spec: GeneratorSpec, data: Path = DATA) -> dict[str, Arrays]:
    """The COCO-Stuff samples by name, batch 1, in their own size.

    With 182 labels the ids are the files' own. With fewer, an id is its rank among those that occur in the samples,
    modulo the number of labels: the regions are the same, and so are their patterns while ids suffice. 255 is unknown.
    """
    labels = spec.labels
    files = list_label_files(data / "train_label")
    values = {file.stem: np.array(Image.open(file)).astype(np.int64) for file in files}
    known = np.unique(np.concatenate([np.unique(value) for value in values.values()]))
    known = known[known != UNKNOWN_VALUE]
    maps = {}
    for stem, value in values.items():
        unknown = value == UNKNOWN_VALUE
        ids = value if labels.num_labels >= 182 else np.searchsorted(known, value) % labels.num_labels
        ids = np.where(unknown, labels.num_labels if labels.has_dontcare else 0, ids)
        maps[stem] = {LABEL: ids.astype(label_dtype(labels))[None]}
        if labels.has_edges:
            maps[stem][INSTANCE] = read_instance_map(data / "train_inst" / f"{stem}.png")[None]
    return maps


def synthetic_maps(spec: GeneratorSpec, count: int = 3) -> dict[str, Arrays]:
    """Voronoi regions by name, batch 1, in the model's size."""
    ids, regions = synthetic_label_maps(spec.labels, spec.height, spec.width, count, seed=1)
    return {
        f"voronoi-{number}": {LABEL: ids[number][None]}
        | ({INSTANCE: regions[number][None]} if spec.labels.has_edges else {})
        for number in range(count)
    }


def resized(inputs: Arrays, height: int, width: int) -> Arrays:
    """Batch 1 at another size, nearest."""
    return {name: resize_nearest(array[0], (height, width))[None] for name, array in inputs.items()}


def with_noise(inputs: Arrays, share: float, num_ids: int) -> Arrays:
    """A share of the pixels gets a random id."""
    rng = np.random.default_rng(0)
    label: NDArray[Any] = inputs[LABEL]
    noise = rng.integers(0, num_ids, label.shape).astype(label.dtype)
    return {**inputs, LABEL: np.where(rng.random(label.shape) < share, noise, label)}
