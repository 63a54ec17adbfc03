"""Find the widths of a student's levels: sub-networks of shared weights are trained for a short while and compared.

The result is the student within the budget whose images are nearest to the teacher's on label maps that the search has
not learned from. Its slice of the shared weights is what the student's training begins with.
"""

from __future__ import annotations

import os
from collections.abc import Generator as Stream
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
from torch import Tensor

from spade_deploy.errors import ConfigError
from spade_deploy.lookup.cost import mean_windows
from spade_deploy.networks.build import Generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import SampleSource, training_batches, validation_labels
from spade_deploy.training.device import choose_device
from spade_deploy.training.distillation.costs import costs_of
from spade_deploy.training.distillation.search_record import Tried, WidthSearch
from spade_deploy.training.distillation.search_space import Space, Widths, evolve
from spade_deploy.training.distillation.shared_weights import (
    SharedStudent,
    distance,
    narrowed,
    wanted_of,
    with_own_statistics,
)
from spade_deploy.training.distillation.widths import MAPS
from spade_deploy.training.ema import Inputs
from spade_deploy.training.splits import open_source
from spade_deploy.training.styles import SEARCH_STYLE, normal_styles
from spade_deploy.training.subset import Subset

JUDGED = 24
"""How many label maps the students are judged on, or all that are held out if there are fewer."""
STATISTICS = 16
"""How many label maps the batch-norm statistics of a student are estimated on."""
HELD_OUT = 8
"""The search learns from all samples of the training split but each eighth, which it judges on."""
Batches = Stream[Inputs, None, None]

POPULATION, GENERATIONS = 20, 3
POOL = 40
"""How many random students the shared weights are trained for."""


def search_widths(
    setup: Setup, teacher: Generator, budget: float, steps: int, progress: Progress = SILENT
) -> WidthSearch:
    """Search for the widths of a student's levels.

    setup: that of the student whose levels are all narrowed alike; it brings data, losses, batch size and seed.
    teacher: in eval mode. steps: of training the shared weights. The same arguments find the same widths on the same
    machine. Raises ConfigError for an architecture without levels, too few label maps, and several processes.
    """
    _check(teacher.spec)
    learned, held = _split(setup)
    numbers, inputs = np.random.default_rng(setup.train.seed), _Inputs(setup)
    teacher = teacher.to(inputs.device)
    space, maps = _space(setup, teacher.spec, budget)
    start = (*setup.generator.widths, *setup.generator.hidden_widths)
    pool = [start]
    for _ in range(POOL):  # where hardly any random student costs what it may, one beside the last is taken
        if (one := space.random(numbers) or space.changed(pool[-1], numbers)) is not None:
            pool.append(one)
    space = replace(space, most=tuple(map(max, zip(*pool, strict=True))))
    shared = _trained(setup, teacher, space, pool, inputs.batches(learned), steps, numbers, progress)
    judged = [wanted_of(teacher, one) for one in inputs.first(held, JUDGED)]
    statistics = inputs.first(learned, STATISTICS)
    best, least, done = dict[str, Tensor](), float("inf"), 0

    def distance_of(widths: Widths) -> float:
        nonlocal best, least, done
        student = with_own_statistics(narrowed(shared.module, space.spec(widths)), statistics)
        found, done = distance(student, judged), done + 1
        if found < least:
            best, least = student.state_dict(), found
        progress.count("comparing sub-networks", done, POPULATION + GENERATIONS * POPULATION // 2)
        return found

    tried = evolve(space, start, distance_of, numbers, population=POPULATION, generations=GENERATIONS)
    rows = tuple(_row(space, one.widths, one.distance, is_uniform=one.widths == start) for one in tried)
    return WidthSearch(rows, budget, maps, sum(len(one.image) for one in judged), steps, setup.train.seed, best)


def _check(teacher: GeneratorSpec) -> None:
    if not teacher.has("level_channels"):
        raise ConfigError(
            f"`search_widths`: {teacher.architecture} has no levels whose widths can be chosen one by one",
            hint="leave it out: `mac_budget` chooses `base_channels`",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "`search_widths`: the search runs in one process",
            hint="search in one process with `estimate`; then give the `level_channels` and `level_hidden` it prints",
        )


def _split(setup: Setup) -> tuple[SampleSource, SampleSource]:
    """The samples of the training split that the search learns from, and those that it judges on."""
    whole = open_source(setup.data, "train", setup.generator.labels)
    if len(whole) < 2:
        raise ConfigError(
            f"`search_widths`: {setup.data.described} has one label map, and the search learns from some and judges on"
            " others",
            hint="give more label maps, or `base_channels` N",
        )
    held = [index for index in range(len(whole)) if index % HELD_OUT == 0]
    return Subset(whole, [index for index in range(len(whole)) if index % HELD_OUT]), Subset(whole, held)


def _space(setup: Setup, teacher: GeneratorSpec, budget: float) -> tuple[Space, int]:
    """The students within the budget, and how many label maps their cost is a mean of: those of `mac_budget`."""
    label, instance, _ = validation_labels(open_source(setup.data, "train", teacher.labels), MAPS)
    sized = replace(teacher, height=setup.generator.height, width=setup.generator.width)
    windows = mean_windows(sized, label.numpy(), None if instance is None else instance.numpy())
    return Space(sized, windows, budget), len(label)


def _trained(
    setup: Setup,
    teacher: Generator,
    space: Space,
    pool: Sequence[Widths],
    batches: Batches,
    steps: int,
    numbers: np.random.Generator,
    progress: Progress,
) -> SharedStudent:
    """The shared weights after some steps, in each of which one student of the pool learns."""
    config = setup.train
    assert config.distill is not None  # the caller has a teacher
    weight = config.distill.weight_features
    shared = SharedStudent(teacher, space.spec(space.most), weight_l1=config.weight_l1, weight_features=weight)
    with closing(batches):
        for step in range(steps):
            wanted = wanted_of(teacher, next(batches), with_features=weight > 0)
            shared.step(space.spec(pool[int(numbers.integers(len(pool)))]), wanted)
            progress.count("training sub-networks", step + 1, steps)
    return shared


class _Inputs:
    """Makes the inputs of generators from label maps."""

    def __init__(self, setup: Setup) -> None:
        self.device = choose_device(setup.train.device)
        self._setup, self._made = setup, 0

    def batches(self, source: SampleSource) -> Batches:
        """Inputs of the size of a step's batch, without end."""
        config = self._setup.train
        made = training_batches(source, batch_size=min(config.batch_size, len(source)), seed=config.seed)
        with closing(made):
            for batch in made:
                yield self._of(batch.label, batch.instance)

    def first(self, source: SampleSource, count: int) -> list[Inputs]:
        """Evenly spaced samples, in batches of a step's size.

        Where there are enough of them, none is smaller: batch norm cannot estimate statistics on a single pixel.
        """
        size, count = self._setup.train.batch_size, min(count, len(source))
        label, instance, _ = validation_labels(source, count // size * size or count)
        places = [slice(first, first + size) for first in range(0, len(label), size)]
        return [self._of(label[one], None if instance is None else instance[one]) for one in places]

    def _of(self, label: Tensor, instance: Tensor | None) -> Inputs:
        spec, seed = self._setup.generator, self._setup.train.seed
        segmap = make_segmap(label.to(self.device), None if instance is None else instance.to(self.device), spec.labels)
        if spec.z_dim is None:
            return segmap, None
        self._made += 1
        return segmap, normal_styles(seed, SEARCH_STYLE, self._made, len(label), spec.z_dim).to(self.device)


def _row(space: Space, widths: Widths, found: float, *, is_uniform: bool) -> Tried:
    spec = space.spec(widths)
    return Tried(
        **asdict(costs_of(spec, space.windows)),
        level_channels=spec.widths,
        level_hidden=spec.hidden_widths,
        distance=found,
        is_uniform=is_uniform,
    )
