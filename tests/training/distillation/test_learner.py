"""A student's step, its checkpoints, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spade_deploy.errors import CheckpointError, ConfigError, TrainingInterruptedError
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.runs import checkpoint_folder
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.runs.records import read_checkpoint_info
from spade_deploy.spec import GeneratorSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.distillation.cache import ImageCache
from spade_deploy.training.distillation.config import Distillation, TeacherFacts
from spade_deploy.training.distillation.features import FeatureMaps
from spade_deploy.training.distillation.learner import CACHE, StudentLearner, make_learner
from spade_deploy.training.distillation.teacher import load_teacher
from spade_deploy.training.loop import train
from spade_deploy.training.step_memory import estimate_memory
from tests.support.generators import build_generator
from tests.support.training_runs import LABELS, Noise, equal, halting, new_run, rows, setup_of, weights

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {"labels": LABELS, "base_channels": 4, "hidden_channels": 6, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherFacts:
    """A checkpoint of a generator that is twice as wide as the students."""
    checkpoint = checkpoint_folder(tmp_path_factory.mktemp("runs") / "wide", 0)
    info = save_checkpoint(checkpoint, build_generator(**WIDE), step=0, origin="import")
    return TeacherFacts(str(checkpoint), info.generator_sha256, info.generator)


def student_of(teacher: TeacherFacts, widths: Mapping[str, int] | None = None, **changes: Any) -> Setup:
    own = {name: changes.pop(name) for name in ("weight_features", "pruned", "cache") if name in changes}
    labels_only = changes.pop("labels_only", False)
    spec = replace(teacher.generator, **(widths or {"base_channels": 2, "hidden_channels": 3}))  # type: ignore[arg-type]
    data = DataConfig(crop_size=(32, 32), load_size=(32, 32), labels_only=labels_only)
    train_config = replace(setup_of().train, distill=Distillation(teacher, **own), **changes)
    return Setup(train_config, spec, data)


def learner_of(setup: Setup, run: Path | None = None) -> StudentLearner:
    learner = make_learner(setup, CPU, run=run)
    assert isinstance(learner, StudentLearner)
    return learner


def test_gradients_reach_the_student_and_the_maps_and_never_the_teacher(teacher: TeacherFacts) -> None:
    learner = learner_of(student_of(teacher))
    learner.begin()
    assert learner.maps is not None
    before = [weight.clone() for weight in learner.maps.parameters()]
    frozen = {name: tensor.clone() for name, tensor in learner.teacher.module.state_dict().items()}
    found = learner.step(Noise.batch(2, 1), 1.0)
    assert list(found) == [*learner.weights, "discriminator_real", "discriminator_fake"]
    assert {"l1", "features", "adversarial", "feature_matching"} <= set(found)
    assert all(not torch.equal(weight, was) for weight, was in zip(learner.maps.parameters(), before, strict=True))
    assert learner.generator.head_0.conv_0.weight_orig.grad.abs().sum() > 0
    after = learner.teacher.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert all(not parameter.requires_grad for parameter in learner.teacher.module.parameters())


def test_the_losses_are_distances_from_the_teacher(teacher: TeacherFacts) -> None:
    # A student of the same widths begins at the teacher's weights: its features and image differ by what batch norm
    # does with a batch's own statistics. In eval mode nothing is left.
    setup = student_of(teacher, {"base_channels": 4, "hidden_channels": 6})
    learner = learner_of(setup)
    learner.begin()
    learner.generator.eval()
    found = learner.step(Noise.batch(2, 1), 1.0)
    assert found["features"] == pytest.approx(0, abs=1e-12)
    assert found["l1"] == pytest.approx(0, abs=1e-7)
    random = learner_of(replace(setup, train=replace(setup.train, distill=replace(setup.train.distill, pruned=False))))
    random.begin()
    assert random.step(Noise.batch(2, 1), 1.0)["features"] > 0.1


def test_the_distance_of_features_is_relative() -> None:
    spec = GeneratorSpec(**WIDE)
    maps = FeatureMaps(spec, spec)
    maps.begin_with({group: torch.arange(64) for group in ("latent",)} | _all_channels(spec))
    features = [torch.randn(1, block.out_channels, 2, 2) for block in spec.blocks]
    assert maps(features, features).item() == 0
    assert maps([0 * one for one in features], features).item() == pytest.approx(1)
    assert maps([3 * one for one in features], features).item() == pytest.approx(4)  # (3 - 1)^2
    assert maps([300 * one for one in features], [100 * one for one in features]).item() == pytest.approx(4)
    pair = [torch.cat([one, 100 * one]) for one in features]
    factors = torch.tensor([2.0, 0.5]).reshape(2, 1, 1, 1)
    apart = maps([factors * one for one in pair], pair).item()
    assert apart == pytest.approx((1 + 0.25) / 2)  # a loud sample counts as much as a faint one: (2 - 1)^2, (0.5 - 1)^2


def _all_channels(spec: GeneratorSpec) -> dict[str, torch.Tensor]:
    return {f"{block.name}.out": torch.arange(block.out_channels) for block in spec.blocks}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(teacher: TeacherFacts, tmp_path: Path) -> None:
    setup = student_of(teacher, steps=4, save_every=2, sample_every=4, ema_decay=0.9, ema_batches=1)
    whole = train(setup, run=new_run(tmp_path / "whole"), source=Noise())  # type: ignore[arg-type]
    with pytest.raises(TrainingInterruptedError):
        train(setup, run=new_run(tmp_path / "parts"), source=halting(Noise(), 2))  # type: ignore[arg-type]
    at = checkpoint_folder(tmp_path / "parts", 2)
    parts = train(setup, run=tmp_path / "parts", source=Noise(), resume=at)  # type: ignore[arg-type]
    one, other = weights(whole.checkpoint), weights(parts.checkpoint)
    assert "feature_maps" in one[2]
    for name in ("feature_maps", "generator", "trained_generator", "random", "losses"):
        assert equal(one[2][name], other[2][name]), name
    assert equal(one[:2], other[:2])
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    info = read_checkpoint_info(whole.checkpoint)
    assert info.teacher == (teacher.place, teacher.sha256)
    assert info.init == teacher.place  # what the teacher learned from is not new to its student
    assert load_generator(whole.checkpoint).spec == setup.generator


def test_label_maps_alone_suffice(teacher: TeacherFacts, tmp_path: Path) -> None:
    setup = student_of(teacher, steps=2, save_every=2, labels_only=True)

    def black(step: int, batch: Batch) -> Batch:
        return replace(batch, photo=torch.full_like(batch.photo, float("nan")))  # nothing may look at it

    result = train(setup, run=new_run(tmp_path / "bare"), source=Noise(black))  # type: ignore[arg-type]
    assert list(result.losses) == ["l1", "features"]
    learner = learner_of(setup)
    shown = learner.beside(Noise.batch(2, 3))
    wanted = learner.teacher.image(learner._segmap(shown), None)
    assert torch.equal(shown.photo, wanted)
    untouched = [state for name, state in learner.discriminator.state_dict().items() if name.endswith("weight_orig")]
    learner.step(Noise.batch(2, 1), 1.0)
    again = [state for name, state in learner.discriminator.state_dict().items() if name.endswith("weight_orig")]
    assert equal(untouched, again)


def test_a_shipped_teacher_of_another_version_is_refused(teacher: TeacherFacts) -> None:
    with pytest.raises(
        CheckpointError, match=r"the teacher earth of this version has the SHA-256 [0-9a-f]{12}, that"
    ) as told:
        load_teacher(replace(teacher, place="earth", sha256="1" * 64))
    assert "continue with the version of spade-deploy that the run began with" in (told.value.hint or "")


def test_kept_images_are_used_again_and_are_those_of_the_map(teacher: TeacherFacts, tmp_path: Path) -> None:
    setup = student_of(teacher, cache=True, weight_features=0.0)
    learner, calls = learner_of(setup, tmp_path), list[int]()
    run = learner.teacher.module.forward

    def counted(segmap: torch.Tensor, *others: Any) -> torch.Tensor:
        calls.append(len(segmap))
        return run(segmap, *others)

    learner.teacher.module.forward = counted  # type: ignore[method-assign]
    first = learner.step(Noise.batch(2, 1), 1.0)
    learner.step(Noise.batch(2, 1), 1.0)
    assert calls == [2]
    learner.step(Noise.batch(2, 2), 1.0)
    assert calls == [2, 2]
    assert len(list((tmp_path / CACHE).rglob("*.png"))) == 4
    assert learner_of(setup, tmp_path).step(Noise.batch(2, 1), 1.0)["l1"] == first["l1"]  # kept and new ones are equal
    cache = ImageCache(tmp_path / CACHE)
    kept = cache.images(Noise.batch(2, 2), lambda rows: pytest.fail("it was made again"))
    true = learner.teacher.image(learner._segmap(Noise.batch(2, 2)), None)
    assert (kept - true).abs().max() <= 0.5 / 127.5 + 1e-6
    damaged = next((tmp_path / CACHE).rglob("*.png"))
    damaged.write_bytes(b"no image")
    calls.clear()
    for seed in (1, 2):
        learner.step(Noise.batch(2, seed), 1.0)
    assert calls == [1]


def test_another_image_in_the_place_of_a_kept_one_is_noticed(tmp_path: Path) -> None:
    batch, made = Noise.batch(2, 1), list[list[int]]()
    cache, images = ImageCache(tmp_path), Noise.batch(2, 2).photo

    def make(rows: list[int]) -> torch.Tensor:
        made.append(rows)
        return images[rows]

    first = cache.images(batch, make)
    one, other = sorted(tmp_path.rglob("*.png"))
    kept = one.read_bytes()
    Image.new("RGB", (16, 16)).save(one)  # of another size
    assert torch.equal(cache.images(batch, make), first)
    with Image.open(other) as image:
        texts = PngInfo()
        for name, text in image.info.items():
            texts.add_text(name, text)
        Image.eval(image, lambda value: 255 - value).save(other, pnginfo=texts)  # of the same size, with its texts
    assert torch.equal(cache.images(batch, make), first)
    one.write_bytes(other.read_bytes())  # of another map, with its own digest
    assert torch.equal(cache.images(batch, make), first)
    assert [len(rows) for rows in made] == [2, 1, 1, 1]
    assert one.read_bytes() == kept
    assert torch.equal(cache.images(batch, lambda rows: pytest.fail("it was made again")), first)


def test_a_kept_image_is_of_the_label_map_with_its_instances(tmp_path: Path) -> None:
    cache, asked = ImageCache(tmp_path), list[list[int]]()
    label, photo = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8)
    one, other = torch.zeros(2, 8, 8, dtype=torch.int32), torch.zeros(2, 8, 8, dtype=torch.int32)
    one[1, 2:], other[1, 3:] = 1, 1

    def images(instance: torch.Tensor | None, value: float) -> list[float]:
        def make(rows: list[int]) -> torch.Tensor:
            asked.append(rows)
            return torch.full((len(rows), 3, 8, 8), value)

        return cache.images(Batch(label, instance, photo, ("a", "b")), make).mean((1, 2, 3)).tolist()

    assert images(one, -1.0) == [-1, -1]
    assert images(other, 1.0) == [-1, 1], "the first has the same instances as before"
    assert images(None, 1.0) == [1, 1]
    assert images(one, 1.0) == [-1, -1]
    assert asked == [[0, 1], [1], [0, 1]]


def test_the_teachers_memory_counts(teacher: TeacherFacts) -> None:
    learner = learner_of(student_of(teacher))
    assert learner.maps is not None
    networks = [learner.generator, learner.discriminator, learner.maps, learner.teacher.module]
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    expected = sum(tensor.nbytes for tensor in tensors)
    assert expected <= estimate_memory(learner.setup).weights <= 1.02 * expected


def test_a_teacher_is_found_by_its_digest_or_missed_by_name(teacher: TeacherFacts, tmp_path: Path) -> None:
    moved = tmp_path / "runs" / "elsewhere" / "checkpoints" / "step_00000000"
    save_checkpoint(moved, build_generator(**WIDE), step=0, origin="import")
    gone = replace(teacher, place=str(tmp_path / "gone" / "run" / "checkpoints" / "step_00000000"))
    assert equal(load_teacher(gone, tmp_path / "runs").state_dict(), load_generator(moved).module.state_dict())
    with pytest.raises(
        CheckpointError, match=r"the teacher, with the SHA-256 [0-9a-f]{12}, is no longer there"
    ) as error:
        load_teacher(gone, tmp_path)
    assert error.value.hint == "put it back, or among the runs; or name it: `spade distill TEACHER --resume RUN`"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": True}, "`cache` contradicts `weight_features` 10.0"),
        ({"weight_features": float("nan")}, "`weight_features`: nan is not a finite number"),
        ({"compile": True}, "`compile` contradicts `weight_features` 10.0"),
        ({"init": "earth"}, "`init` earth contradicts a teacher"),
        ({"labels_only": True, "eval_every": 5}, "`eval_every` 5: there are no photos to measure"),
    ],
)
def test_contradictions(teacher: TeacherFacts, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        student_of(teacher, **changes)


def test_only_students_learn_without_photos() -> None:
    setup = setup_of()
    with pytest.raises(ConfigError, match="training needs photos"):
        replace(setup, data=replace(setup.data, labels_only=True))
    assert "labels_only" not in DataConfig().to_json()
    assert "distill" not in setup.to_json()["train"]
    assert Setup.from_json(setup.to_json()) == setup
