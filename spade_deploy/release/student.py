"""What the report of a student says beside its teacher: how alike their images are, and what each of them costs.

It is measured on the golden label maps, which are few. How good the photos of both are (Frechet and kernel distance,
mIoU) needs held-out photos and networks that judge: see `quality.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Artifact, Z, one_by_one
from spade_deploy.errors import ArtifactError, ConfigError, SpadeError
from spade_deploy.fields import from_json
from spade_deploy.lookup.cost import dense_macs, lookup_macs, mean_windows
from spade_deploy.metrics.differences import DiffAccumulator
from spade_deploy.networks.build import Generator, count_parameters
from spade_deploy.networks.spade import make_segmap, to_pixels
from spade_deploy.release.quality import Quality, Unmeasured, knows_photos, unmeasured
from spade_deploy.runs.checkpoint import LoadedGenerator
from spade_deploy.runs.layout import ARTIFACT, GENERATOR_FILE, SHIPPED
from spade_deploy.runs.records import CheckpointInfo, read_checkpoint_info
from spade_deploy.runs.safetensors_header import read_tensor_count
from spade_deploy.runs.shipped import SHIPPED_FOLDER
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.distillation.config import TeacherFacts
from spade_deploy.training.distillation.pruning import can_be_pruned
from spade_deploy.training.distillation.teacher import load_teacher, teacher_checkpoint
from spade_deploy.tuning.timing import in_turn

ROUNDS = 5
"""How often each of the two is timed, in turns, after one run that does not count."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a model."""

    name: str
    """Of weights its file name; of a graph what `spade inspect` calls it: 'fp32', 'fp32 lookup'."""

    bytes: int
    """Its size."""

    types: tuple[str, ...] = ()
    """Of weights the types of the numbers in it, such as float32."""


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

    weights_file: StoredFile
    """Their file, in the checkpoint or in the package."""

    graphs: tuple[StoredFile, ...]
    """The ONNX graphs; none of a teacher that has not been exported into its run."""

    dense_macs: float
    """Multiply-adds of an image by the dense graph."""

    lookup_macs: float | None
    """Multiply-adds of an image by the lookup graph, the mean over the golden label maps; None without such a graph."""

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

    quality: Quality | None = None
    """How good the photos of both are; None if no judge was given."""

    unmeasured: Unmeasured | None = None
    """Which figures of the photos are not here, and how to get them; None if all are."""

    pictures: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...] = field(default=(), repr=False)
    """For each golden label map the teacher's pixels and the student's, H x W x 3."""

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as its teacher the student is, in PyTorch."""
        return self.costs[0].milliseconds / self.costs[1].milliseconds if self.costs else None

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, pictures=())) | {"speed_up": self.speed_up}


def teacher_of(info: CheckpointInfo) -> TeacherFacts | None:
    """The teacher of a checkpoint's run; None if it had none, or its record cannot be read."""
    found = ((info.train or {}).get("distill") or {}).get("teacher")
    try:
        return None if found is None else from_json(TeacherFacts, found, ignore_unknown=True)
    except ConfigError:
        return None


@dataclass(frozen=True)
class Exported:
    """A student that is exported."""

    loaded: LoadedGenerator
    """Its generator."""

    checkpoint: Path
    """The folder of its checkpoint."""

    artifact: Path
    """The folder with its graphs."""


def compare_with_teacher(
    exported: Exported, inputs: Arrays, runs_dir: Path, quality: Quality | None = None
) -> StudentReport | None:
    """A student beside its teacher on the golden inputs; None for a generator without a teacher.

    quality: the figures of their photos, if they were measured. A teacher that is not found any more is told, and
    nothing is compared.
    """
    loaded = exported.loaded
    facts = teacher_of(loaded.info)
    if facts is None:
        return None
    try:
        teacher = load_teacher(facts, runs_dir)
        place = Path(facts.place) if facts.place in SHIPPED else teacher_checkpoint(facts, runs_dir)
        stored = {"teacher": _stored(place, facts.sha256)}
    except SpadeError as error:
        return StudentReport(facts.place, facts.sha256, missing=error.message)
    stored["student"] = _weights_file(exported.checkpoint), _graphs(exported.artifact, loaded.info.generator_sha256)
    modules = {"teacher": teacher, "student": loaded.module}
    difference = DiffAccumulator(
        tuple(loaded.spec.labels.name_of(index) for index in range(loaded.spec.labels.num_ids))
    )
    pictures = []
    for one in one_by_one(inputs):
        made = [_run(module, one) for module in modules.values()]
        pairs = [(image.numpy(), to_pixels(image).numpy()) for image in made]
        difference.add(one[LABEL], pairs[0], pairs[1])
        pictures.append((pairs[0][1][0], pairs[1][1][0]))
    times = _times(modules, one)
    found = difference.result()
    costs = tuple(_cost(name, module, inputs, stored[name], times[name]) for name, module in modules.items())
    is_known = knows_photos(loaded.info) or str(place) in SHIPPED or knows_photos(read_checkpoint_info(place))
    lacks = unmeasured(quality, exported.checkpoint.parent.parent, str(place), has_photos=is_known)
    return StudentReport(
        facts.place,
        facts.sha256,
        "",
        found.images,
        found.psnr_db,
        found.ssim,
        costs,
        quality,
        lacks,
        tuple(pictures),
    )


def _times(modules: Mapping[str, Generator], one: Arrays) -> dict[str, float]:
    """The median time of an image of each, in milliseconds; they run in turns."""
    times: dict[str, list[float]] = {name: [] for name in modules}
    for number in range(ROUNDS):
        for name, module in in_turn(list(modules.items()), number):
            began = time.perf_counter()
            _run(module, one)
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(measured) for name, measured in times.items()}


def _run(module: Generator, inputs: Arrays) -> torch.Tensor:
    labels = module.spec.labels
    instance = torch.from_numpy(inputs[INSTANCE]) if labels.has_edges else None
    z = torch.from_numpy(inputs[Z]) if Z in inputs else None
    with torch.inference_mode():
        image: torch.Tensor = module(make_segmap(torch.from_numpy(inputs[LABEL]), instance, labels), z)
    return image


def _cost(
    name: str,
    module: Generator,
    inputs: Arrays,
    stored: tuple[StoredFile, tuple[StoredFile, ...]],
    milliseconds: float,
) -> Cost:
    spec: GeneratorSpec = replace(module.spec, height=inputs[LABEL].shape[1], width=inputs[LABEL].shape[2])
    parameters = count_parameters(module)
    if can_be_pruned(spec):
        by_dense = dense_macs(spec)
        by_lookup = lookup_macs(spec, mean_windows(spec, inputs[LABEL], inputs.get(INSTANCE)))
    else:
        by_dense, by_lookup = _counted_macs(module, next(iter(one_by_one(inputs)))), None
    return Cost(name, spec.base_channels, parameters, 4 * parameters, *stored, by_dense, by_lookup, milliseconds)


def _counted_macs(module: Generator, one: Arrays) -> float:
    """The multiply-adds of an image as PyTorch counts them while the module runs."""
    with FlopCounterMode(display=False) as counter:
        _run(module, one)
    return float(counter.get_total_flops()) / 2


def _stored(place: Path, sha256: str) -> tuple[StoredFile, tuple[StoredFile, ...]]:
    """The files of a teacher: its weights, and the graphs in its run if they are of these weights."""
    if str(place) in SHIPPED:
        return _weights_file(SHIPPED_FOLDER, f"{place}.safetensors"), ()
    return _weights_file(place), _graphs(place.parent.parent / ARTIFACT, sha256)


def _weights_file(folder: Path, name: str = GENERATOR_FILE) -> StoredFile:
    types = tuple(_TYPES[kind] for kind in read_tensor_count(folder / name).dtypes if kind in _TYPES)
    return StoredFile(name, (folder / name).stat().st_size, types)


_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of weights; batch norm's counters are no weights."""


def _graphs(folder: Path, sha256: str) -> tuple[StoredFile, ...]:
    try:
        manifest = Artifact.open(folder).manifest
    except ArtifactError:
        return ()
    if manifest.source.generator_sha256 != sha256:
        return ()
    return tuple(StoredFile(graph.name, manifest.files[graph.file].bytes) for graph in manifest.graphs)
