"""How far bfloat16 in OpenVINO is from PyTorch, over generators, seeds and label maps, and what a wrong network does.

    python benchmarks/bf16_tolerance.py [--seeds 3] [--quick]

The limits in `metrics/tolerances.py` come from this. Every generator is exported in float32; each of its graphs runs in
OpenVINO in f32 and bf16, and the images are compared with the untouched PyTorch module's. The label maps are the
COCO-Stuff samples and one of pure noise. Then networks that are a little
wrong do the same in bf16. Writes results/bf16-tolerance.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from models import ADE20K, COCO, RESULTS, coco_maps, make_generator, resized
from numpy.typing import NDArray
from onnx import numpy_helper

from spade_deploy.artifact import (
    INSTANCE,
    LABEL,
    Arrays,
    Artifact,
    Source,
    Z,
    graph_file,
    joined,
    one_by_one,
    rewrite_manifest,
)
from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino.library import bf16_instructions
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.files import label_dtype
from spade_deploy.metrics.judge import Judge
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.spade import initialize, make_segmap
from spade_deploy.runs.shipped import shipped_generator
from spade_deploy.spec import (
    Architecture,
    GeneratorSpec,
    GraphKind,
    LabelSpec,
    NormType,
    Precision,
    Upsampling,
)

MAPS = 2
EDGES = LabelSpec(20, has_dontcare=True, has_edges=True)
SPADE = GeneratorSpec(EDGES, base_channels=8, hidden_channels=16, height=64, width=64)
PLAIN = replace(SPADE, labels=LabelSpec(20, has_dontcare=True))
SPECS = {
    "SPADE with edges": SPADE,
    "SPADE, instance norm": replace(SPADE, norm=NormType.INSTANCE),
    "SPADE, style vector": replace(SPADE, z_dim=256),
    "SPADE, style vector, most upsampling": replace(
        SPADE, z_dim=256, upsampling=Upsampling.MOST, height=128, width=128
    ),
    "SPADE, 300 labels": replace(SPADE, labels=LabelSpec(300)),
    "pix2pixHD": PLAIN.with_architecture(Architecture.PIX2PIXHD),
    "pix2pixHD with edges": SPADE.with_architecture(Architecture.PIX2PIXHD),
    "pix2pixHD++": replace(PLAIN.with_architecture(Architecture.PIX2PIXHD), norm=NormType.BATCH, spectral_norm=True),
    "CRN": PLAIN.with_architecture(Architecture.CRN),
    "CRN with edges": SPADE.with_architecture(Architecture.CRN),
}
AMPLIFIED = ("SPADE with edges", "pix2pixHD", "CRN")
GAINS = (3.0, 0.02)
"""Of initial weights, beside 1: those saturate the image, or leave it grey."""


WRONG: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "the last convolution is 0.95 of what it should be": ("conv_img.weight", lambda value: value * np.float32(0.95)),
    "the last convolution has no bias": ("conv_img.bias", lambda value: value * 0),
    "the 3 x 3 weights of a layer in the middle are mirrored": ("", lambda value: value[..., ::-1].copy()),
    "a layer in the middle is 1.2 times what it should be": ("", lambda value: value * np.float32(1.2)),
}
"""What is wrong with a network: the weights, those of a convolution in the middle for '', and what becomes of them."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one small generator, to see that the script works")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    parser.add_argument("--out", type=Path, default=RESULTS / "bf16-tolerance.json")
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.resume else []
    done = {row["generator"] for row in rows}
    for name, make in generators(asked.seeds, asked.quick):
        if name in done:
            continue
        generator = make()
        with tempfile.TemporaryDirectory() as folder:
            made = measured(generator, inputs_of(generator.spec), Path(folder))
        rows += [{"generator": name, **row} for row in made]
        for row in made:
            print(name, {key: _short(value) for key, value in row.items()}, flush=True)
        facts = {"instructions": list(bf16_instructions()), "machine": describe_machine()}
        write_json(asked.out, {"rows": rows, **facts})  # after each, so that a run that is stopped has its result


def generators(seeds: int, quick: bool) -> Iterator[tuple[str, Callable[[], Generator]]]:
    """The name of each generator, and what makes it, in eval mode."""
    if quick:
        yield "SPADE with edges, seed 0", partial(believable, replace(SPADE, base_channels=4), 0, 1.0)
        return
    yield "Earth, shipped", shipped_generator
    for name, spec in SPECS.items():
        yield f"{name}, seed 0", partial(believable, spec, 0, 1.0)
    for name, gain in itertools.product(AMPLIFIED, GAINS):
        yield f"{name}, weights of gain {gain}", partial(believable, SPECS[name], 0, gain)
    for seed, (name, spec) in itertools.product(range(1, seeds), SPECS.items()):
        yield f"{name}, seed {seed}", partial(believable, spec, seed, 1.0)
    yield "SPADE, ADE20K size", partial(make_generator, ADE20K)
    yield "SPADE, COCO-Stuff size", partial(make_generator, COCO)


def believable(spec: GeneratorSpec, seed: int, gain: float) -> Generator:
    """Random weights, biases that are not zero, and statistics of a few training-mode passes."""
    torch.manual_seed(seed)
    generator = build_generator(spec)
    initialize(generator, gain)
    for name, parameter in generator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    generator.train()
    fed = inputs_of(spec)
    with torch.no_grad():
        for one in one_by_one(fed):
            tensors = {name: torch.from_numpy(array.copy()).repeat_interleave(2, 0) for name, array in one.items()}
            generator(make_segmap(tensors[LABEL], tensors.get(INSTANCE), spec.labels), tensors.get(Z))
    return generator.eval()


def inputs_of(spec: GeneratorSpec) -> Arrays:
    """COCO-Stuff maps in the model's size, and a map of noise."""
    rng = np.random.default_rng(0)
    maps = list(coco_maps(spec).values())[:MAPS]
    fed = joined([resized(one, spec.height, spec.width) for one in maps])
    noise: Arrays = {LABEL: rng.integers(0, spec.labels.num_ids, (1, spec.height, spec.width))}
    noise[LABEL] = noise[LABEL].astype(label_dtype(spec.labels))
    if spec.labels.has_edges:
        noise[INSTANCE] = rng.integers(0, 3, noise[LABEL].shape).astype(fed[INSTANCE].dtype)
    found = joined([fed, noise])
    return found if spec.z_dim is None else {**found, Z: rng.standard_normal((MAPS + 1, spec.z_dim), np.float32)}


def measured(generator: Generator, inputs: Arrays, folder: Path) -> list[dict[str, Any]]:
    """A row for each graph and precision, and for each network that is wrong."""
    right = exported(generator, inputs, folder / "right")
    rows = []
    for graph in right.manifest.graphs:
        for precision in (Precision.FP32, Precision.BF16):
            rows.append({"wrong": None, **compared(right, right, graph.kind, precision)})
    for what in WRONG:
        wrong = broken(right, what, folder / "wrong")
        rows.append({"wrong": what, **compared(right, wrong, GraphKind.DENSE, Precision.BF16)})
    return rows


def exported(generator: Generator, inputs: Arrays, folder: Path) -> Artifact:
    folder.mkdir()
    export_artifact(generator, folder, ExportRequest(inputs, Source("x", 0, "import", "0" * 64)))
    return Artifact.open(folder)


def broken(right: Artifact, what: str, folder: Path) -> Artifact:
    """A copy of the artifact whose dense graph is wrong in that way."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(right.path, folder)
    name, change = WRONG[what]
    model = onnx.load(str(folder / graph_file(Precision.FP32)))
    squares = [one for one in model.graph.initializer if list(one.dims[2:]) == [3, 3]]
    chosen = [one for one in model.graph.initializer if one.name == name] or [squares[len(squares) // 2]]
    chosen[0].CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(chosen[0])), chosen[0].name))
    onnx.save(model, str(folder / graph_file(Precision.FP32)))
    rewrite_manifest(folder, right.manifest)
    return Artifact.open(folder)


def compared(trusted: Artifact, candidate: Artifact, kind: GraphKind, precision: Precision) -> dict[str, Any]:
    """The figures of a candidate's images against the trusted artifact's golden ones."""
    golden, rounding = trusted.golden(), trusted.manifest.rounding
    judge = Judge(trusted.manifest.generator.labels, precision, rounding)
    worst_db = np.inf
    with open_runtime(candidate, precision, "openvino", graph=str(kind)) as runtime:
        for inputs, outputs in zip(one_by_one(golden.inputs), one_by_one(golden.outputs), strict=True):
            one = Judge(trusted.manifest.generator.labels, precision, rounding)
            found = runtime.run(inputs)
            judge.add(inputs[LABEL], outputs, found)
            one.add(inputs[LABEL], outputs, found)
            worst_db = min(worst_db, one.verdict().decided.psnr_db or np.inf)
        name = runtime.name
    verdict = judge.verdict()
    figures = verdict.decided
    return {
        "runtime": name,
        "passed": verdict.passed,
        "failures": list(verdict.failures),
        "psnr_db": figures.psnr_db,
        "worst_map_psnr_db": None if worst_db == np.inf else float(worst_db),
        "ssim": figures.ssim,
        "max_abs": figures.max_abs,
        "mean_abs": figures.mean_abs,
        "max_in_roundings": figures.max_abs / rounding.max_abs if rounding.max_abs else None,
        "mean_in_roundings": figures.mean_abs / rounding.mean_abs if rounding.mean_abs else None,
        "logit_rounding": {"mean": rounding.logit_mean, "max": rounding.logit_max},
        "undecided_share": verdict.undecided_share,
    }


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
