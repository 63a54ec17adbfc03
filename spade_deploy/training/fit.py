"""Fit a training to the machine: batch size and width by the free memory, loading processes by the cores.

Only what was not asked for is chosen, and only for data of one's own; a training that cannot fit is refused before it
begins, with settings that would fit. Memory is estimated from shapes, which takes seconds; networks whose upper limit
is far below the free memory are not estimated at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from spade_deploy.errors import TrainingError
from spade_deploy.labels.pairs import pair_files
from spade_deploy.machine.cores import usable_cores
from spade_deploy.networks.build import parameters_of
from spade_deploy.spec import MAX_BATCH, GeneratorSpec
from spade_deploy.training.config import Modulation, Setup
from spade_deploy.training.device import choose_device, free_bytes
from spade_deploy.training.estimate import per_process
from spade_deploy.training.own_data import about_size
from spade_deploy.training.processes.world import World
from spade_deploy.training.request import TrainRequest
from spade_deploy.training.step_memory import cpu_bytes, estimate_memory

WIDTHS: tuple[int, ...] = (64, 32, 16)
"""The base channels that are tried; the first is the paper's."""
BATCHES: tuple[int, ...] = (32, 16, 8, 4, 2, 1)
"""The batch sizes that are tried; the first is the paper's."""
CPU_WIDTH, CPU_BATCH = 32, 8
"""The largest of both on a CPU, where time is the limit before memory is."""
FEW = 4
"""A narrower network is preferred to a smaller batch than this, as batch norm needs some samples."""
CHOSEN_SHARE = 0.8
"""What is chosen takes at most this share of the free memory."""
MOST_WORKERS = 8
"""The most loading processes that are chosen."""

_SURE_SHARE = 0.5  # of the free memory: below it by the upper limit, nothing is estimated
_BYTES_A_PIXEL = 40_000  # an upper limit at base 64 with 128 hidden channels and 64 of the discriminator
_BYTES_A_CHANNEL = 60  # of the segmap, a pixel
_COPIES = 8  # of a weight: itself, its gradient, Adam's two moments, an average, and the discriminator's


@dataclass(frozen=True)
class Machine:
    """What a training process may use."""

    free_bytes: int | None
    """Its free memory; None if the system does not report it."""
    is_cuda: bool
    """Whether it trains on a GPU."""
    processes: int = 1
    """How many processes train together."""

    def bytes_of(self, setup: Setup) -> int:
        """The memory that a process of this training takes, estimated from shapes."""
        found = estimate_memory(per_process(setup, self.processes))
        return found.total if self.is_cuda else cpu_bytes(found)


def machine_of(setup: Setup, world: World) -> Machine:
    """What each of the processes of `world` may use. Raises ConfigError for a device that is not in this machine."""
    device = choose_device(setup.train.device, world)
    free = free_bytes(device)
    is_cuda = device.type == "cuda"
    return Machine(free if is_cuda or free is None else free // world.size, is_cuda, world.size)


def fitted(asked: TrainRequest, setup: Setup, machine: Machine) -> tuple[Setup, tuple[str, ...]]:
    """A new run's setup as it suits data and machine, and sentences on what they decided."""
    if setup.data.preset != "custom":
        return setup, ()
    count = len(pair_files(setup.data, "train").samples) or MAX_BATCH  # what is missing is told later
    found, notes = chosen(setup, asked, machine, count)
    return found, (*about_size(asked, setup), *notes)


def chosen(setup: Setup, asked: TrainRequest, machine: Machine, samples: int) -> tuple[Setup, tuple[str, ...]]:
    """The setup with what fits this machine in place of what was not asked for, and a sentence on it.

    Only data of one's own is changed, and nothing with `paper`. samples: how many there are to train on, which no batch
    exceeds.
    """
    if setup.data.preset != "custom" or asked.paper:
        return setup, ()
    notes = []
    workers = min(MOST_WORKERS, max(0, usable_cores() // machine.processes - 1))
    if "workers" not in asked.train:
        setup = replace(setup, train=replace(setup.train, workers=workers))
        notes.append(f"`workers` {workers}")
    is_open = {"batch_size": "batch_size" not in asked.train, "base_channels": "base_channels" not in asked.generator}
    if any(is_open.values()):
        setup = _first_that_fits(_candidates(setup, asked, machine, samples), machine)
        notes = [_told(setup, name) for name, is_it in is_open.items() if is_it] + notes
    if not notes:
        return setup, ()
    free = "" if machine.free_bytes is None else f" with {_gb(machine.free_bytes)} free"
    return setup, (f"chosen for this machine{free}: {', '.join(notes)}; `paper` takes the paper's settings",)


def refuse_if_too_large(setup: Setup, machine: Machine, *, is_resumed: bool = False) -> None:
    """Raise TrainingError where a training needs more memory than is free; its hint says what would fit.

    is_resumed: what decides on the memory cannot change any more.
    """
    free = machine.free_bytes
    # How much less memory lookup takes depends on the label maps, so that the estimate is no reason to refuse.
    if free is None or setup.train.modulation is Modulation.LOOKUP or _is_surely_small(setup, machine):
        return
    needed = machine.bytes_of(setup)
    if needed <= free:
        return
    smaller, smaller_bytes = (None, 0.0) if is_resumed else _smaller_that_fits(setup, machine, CHOSEN_SHARE * free)
    if is_resumed:
        hint = "end other processes, or continue the run on a machine with more memory"
    elif smaller is None:
        hint = "take a smaller `size`, or a machine with more memory"
    else:
        hint = f"{_difference(smaller, setup)} would fit, with {_gb(smaller_bytes)}"
    raise TrainingError(
        f"this training needs {_gb(needed)} of memory, and {_gb(free)} are free: `batch_size`"
        f" {setup.train.batch_size}, `base_channels` {setup.generator.base_channels}, {setup.generator.height} x"
        f" {setup.generator.width}",
        hint=hint,
    )


def with_width(setup: Setup, width: int) -> Setup:
    """The setup with all networks narrowed alike: hidden channels twice the width, the discriminator's the same.

    Widths that levels have of their own are left out: none of them is more than the width that all levels follow from.
    """
    generator = setup.generator
    share = width / generator.base_channels
    hidden = generator.hidden_channels
    if _has_hidden(generator):
        hidden = max(1, round(hidden * share))
    discriminator = setup.train.discriminator
    narrow = replace(discriminator, base_channels=max(1, round(discriminator.base_channels * share)))
    return replace(
        setup,
        generator=replace(
            generator, base_channels=width, hidden_channels=hidden, level_channels=None, level_hidden=None
        ),
        train=replace(setup.train, discriminator=narrow),
    )


def _candidates(setup: Setup, asked: TrainRequest, machine: Machine, samples: int) -> Iterator[Setup]:
    """Setups from the largest to the smallest: wide ones first, but narrow ones before very small batches."""
    widths, batches = WIDTHS, BATCHES
    if not machine.is_cuda:
        widths, batches = tuple(w for w in WIDTHS if w <= CPU_WIDTH), tuple(b for b in BATCHES if b <= CPU_BATCH)
    if "base_channels" in asked.generator:
        widths = (setup.generator.base_channels,)
    unit = setup.train.accumulate * machine.processes
    possible = tuple(batch for batch in batches if batch <= samples and batch % unit == 0) or (unit,)
    if "batch_size" in asked.train:
        possible = (setup.train.batch_size,)
    enough = tuple(batch for batch in possible if batch >= min(FEW, possible[0]))
    for few in (enough, tuple(batch for batch in possible if batch not in enough)):
        for width in widths:
            for batch in few:
                yield _with_batch(_narrowed(setup, asked, width), batch)


def _narrowed(setup: Setup, asked: TrainRequest, width: int) -> Setup:
    """The setup of another width, but for what was asked for."""
    if "base_channels" in asked.generator:
        return setup
    narrow = with_width(setup, width)
    if "hidden_channels" in asked.generator:
        narrow = replace(narrow, generator=replace(narrow.generator, hidden_channels=setup.generator.hidden_channels))
    if "base_channels" in asked.discriminator:
        narrow = replace(narrow, train=replace(narrow.train, discriminator=setup.train.discriminator))
    return narrow


def _first_that_fits(candidates: Iterator[Setup], machine: Machine) -> Setup:
    """The first candidate that fits, else the last one, which is refused later."""
    limit = None if machine.free_bytes is None else CHOSEN_SHARE * machine.free_bytes
    bytes_by_batch: dict[int, Callable[[int], float]] = {}
    found = None
    for found in candidates:
        if limit is None or _is_surely_small(found, machine):
            return found
        width = found.generator.base_channels
        if width not in bytes_by_batch:
            bytes_by_batch[width] = _line(found, machine)
        if bytes_by_batch[width](found.train.batch_size) <= limit and machine.bytes_of(found) <= limit:
            return found
    assert found is not None  # there is always a candidate
    return found


def _line(setup: Setup, machine: Machine) -> Callable[[int], float]:
    """The memory by the batch size, which is a straight line, through two estimates."""
    unit = setup.train.accumulate * machine.processes
    first, second = 2 * unit, 4 * unit
    low, high = (machine.bytes_of(_with_batch(setup, batch)) for batch in (first, second))
    slope = (high - low) / (second - first)
    return lambda batch: low + slope * (batch - first)


def _smaller_that_fits(setup: Setup, machine: Machine, limit: float) -> tuple[Setup | None, float]:
    """The first of `_smaller` below a number of bytes, and its bytes; None if there is none.

    Each width is estimated twice, since the memory is a straight line over the samples that are computed at once.
    """
    lines: dict[int, Callable[[int], float]] = {}
    whole = replace(setup, train=replace(setup.train, accumulate=1))
    for smaller in _smaller(setup):
        width = smaller.generator.base_channels
        if width not in lines:
            lines[width] = _line(with_width(whole, width), machine)
        found = lines[width](smaller.train.batch_size // smaller.train.accumulate)
        if found <= limit:
            return smaller, found
    return None, 0.0


def _smaller(setup: Setup) -> Iterator[Setup]:
    """Setups that need less memory: the same batch in parts, then smaller batches, then narrower networks."""
    batch = setup.train.batch_size
    for parts in (2, 4, 8, 16, 32):
        if parts > setup.train.accumulate and batch % parts == 0 and batch // parts >= FEW:
            yield replace(setup, train=replace(setup.train, accumulate=parts))
    widest = setup.generator.base_channels
    whole = replace(setup, train=replace(setup.train, accumulate=1))
    for smaller in (FEW, 2, 1):
        for width in (widest, *(width for width in WIDTHS if width < widest)):
            if smaller <= batch:
                yield _with_batch(with_width(whole, width), smaller)


def _difference(smaller: Setup, setup: Setup) -> str:
    """The settings in which a smaller setup differs, as they are asked for."""

    def settings(one: Setup) -> dict[str, int]:
        found = {"batch_size": one.train.batch_size, "accumulate": one.train.accumulate}
        found["base_channels"] = one.generator.base_channels
        if _has_hidden(one.generator):
            found["hidden_channels"] = one.generator.hidden_channels
        return {**found, "discriminator_channels": one.train.discriminator.base_channels}

    before = settings(setup)
    return " ".join(f"`{name}` {value}" for name, value in settings(smaller).items() if value != before[name])


def _with_batch(setup: Setup, batch: int) -> Setup:
    return replace(setup, train=replace(setup.train, batch_size=batch))


def _has_hidden(generator: GeneratorSpec) -> bool:
    return generator.has("hidden_channels")


def _told(setup: Setup, name: str) -> str:
    if name == "batch_size":
        return f"`batch_size` {setup.train.batch_size}"
    return f"`base_channels` {setup.generator.base_channels} (hidden and discriminator channels alike)"


def _is_surely_small(setup: Setup, machine: Machine) -> bool:
    """Whether a limit that no training reaches is far below the free memory."""
    return machine.free_bytes is not None and upper_limit(setup) <= _SURE_SHARE * machine.free_bytes


def upper_limit(setup: Setup) -> int:
    """A number of bytes that a training step does not reach; from shapes alone, so that it takes no time."""
    generator, config = setup.generator, setup.train
    hidden = generator.hidden_channels if _has_hidden(generator) else 0
    widest = max(generator.base_channels / 64, hidden / 128, config.discriminator.base_channels / 64)
    teacher = None if config.distill is None else config.distill.teacher.generator
    if teacher is not None:
        widest = max(widest, teacher.base_channels / 64, teacher.hidden_channels / 128)
    pixels = config.batch_size * generator.height * generator.width
    weights = 4 * _COPIES * parameters_of(generator)
    weights += 0 if teacher is None else 4 * parameters_of(teacher)
    return round(weights + pixels * (_BYTES_A_PIXEL * widest + _BYTES_A_CHANNEL * generator.labels.num_channels)) + (
        1 << 29
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
