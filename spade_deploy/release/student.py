"""What the report of a student says beside its teacher: how alike their images are, and what each of them costs.

It is measured on the golden label maps, which are few. How good the photos of both are (Frechet and kernel distance,
mIoU) needs a data set's held-out split: `spade eval` measures that, with the teacher as a row of its own.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Z, one_by_one
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.fields import from_json
from spade_deploy.lookup.cost import dense_macs, lookup_macs, mean_windows
from spade_deploy.metrics.differences import DiffAccumulator
from spade_deploy.networks.build import Generator, count_parameters
from spade_deploy.networks.spade import make_segmap, to_pixels
from spade_deploy.runs.checkpoint import LoadedGenerator
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.distillation.config import TeacherFacts
from spade_deploy.training.distillation.pruning import can_be_pruned
from spade_deploy.training.distillation.teacher import load_teacher

ROUNDS = 5
"""How often each of the two is timed, in turns, after one run that does not count."""


@dataclass(frozen=True)
class Cost:
    """What one of the two generators costs."""

    name: str
    """'teacher' or 'student'."""

    base_channels: int
    """Its width."""

    parameters: int
    """How many trained numbers it has."""

    weights_bytes: int
    """Bytes of these numbers in float32."""

    dense_macs: float | None
    """Multiply-adds of an image by the dense graph; None for an architecture whose products are not counted."""

    lookup_macs: float | None
    """Multiply-adds of an image by the lookup graph, the mean over the golden label maps."""

    milliseconds: float
    """Median time of an image in PyTorch on this machine, float32, on the CPU."""


@dataclass(frozen=True)
class StudentReport:
    """A student beside its teacher."""

    teacher: str
    """The teacher's checkpoint folder, or the name of a shipped model."""

    teacher_sha256: str
    """The digest of the teacher's weights."""

    missing: str = ""
    """Why nothing could be compared; empty if it was."""

    images: int = 0
    """How many golden label maps were compared."""

    psnr_db: float | None = None
    """PSNR of the student's images against the teacher's; None if they are identical."""

    ssim: float | None = None
    """Mean structural similarity to the teacher's images."""

    costs: tuple[Cost, ...] = ()
    """The teacher's costs and the student's."""

    pictures: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...] = field(default=(), repr=False)
    """For each golden label map the teacher's pixels and the student's, H x W x 3."""

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as its teacher the student is, in PyTorch."""
        return self.costs[0].milliseconds / self.costs[1].milliseconds if self.costs else None

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, pictures=())) | {"speed_up": self.speed_up}


def teacher_of(loaded: LoadedGenerator) -> TeacherFacts | None:
    """The teacher of a checkpoint's run; None if it had none, or its record cannot be read."""
    found = ((loaded.info.train or {}).get("distill") or {}).get("teacher")
    try:
        return None if found is None else from_json(TeacherFacts, found, ignore_unknown=True)
    except ConfigError:
        return None


def compare_with_teacher(loaded: LoadedGenerator, inputs: Arrays, runs_dir: Path) -> StudentReport | None:
    """A student beside its teacher on the golden inputs; None for a generator without a teacher.

    A teacher that is not found any more is told, and nothing is compared.
    """
    facts = teacher_of(loaded)
    if facts is None:
        return None
    try:
        teacher = load_teacher(facts, runs_dir)
    except SpadeError as error:
        return StudentReport(facts.place, facts.sha256, missing=error.message)
    student = loaded.module
    difference = DiffAccumulator(
        tuple(loaded.spec.labels.name_of(index) for index in range(loaded.spec.labels.num_ids))
    )
    pictures, times = [], {"teacher": list[float](), "student": list[float]()}
    for one in one_by_one(inputs):
        made = {"teacher": _run(teacher, one), "student": _run(student, one)}
        pairs = [(image.numpy(), to_pixels(image).numpy()) for image in made.values()]
        difference.add(one[LABEL], pairs[0], pairs[1])
        pictures.append((pairs[0][1][0], pairs[1][1][0]))
    for _ in range(ROUNDS):
        for name, module in (("teacher", teacher), ("student", student)):
            began = time.perf_counter()
            _run(module, one)
            times[name].append(1e3 * (time.perf_counter() - began))
    found = difference.result()
    costs = tuple(
        _cost(name, module, inputs, statistics.median(times[name]))
        for name, module in (("teacher", teacher), ("student", student))
    )
    return StudentReport(facts.place, facts.sha256, "", found.images, found.psnr_db, found.ssim, costs, tuple(pictures))


def _run(module: Generator, inputs: Arrays) -> torch.Tensor:
    labels = module.spec.labels
    instance = torch.from_numpy(inputs[INSTANCE]) if labels.has_edges else None
    z = torch.from_numpy(inputs[Z]) if Z in inputs else None
    with torch.inference_mode():
        image: torch.Tensor = module(make_segmap(torch.from_numpy(inputs[LABEL]), instance, labels), z)
    return image


def _cost(name: str, module: Generator, inputs: Arrays, milliseconds: float) -> Cost:
    spec: GeneratorSpec = replace(module.spec, height=inputs[LABEL].shape[1], width=inputs[LABEL].shape[2])
    parameters = count_parameters(module)
    by_dense = by_lookup = None
    if can_be_pruned(spec):
        by_dense = dense_macs(spec)
        by_lookup = lookup_macs(spec, mean_windows(spec, inputs[LABEL], inputs.get(INSTANCE)))
    return Cost(name, spec.base_channels, parameters, 4 * parameters, by_dense, by_lookup, milliseconds)
