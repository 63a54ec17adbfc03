"""What all steps measure: one generator, its label maps and its artifacts, the same in every process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models import ADE20K, DATA, SMALL, coco_maps, make_generator, resized, synthetic_maps
from printed import Printed

from spade_deploy.artifact import LABEL, Arrays, Artifact, Source, joined
from spade_deploy.errors import ConfigError, SpadeError
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.runs.records import read_checkpoint_info
from spade_deploy.spec import GeneratorSpec, GraphKind, Precision

GOLDEN_MAPS = 2
CALIBRATION_MAPS = 4
GENERATOR = "generator"
"""The folder in `work` that keeps the weights."""


@dataclass(frozen=True)
class Setting:
    """rounds: of every comparison. device: PyTorch's name for it. work: a folder that all steps share.

    precisions, kinds: of the artifact's graphs. optimization_level: of TensorRT's builder, None leaves it to it.
    """

    spec: GeneratorSpec
    work: Path
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 50
    device: str = "cuda"
    quick: bool = False
    precisions: tuple[Precision, ...] = tuple(Precision)
    kinds: tuple[GraphKind, ...] = tuple(GraphKind)
    optimization_level: int | None = None

    @classmethod
    def quick_one(cls, work: Path, device: str = "cuda") -> Setting:
        """To see that it works."""
        return cls(SMALL, work, batches=(1, 2), rounds=3, device=device, quick=True)

    @property
    def is_cuda(self) -> bool:
        """Whether PyTorch runs on a GPU."""
        return self.device.startswith("cuda")

    @cached_property
    def maps(self) -> list[Arrays]:
        """Batch 1, in the model's size: the COCO-Stuff samples where they are, else synthetic ones."""
        spec = self.spec
        if self.has_samples:
            return [resized(one, spec.height, spec.width) for one in coco_maps(spec).values()]
        return list(synthetic_maps(spec, 13).values())

    @property
    def has_samples(self) -> bool:
        return not self.quick and (DATA / "train_label").is_dir()

    @cached_property
    def generator(self) -> SpadeGenerator:
        """In eval mode, on the CPU, in float32. It is made once and kept as a checkpoint in `work`, for all processes.

        Raises ConfigError where the folder has another one.
        """
        folder = self.work / GENERATOR
        if not folder.exists():
            save_checkpoint(folder, make_generator(self.spec), step=0, origin="import")
        loaded = load_generator(folder)
        self._require_own(folder, loaded.spec)
        assert isinstance(loaded.module, SpadeGenerator)  # of this spec
        return loaded.module

    @cached_property
    def generator_sha256(self) -> str:
        """The digest of its weights' file."""
        assert self.generator is not None  # its file is there now
        return read_checkpoint_info(self.work / GENERATOR).generator_sha256

    @property
    def golden(self) -> Arrays:
        """What every candidate is validated on before it is timed."""
        return joined(self.maps[:GOLDEN_MAPS])

    def batch(self, count: int, size: tuple[int, int] | None = None) -> Arrays:
        """The first maps, in turn where there are fewer. size: (height, width) in pixels; None is the model's."""
        maps = self.maps
        if size is not None and size != (self.spec.height, self.spec.width):
            maps = [resized(one, *size) for one in (coco_maps(self.spec).values() if self.has_samples else maps)]
        return joined([maps[index % len(maps)] for index in range(count)])

    def artifact(self, precision: Precision) -> Artifact:
        """The artifact that has the graphs of a precision, exported once. int8 lies apart, with the fp32 it is made of.

        Raises ExportError, MissingDependencyError.
        """
        folder = self.work / ("artifact-int8" if precision is Precision.INT8 else "artifact")
        if folder in self._refused:  # it takes minutes to find that out again
            raise self._refused[folder]
        if not folder.exists():
            try:
                with tempfile.TemporaryDirectory(dir=self.work) as temporary:
                    made = Path(temporary) / "artifact"
                    made.mkdir()
                    self._export(made, precision is Precision.INT8)
                    made.rename(folder)
            except SpadeError as error:
                self._refused[folder] = error
                raise
        artifact = Artifact.open(folder)
        self._require_own(folder, artifact.manifest.generator)
        return artifact

    def _require_own(self, folder: Path, spec: GeneratorSpec) -> None:
        if spec != self.spec:
            raise ConfigError(
                f"`work`: {folder} is of another generator than this check's", hint="another folder, or an empty one"
            )

    @cached_property
    def _refused(self) -> dict[Path, SpadeError]:
        """Artifacts that could not be exported, and why."""
        return {}

    def _export(self, folder: Path, is_int8: bool) -> None:
        calibration = joined(self.maps[-CALIBRATION_MAPS:])
        export_artifact(
            self.generator,
            folder,
            ExportRequest(
                precisions=[Precision.FP32] if is_int8 else [Precision.FP32, Precision.FP16],
                golden_inputs=self.golden,
                source=Source("gpu-check", 0, "import", self.generator_sha256),
                int8=Int8Request(calibration, f"{len(calibration[LABEL])} maps") if is_int8 else None,
                float64_device=self.device,
            ),
            progress=Printed(),
        )


def make_setting(
    quick: bool,
    work: Path,
    *,
    batches: tuple[int, ...] = (),
    rounds: int | None = None,
    precisions: tuple[Precision, ...] = (),
    kinds: tuple[GraphKind, ...] = (),
    optimization_level: int | None = None,
) -> Setting:
    """The full setting or the quick one, with what was asked for instead."""
    base = Setting.quick_one(work) if quick else Setting(ADE20K, work)
    return Setting(
        base.spec,
        work,
        batches=batches or base.batches,
        rounds=rounds or base.rounds,
        quick=quick,
        precisions=precisions or base.precisions,
        kinds=kinds or base.kinds,
        optimization_level=optimization_level,
    )
