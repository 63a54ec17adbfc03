"""Whether a width for each level pays: students of the shipped Earth model, uniform against searched, at equal cost.

    python benchmarks/width_search.py [--steps N] [--search-steps N] [--seeds N]

The budget is what the student of base 8 and hidden 8 costs by lookup, so that both cost the same. The search is that of
`spade distill --search-widths`. Then three students learn from the same batches, from label maps alone, by the losses
and the rate of the search: the uniform one and the searched one, both from the teacher's most important channels, and
the searched one from its slice of the shared weights, which has seen the search's steps, too. All are compared with
the teacher on the label maps of the test split. The dense float32 graphs of the first two run one map in ONNX Runtime
and in OpenVINO, one thread, in turns. Writes results/width-search.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from printed import Printed

from spade_deploy.bench.machine import describe_machine
from spade_deploy.engines.ort.session import load_onnxruntime
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.export.spade import DeployModel
from spade_deploy.fields import to_json
from spade_deploy.files.atomic import write_json
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.lookup.cost import lookup_macs, mean_windows
from spade_deploy.networks.build import Generator
from spade_deploy.networks.spade import SpadeGenerator, make_segmap
from spade_deploy.runs.shipped import shipped_generator
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import training_batches, validation_labels
from spade_deploy.training.distillation.pruning import pruned_student
from spade_deploy.training.distillation.request import DistillRequest
from spade_deploy.training.distillation.resolve import student_setup
from spade_deploy.training.distillation.search_record import Tried
from spade_deploy.training.distillation.shared_weights import SharedStudent, wanted_of, with_own_statistics
from spade_deploy.training.distillation.width_search import search_widths
from spade_deploy.training.distillation.widths import MAPS
from spade_deploy.training.ema import Inputs
from spade_deploy.training.splits import open_source

ROOT = Path(__file__).resolve().parents[1]
UNIFORM = (8, 8)
BATCH = 4
ROUNDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of each student's training")
    parser.add_argument("--search-steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2, help="how many trainings of each student; the search has one")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "width-search.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teacher = shipped_generator("earth").requires_grad_(False)
    setup, _ = student_setup(
        DistillRequest(
            Path("earth"),
            base_channels=UNIFORM[0],
            hidden_channels=UNIFORM[1],
            labels_only=True,
            train={"batch_size": BATCH, "seed": 0, "device": "cpu"},
        )
    )
    label, _, _ = validation_labels(open_source(setup.data, "train", setup.generator.labels), MAPS)
    budget = lookup_macs(setup.generator, mean_windows(setup.generator, label.numpy())) * (1 + 1e-9)
    began = time.process_time()
    found = search_widths(setup, teacher, budget, asked.search_steps, Printed())
    search_seconds = time.process_time() - began
    uniform = next(row for row in found.rows if row.is_uniform)
    print(found.chosen, uniform, f"{search_seconds:.0f} s of processor time", flush=True)
    specs = {"uniform": spec_of(setup.generator, uniform), "searched": spec_of(setup.generator, found.chosen)}
    value: dict[str, Any] = {
        "search": {
            "budget": budget,
            "steps": found.steps,
            "seed": found.seed,
            "judged_maps": found.judged_maps,
            "processor_seconds": search_seconds,
            "rows": [to_json(row) for row in found.rows],
        },
        "milliseconds": milliseconds(teacher, specs),
        "training": {"steps": asked.steps, "batch_size": BATCH, "runs": []},
        "machine": describe_machine(),
    }
    print(value["milliseconds"], flush=True)
    for seed in range(asked.seeds):
        value["training"]["runs"].append(trained(setup, teacher, specs, found.weights, asked.steps, seed + 1))
        print(value["training"]["runs"][-1], flush=True)
        write_json(asked.out, value)


def spec_of(like: GeneratorSpec, row: Tried) -> GeneratorSpec:
    """The spec of a student of a search's table."""
    return replace(
        like,
        base_channels=16,
        hidden_channels=max(row.level_hidden),
        level_channels=row.level_channels,
        level_hidden=row.level_hidden,
    )


def trained(
    setup: Setup,
    teacher: Generator,
    narrow: Mapping[str, GeneratorSpec],
    found: Mapping[str, torch.Tensor],
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """The distances from the teacher on the test split of the three students, which learn from the same batches."""
    specs = {**narrow, "searched, from its slice": narrow["searched"]}
    torch.manual_seed(seed)
    students = {
        name: SharedStudent(teacher, spec, weight_l1=setup.train.weight_l1, weight_features=10.0)
        for name, spec in specs.items()
    }
    students["searched, from its slice"].module.load_state_dict(dict(found))
    source = open_source(setup.data, "train", setup.generator.labels)
    batches = training_batches(source, batch_size=BATCH, seed=seed)
    with closing(batches):
        for step in range(steps):
            wanted = wanted_of(teacher, inputs_of(setup.generator, next(batches).label), with_features=True)
            for name, student in students.items():
                student.step(specs[name], wanted)
            if step % 20 == 19:
                print(f"seed {seed}: step {step + 1} of {steps}", flush=True)
    label, _, _ = validation_labels(source, 32)
    own_inputs = [inputs_of(setup.generator, part) for part in torch.split(label, BATCH)]
    tiles = torch.from_numpy(np.stack([cut(tile)[0] for tile in earth_tiles("test")]))
    judged = [wanted_of(teacher, inputs_of(setup.generator, part)) for part in torch.split(tiles, BATCH)]
    result: dict[str, Any] = {"seed": seed, "maps": len(tiles)}
    for name, student in students.items():
        module = with_own_statistics(student.module, own_inputs)
        with torch.no_grad():
            errors = torch.cat([(module(*one.inputs) - one.image).flatten(1) for one in judged]).double()
        psnr = -10 * torch.log10(errors.square().mean(1) / 4)
        result[name] = {
            "l1": float(errors.abs().mean()),
            "psnr_db": float(psnr.mean()),
            "l1_standard_error": float(errors.abs().mean(1).std()) / math.sqrt(len(tiles)),
        }
    return result


def inputs_of(spec: GeneratorSpec, label: torch.Tensor) -> Inputs:
    return make_segmap(label, None, spec.labels), None


def milliseconds(teacher: Generator, specs: dict[str, GeneratorSpec]) -> dict[str, Any]:
    """The median time of one map by each engine's dense float32 graph, one thread, and the median of the ratios."""
    import openvino

    label = cut(earth_tiles("test")[0])[0][None]
    runs: dict[str, Any] = {}
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in specs.items():
            path = Path(folder) / f"{name}.onnx"
            student = pruned_student(teacher, spec)
            assert isinstance(student, SpadeGenerator)
            write_onnx(DeployModel(student), path)
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            compiled = openvino.Core().compile_model(
                str(path), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            )
            fed = label.astype(np.uint8)
            runs[f"{name}, onnxruntime"] = lambda session=session, fed=fed: session.run(["pixels"], {"label": fed})
            runs[f"{name}, openvino"] = lambda compiled=compiled, fed=fed: compiled({"label": fed})
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(ROUNDS + 3):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if number >= 3:
                    times[name].append(1e3 * (time.perf_counter() - began))
    found: dict[str, Any] = {"median_ms": {name: statistics.median(own) for name, own in times.items()}}
    found["fastest_ms"] = {name: min(own) for name, own in times.items()}
    for engine in ("onnxruntime", "openvino"):
        pairs = zip(times[f"searched, {engine}"], times[f"uniform, {engine}"], strict=True)
        found[f"searched / uniform, {engine}"] = statistics.median(one / other for one, other in pairs)
    return found


if __name__ == "__main__":
    main()
