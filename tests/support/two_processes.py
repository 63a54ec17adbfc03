"""One of several processes: `python -m tests.support.two_processes SCENARIO FOLDER`, started by
tests/training/processes/test_world.py with its place in the environment, as torchrun sets it. What a scenario finds it
saves in FOLDER, for the test to compare with one process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spade_deploy.errors import ConfigError, DatasetError, SpadeError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.networks.discriminator import MultiscaleDiscriminator
from spade_deploy.networks.spade import SpadeGenerator, initialize, make_segmap
from spade_deploy.networks.sync_batch_norm import SyncBatchNorm2d
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.runs.data_record import DataRecord
from spade_deploy.spec import DiscriminatorSpec, GeneratorSpec, LabelSpec, NormType
from spade_deploy.training.config import Setup, TrainConfig
from spade_deploy.training.dataset import WHOLE, Batch, Shard
from spade_deploy.training.distillation import learner
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.loop import train
from spade_deploy.training.losses import feature_matching, generator_loss
from spade_deploy.training.processes import peers
from spade_deploy.training.processes.averaging import parallel, without_averaging
from spade_deploy.training.processes.join import join_world
from spade_deploy.training.processes.world import News, World
from spade_deploy.training.steps import Learner

LABELS = LabelSpec(3, has_edges=True)
SPEC = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=32, width=32)
STEPS = 3


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def setup_of(norm: NormType = NormType.SYNC_BATCH, **changes: Any) -> Setup:
    fields = {
        "steps": STEPS,
        "batch_size": 4,
        "lr_generator": 1e-3,
        "lr_discriminator": 1e-3,
        "weight_l1": 1.0,
        "workers": 0,
        "log_every": 1,
        "device": "cpu",
        "discriminator": DiscriminatorSpec(2, 3, 2),
        **changes,
    }
    return Setup(TrainConfig(**fields), replace(SPEC, norm=norm), DataConfig(crop_size=(32, 32)))


class Noise:
    """Batches made of (seed, step) alone; `before` is called with each step. shard: of each batch this process's."""

    def __init__(self, before: Callable[[int], None] = lambda step: None, shard: Shard = WHOLE) -> None:
        self.before = before
        self.shard = shard

    def sharded(self, shard: Shard) -> Noise:
        return Noise(self.before, shard)

    def steps_per_epoch(self, batch_size: int) -> int:
        return 4

    def batches(
        self, *, batch_size: int, seed: int, start_step: int, workers: int, on_skip: Callable[[str], None]
    ) -> Generator[Batch, None, None]:
        step = start_step
        while True:
            step += 1
            self.before(step)
            on_skip(f"broken-{self.shard.rank}.png: is damaged")
            yield self.batch(batch_size, 1000 * seed + step, self.shard.positions(batch_size))

    def record(self) -> DataRecord:
        return DataRecord()

    def held_out_sha256(self) -> str:
        return ""

    def samples(self, count: int) -> Batch:
        return self.batch(count, 999_999, list(range(count)))

    @staticmethod
    def batch(count: int, seed: int, rows: list[int]) -> Batch:
        random = torch.Generator().manual_seed(seed)
        label = torch.randint(0, 3, (count, 32, 32), generator=random, dtype=torch.uint8)[rows]
        photo = (torch.rand(count, 3, 32, 32, generator=random) * 2 - 1)[rows]
        return Batch(label, label.int(), photo, ("x",) * len(rows))


def passes(world: World, norm: NormType, parts: int = 1) -> dict[str, Tensor]:
    """One pass of a generator through a discriminator in float64, and back, on this process's share of six samples.

    Returns the images ('fake'), every buffer after it, and the gradient of every parameter.
    """
    torch.manual_seed(7)
    generator = SpadeGenerator(replace(SPEC, norm=norm))
    discriminator = MultiscaleDiscriminator(DiscriminatorSpec(2, 3, 2), LABELS.num_channels)
    for network in (generator, discriminator):
        initialize(network, gain=1.0)
        network.double().train()
    batch = Noise.batch(6, 5, world.shard(parts).positions(6))
    segmap, photo = make_segmap(batch.label, batch.instance, LABELS).double(), batch.photo.double()
    run = parallel(generator, world)
    judge = parallel(_Compare(discriminator), world)
    images = []
    for part, (labels, photos) in enumerate(zip(segmap.chunk(parts), photo.chunk(parts), strict=True)):
        with without_averaging([run, judge] if part + 1 < parts else []):
            fake = run(labels)
            fakes, reals = judge(labels, fake, photos)
            loss = generator_loss(setup_of().train.gan_mode, fakes) + feature_matching(fakes, reals)
            (loss / parts).backward()
        images.append(fake.detach())
    found = {"fake": torch.cat(images)}
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        found |= {f"{name}.{key}": value.clone() for key, value in network.named_buffers()}
        found |= {f"{name}.{key}.grad": p.grad.clone() for key, p in network.named_parameters() if p.grad is not None}
    return found


class _Compare(torch.nn.Module):
    def __init__(self, discriminator: MultiscaleDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, *inputs: Tensor) -> Any:
        return self.discriminator.compare(*inputs)


def normalized(world: World, dtype: torch.dtype, norm: torch.nn.BatchNorm2d, rows: list[int]) -> dict[str, Tensor]:
    """A batch-norm layer on some of seven samples, whose channels have very different means and deviations."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(7, 3, 5, 4, generator=random, dtype=torch.float64)
    x = x * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + torch.tensor([0.0, 100.0, -3.0])[:, None, None]
    slope = torch.randn(7, 3, 5, 4, generator=random, dtype=torch.float64).to(dtype)
    own = x.to(dtype)[rows].requires_grad_()
    norm = norm.double() if dtype == torch.float64 else norm
    output = norm(own)
    output.backward(slope[rows])
    assert own.grad is not None
    found = {"output": output.detach(), "slope": own.grad, **norm.state_dict()}
    if norm.affine:
        found |= {"weight.grad": world.mean(norm.weight.grad) * world.size}  # a sum over the samples
    return found


class AbortsWhenDestroyed:
    """Does always what PyTorch's threads do seldom when Python destroys them: C++ ends the process by SIGABRT."""

    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        abort()


LEFT_OVER: list[AbortsWhenDestroyed] = []


def scenario_compute(world: World, folder: Path) -> None:
    LEFT_OVER.append(AbortsWhenDestroyed())
    found: dict[str, Any] = {
        "sync": passes(world, NormType.SYNC_BATCH),
        "plain": passes(world, NormType.BATCH),
        "parts": passes(world, NormType.SYNC_BATCH, parts=3 if world.size == 2 else 1),
    }
    rows = [0, 1] if world.rank == 0 else [2, 3, 4, 5, 6]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        found[str(dtype)] = normalized(world, dtype, SyncBatchNorm2d(3, affine=False), rows)
    found["affine"] = normalized(world, torch.float64, SyncBatchNorm2d(3), rows)
    found["mean of all"] = normalized(world, torch.float64, SyncBatchNorm2d(3, momentum=None, affine=False), rows)
    found["empty"] = normalized(
        world, torch.float64, SyncBatchNorm2d(3, affine=False), [] if world.rank else list(range(7))
    )
    found["one value"] = _message(lambda: SyncBatchNorm2d(3, affine=False)(torch.ones(1 - world.rank, 3, 1, 1)))
    found |= _talk(world)
    run_variants(world, folder)
    found |= _endings(world, folder)
    torch.save(found, folder / f"found_{world.rank}.pt")
    print(f"process {world.rank} says hello")
    with world.together():
        if world.rank == 1:
            raise ConfigError("one for all")


def _talk(world: World) -> dict[str, Any]:
    """What the processes tell each other."""
    told = [
        world.exchange(News()),
        world.exchange(News(signal="SIGTERM" if world.rank else "")),
        world.exchange(News(skipped=(f"from {world.rank}",))),
    ]

    def one_fails() -> None:
        with world.together():
            if world.rank == 1:
                raise DatasetError("rank 1 alone", hint="a hint")

    return {
        "any": [world.any_rank(False), world.any_rank(world.rank == 1)],
        "told": [(news.signal, list(news.skipped)) for news in told],
        "together": _message(one_fails),
        "from main": world.from_main(f"of {world.rank}"),
        "mean": world.mean(torch.tensor([1.0, 2.0]) * (world.rank + 1)),
    }


def _message(action: Callable[[], Any]) -> str:
    try:
        action()
    except (SpadeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class ExactLearner(Learner):
    """In float64. In float32 no two orders of adding give the same training: where a gradient is zero but for rounding,
    as of a bias before a batch norm, Adam makes of the rounding a step as long as any other.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for network in (*self.networks.values(), *([self.average.module] if self.average else [])):
            network.double()

    def _segmap(self, batch: Batch) -> Tensor:
        return super()._segmap(batch).double()

    def _image(self, photo: Tensor) -> Tensor:
        return super()._image(photo).double()

    def _styles(self, domain: int, count: int, step: int = 0) -> Tensor | None:
        styles = super()._styles(domain, count, step)
        return None if styles is None else styles.double()


class ExactStudent(learner.StudentLearner, ExactLearner):
    """A student's step in float64, with its teacher and the maps of its features."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher.module.double()
        assert self.maps is not None
        self.maps.double()

    def begin(self) -> tuple[str, ...]:
        """The teacher's channels are given in float32, as every checkpoint has them."""
        self.generator.float()
        notes = super().begin()
        self.generator.double()
        return notes


def teacher_beside(folder: Path) -> TeacherFacts:
    """A generator that is twice as wide as the student, saved where both processes find it; the same in each."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        wide = SpadeGenerator(replace(SPEC, base_channels=4, hidden_channels=6)).eval()
    checkpoint = checkpoint_folder(folder / "wide", 0)
    info = save_checkpoint(checkpoint, wide, step=0, origin="import")
    return TeacherFacts(str(checkpoint), info.generator_sha256, wide.spec)


def variants(teacher: TeacherFacts) -> dict[str, Setup]:
    """Trainings that one process and two do."""
    vae = setup_of(accumulate=2, ema_decay=0.5, ema_batches=2, discriminator_steps=2)
    return {
        "sync": setup_of(),
        "plain": setup_of(NormType.BATCH),
        "vae": replace(vae, generator=replace(vae.generator, z_dim=4)),
        "student": setup_of(weight_l1=10.0, distill=Distillation(teacher)),
    }


def run_variants(world: World, folder: Path) -> None:
    """Train each variant for three steps in a run folder of its name, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "Learner", ExactLearner)
        patch.setattr(learner, "StudentLearner", ExactStudent)
        teacher = world.from_main(teacher_beside(folder) if world.is_main else None)
        for name, setup in variants(teacher).items():
            if world.is_main:
                (folder / name).mkdir(parents=True)
            train(setup, run=folder / name, source=Noise(), world=world)


def _endings(world: World, folder: Path) -> dict[str, str]:
    """How trainings end that process 1 alone is asked to stop, or alone has bad data for, or that cannot be shared."""

    def asked_to_stop(step: int) -> None:
        if step == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def has_bad_data(step: int) -> None:
        if step == 2 and world.rank == 1:
            raise DatasetError("none of the samples can be used")

    def ending(name: str, setup: Setup, source: Noise) -> str:
        run = folder / name
        if world.is_main:
            run.mkdir()
        return _message(lambda: train(setup, run=run, source=source, world=world)).replace(f"{folder}/", "")

    return {
        "stopped": ending("stopped", setup_of(), Noise(asked_to_stop)),
        "bad data": ending("bad data", setup_of(), Noise(has_bad_data)),
        "not a number": ending("nan", setup_of(), NotANumber()),
        "odd batch": ending("odd", setup_of(batch_size=3), Noise()),
    }


class NotANumber(Noise):
    """The photos of process 1 are no numbers."""

    def sharded(self, shard: Shard) -> Noise:
        self.shard = shard
        return self

    def batches(self, **arguments: Any) -> Generator[Batch, None, None]:
        for batch in super().batches(**arguments):
            yield replace(batch, photo=batch.photo / (1 - self.shard.rank) * 0) if self.shard.rank else batch


def scenario_killed(world: World, folder: Path) -> None:
    """Process 1 is killed while it loads step 6; checkpoints are at 2 and 4."""
    LEFT_OVER.append(AbortsWhenDestroyed())

    def kill(step: int) -> None:
        if step == 6 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(setup_of(steps=8, save_every=2), run=folder, source=Noise(kill), world=world)


SCENARIOS = {"compute": scenario_compute, "killed": scenario_killed}


def main(scenario: str, folder: Path) -> None:
    """As the command line does: a SpadeError is printed and sets the exit code."""
    torch.set_num_threads(1)
    code: Any = 0
    try:
        with join_world() as world:
            SCENARIOS[scenario](world, folder)
    except SpadeError as error:
        print(f"error: {error.message}\nnext: {error.hint}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as ended:
        code = ended.code
    peers.end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
