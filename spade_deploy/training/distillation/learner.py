"""The step of a student: that of every training, but for the losses on the images, which the teacher's images decide.

The adversarial loss and feature matching compare with photos, where there are photos. L1, the perceptual loss and the
distance of features compare with what the teacher makes of the same label map and style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spade_deploy.networks.build import Generator
from spade_deploy.networks.discriminator import at_least_float32
from spade_deploy.runs.checkpoint import TrainingState
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.distillation.cache import ImageCache
from spade_deploy.training.distillation.config import Distillation
from spade_deploy.training.distillation.features import FeatureMaps, FeatureTaps
from spade_deploy.training.distillation.pruning import can_be_pruned, choose_channels, pruned_student
from spade_deploy.training.distillation.teacher import Teacher, load_teacher
from spade_deploy.training.processes.averaging import parallel
from spade_deploy.training.processes.world import ALONE, World
from spade_deploy.training.steps import Beside, Learner, Made

CACHE = "teacher"
"""The folder in a run's folder that keeps the teacher's images."""


def make_learner(
    setup: Setup,
    device: torch.device,
    statistics_batches: Callable[[], Sequence[Batch]] = tuple,
    run: Path | None = None,
    teacher: Generator | None = None,
) -> Learner:
    """The learner of a run: that of a student if it has a teacher.

    run: the folder that keeps the teacher's images; None keeps none. teacher: it is read from its file if left out.
    Raises what `Learner` does, and CheckpointError for a teacher that is not found.
    """
    if setup.train.distill is None:
        return Learner(setup, device, statistics_batches)
    if teacher is None:
        teacher = load_teacher(setup.train.distill.teacher, run.parent if run is not None else None)
    return StudentLearner(setup, device, statistics_batches, teacher, run)


class StudentLearner(Learner):
    """The networks of a student's run, and its teacher.

    teacher: the generator that the settings name. run: the folder of the run, for the cache.
    """

    maps: FeatureMaps | None = None
    """The learned 1 x 1 convolutions between the features; None without that loss."""

    def __init__(
        self,
        setup: Setup,
        device: torch.device,
        statistics_batches: Callable[[], Sequence[Batch]],
        teacher: Generator,
        run: Path | None = None,
    ) -> None:
        super().__init__(setup, device, statistics_batches)
        assert setup.train.distill is not None  # make_learner
        self.distill: Distillation = setup.train.distill
        self.teacher = Teacher(teacher, device, is_channels_last=setup.train.channels_last)
        self._cache = ImageCache(run / CACHE) if self.distill.cache and run is not None else None
        self._taps = FeatureTaps(self.generator)
        self._teacher_taps = FeatureTaps(self.teacher.module)
        self._features: list[Tensor] = []
        if self.distill.weight_features > 0 and can_be_pruned(setup.generator):
            self.maps = FeatureMaps(setup.generator, self.teacher.module.spec).to(device)
            self._optimizers["generator"].add_param_group({"params": list(self.maps.parameters())})
        self.connect(ALONE)

    def connect(self, world: World) -> None:
        super().connect(world)
        self._run_maps: nn.Module | None = None
        if self.maps is not None:
            self._run_maps = parallel(self.maps, world)
            self._parallel.append(self._run_maps)

    @property
    def weights(self) -> dict[str, float]:
        features = {"features": self.distill.weight_features} if self.maps is not None else {}
        return {**super().weights, **features}

    def begin(self) -> tuple[str, ...]:
        """Begin with the teacher's most important channels, unless the settings ask for random weights."""
        spec = self.setup.generator
        if not (self.distill.pruned and can_be_pruned(spec)):
            return ()
        teacher = self.teacher.module
        chosen = choose_channels(teacher, spec)
        self.begin_from(pruned_student(teacher, spec, chosen).state_dict())
        if self.maps is not None:
            self.maps.begin_with(chosen)
        return ()

    def beside(self, batch: Batch) -> Batch:
        """Where there are no photos, images are shown beside those that the teacher makes with the same styles."""
        if self.is_adversarial:
            return batch
        styles = self._sample_styles(len(batch.label), None)
        return replace(batch, photo=at_least_float32(self.teacher.image(self._segmap(batch), styles)).cpu())

    def state(self) -> TrainingState:
        state = super().state()
        maps = {"feature_maps": self.maps.state_dict()} if self.maps is not None else {}
        return TrainingState(state.discriminator, {**state.rest, **maps})

    def restore(
        self, generator: nn.Module, state: TrainingState, step: int = 0, encoder: nn.Module | None = None
    ) -> None:
        super().restore(generator, state, step, encoder)
        if self.maps is not None:
            self.maps.load_state_dict(state.rest["feature_maps"])

    def _learning(self, name: str) -> dict[str, Tensor]:
        found = super()._learning(name)
        if name == "generator" and self.maps is not None:
            found |= dict(self.maps.named_parameters())
        return found

    def _generated(self, segmap: Tensor, z: Tensor | None, beside: Beside) -> Tensor:
        if self.maps is None:
            return super()._generated(segmap, z, beside)
        with self._taps.collecting() as self._features:
            return super()._generated(segmap, z, beside)

    def _direct_losses(self, made: Made) -> dict[str, Tensor]:
        with self._teacher_taps.collecting() as wanted:
            image = self._teacher_image(made)
        found = self._image_losses(made.image, image)
        if self._run_maps is not None:
            found["features"] = self._run_maps(self._features, wanted)
            self._features = []
        return found

    def _teacher_image(self, made: Made) -> Tensor:
        def run(rows: list[int]) -> Tensor:
            whole = len(rows) == len(made.segmap)
            segmap = made.segmap if whole else made.segmap[rows]
            z = made.z if whole or made.z is None else made.z[rows]
            return at_least_float32(self.teacher.image(segmap, z, made.beside if whole else ()))

        if self._cache is None:
            return run(list(range(len(made.segmap))))
        return self._image(self._cache.images(made.part, run))
