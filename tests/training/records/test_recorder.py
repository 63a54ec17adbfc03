"""What a run writes on the way: metrics, the best checkpoint, class counts; and what a resumed run makes of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spade_deploy import runs
from spade_deploy.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    NotFoundError,
    TrainingError,
    TrainingInterruptedError,
)
from spade_deploy.runs import checkpoint
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.csv_log import read_columns
from spade_deploy.spec import LabelSpec
from spade_deploy.training.config import Setup
from spade_deploy.training.dataset import Batch
from spade_deploy.training.loop import train
from spade_deploy.training.records import measurements, recorder, tensorboard
from spade_deploy.training.records.class_counts import ClassCounts
from spade_deploy.training.records.recorder import Recorder
from spade_deploy.training.steps import Learner
from tests.support.listener import Listener
from tests.support.training_runs import LABELS, Noise, Scripted, halting, measured, new_run, setup_of


@pytest.fixture(autouse=True)
def _few_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots cost more than everything else here: they are drawn where a test asks for them."""
    if "with_plots" not in request.fixturenames:
        monkeypatch.setattr(recorder, "plot_losses", lambda *_: None)
        monkeypatch.setattr(measurements, "plot_metrics", lambda *_: None)


@pytest.fixture
def with_plots() -> None:
    """Named by a test that wants plots."""


def steps_kept(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in runs.run_checkpoints(run)]


class TestMetrics:
    @pytest.mark.usefixtures("with_plots")
    def test_rows_plot_and_the_best_beside_the_newest(self, tmp_path: Path) -> None:
        run, source, seen = new_run(tmp_path / "run"), Scripted([3.0, 1.0, 2.0, 1.5]), Listener()
        result = train(measured(steps=4), run=run, source=source, progress=seen)
        table = read_columns(run / "metrics.csv")
        assert list(table) == ["step", "distance", "other", "seconds"]
        assert table["step"].tolist() == [1, 2, 3, 4]
        assert table["distance"].tolist() == [3.0, 1.0, 2.0, 1.5]
        assert source.shapes[0] == (2, 32, 32, 3)
        best = json.loads((run / runs.BEST_JSON).read_text())
        assert (best["step"], best["metric"], best["value"]) == (2, "distance", 1.0)
        assert steps_kept(run) == [2, 4]
        assert runs.best_checkpoint(run) == runs.checkpoint_folder(run, 2)
        assert load_generator(runs.best_checkpoint(run)).info.step == 2
        assert runs.resolve_checkpoint(run, tmp_path) == runs.checkpoint_folder(run, 4)
        assert runs.resolve_checkpoint(run, tmp_path, best=True) == runs.checkpoint_folder(run, 2)
        assert runs.resolve_checkpoint(None, tmp_path, best=True) == runs.checkpoint_folder(run, 2)
        assert seen.figures[-1].metrics == {"distance": 1.5, "other": 1.0}
        assert result.notes == (), "every plot was drawn"
        with Image.open(run / "metrics.png") as image:
            assert image.size[0] > 800

    def test_higher_can_be_better_and_ties_and_nan_change_nothing(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        values = [1.0, float("nan"), 3.0, 3.0, 2.0]
        train(measured(steps=5), run=run, source=Scripted(values, "higher"))
        assert json.loads((run / runs.BEST_JSON).read_text())["step"] == 3
        assert steps_kept(run) == [3, 5]

    def test_only_when_due_and_at_the_end(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        train(measured(steps=5, eval_every=2, best_by=""), run=run, source=Scripted([3.0, 1.0, 2.0]))
        assert read_columns(run / "metrics.csv")["step"].tolist() == [2, 4, 5]
        assert not (run / runs.BEST_JSON).exists()
        assert steps_kept(run) == [5]

    def test_what_is_not_measured_cannot_be_the_best(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        with pytest.raises(ConfigError, match="--best-by: fid is not measured"):
            train(measured(best_by="fid"), run=run, source=Scripted([]))
        assert list(run.iterdir()) == []

    def test_a_judge_that_fails_on_real_photos_chooses_nothing(self, tmp_path: Path) -> None:
        """`other` is 1.0 in every step: the first stays the best by it, where `distance` would choose the second."""
        run, source = new_run(tmp_path / "run"), Scripted([3.0, 1.0])
        source.failing = {"distance": "the segmenter finds 3.0 % of the pixels"}
        result = train(measured(steps=2), run=run, source=source)
        assert result.notes == (
            "distance cannot choose the best checkpoint: the segmenter finds 3.0 % of the pixels; other chooses it",
        )
        best = json.loads((run / runs.BEST_JSON).read_text())
        assert (best["metric"], best["step"], best["value"]) == ("other", 1, 1.0)

    def test_measuring_that_fails_is_said_and_training_goes_on(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        source = Scripted([2.0, ConfigError("the segmenter has 5 classes"), 1.0])
        result = train(measured(steps=3), run=run, source=source)
        assert result.notes == ("step 2: the measurement failed and training went on (the segmenter has 5 classes)",)
        assert read_columns(run / "metrics.csv")["step"].tolist() == [1, 3]
        assert runs.best_checkpoint(run).name == "step_00000003"

    def test_measuring_does_not_disturb_training(self, tmp_path: Path) -> None:
        one, two = new_run(tmp_path / "one"), new_run(tmp_path / "two")
        often = train(measured(steps=3), run=one, source=Scripted([1.0] * 3))
        never = train(setup_of(steps=3), run=two, source=Noise())
        assert often.losses == never.losses


class TestResumedMetrics:
    def resume(self, tmp_path: Path, second: Setup, values: list[float]) -> tuple[Path, tuple[str, ...]]:
        """Three steps with a best of 1.0 in the first, then on to six."""
        run = new_run(tmp_path / "run")
        halted = Scripted([1.0, 2.0, 3.0], spoil=halting(Noise(), at=3).spoil)
        with pytest.raises(TrainingInterruptedError):
            train(measured(steps=6), run=run, source=halted)
        assert steps_kept(run) == [1, 3]
        resumed = train(second, run=run, source=Scripted(values), resume=runs.checkpoint_folder(run, 3))
        return run, resumed.notes

    def test_rows_go_on_and_the_best_is_remembered(self, tmp_path: Path) -> None:
        run, notes = self.resume(tmp_path, measured(steps=6), [4.0, 5.0, 6.0])
        assert read_columns(run / "metrics.csv")["distance"].tolist() == [1, 2, 3, 4, 5, 6]
        assert runs.best_checkpoint(run).name == "step_00000001"
        assert steps_kept(run) == [1, 6]
        assert notes == ()

    def test_a_better_one_takes_its_place(self, tmp_path: Path) -> None:
        run, _ = self.resume(tmp_path, measured(steps=6), [4.0, 0.5, 6.0])
        assert runs.best_checkpoint(run).name == "step_00000005"
        assert steps_kept(run) == [5, 6]

    def test_a_best_that_was_measured_in_another_way_is_forgotten_and_said(self, tmp_path: Path) -> None:
        run, notes = self.resume(tmp_path, measured(steps=6, eval_samples=7), [4.0, 5.0, 6.0])
        assert runs.best_checkpoint(run).name == "step_00000004"
        assert notes == ("the best checkpoint so far, by distance 1 in step 1, was measured in another way",)

    def test_the_best_stays_where_nothing_is_measured_any_more(self, tmp_path: Path) -> None:
        run, notes = self.resume(tmp_path, measured(steps=6, eval_every=0, best_by=""), [])
        assert runs.best_checkpoint(run).name == "step_00000001"
        assert steps_kept(run) == [1, 6]
        assert len(notes) == 1

    def test_rows_of_other_metrics_are_kept_apart(self, tmp_path: Path) -> None:
        class Other(Scripted):
            def evaluate(self, generate: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
                return {"distance": super().evaluate(generate)["distance"]}

        run = new_run(tmp_path / "run")
        first = train(measured(steps=2), run=run, source=Scripted([1.0, 2.0]))
        train(measured(steps=3), run=run, source=Other([3.0]), resume=first.checkpoint)
        assert read_columns(run / "metrics.csv")["distance"].tolist() == [3.0]
        assert read_columns(run / "metrics_until_00000002.csv")["distance"].tolist() == [1.0, 2.0]


class TestOrder:
    def test_a_clock_that_goes_back_loses_no_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The newest by step has the earliest date: it is kept, found, and resumed from."""
        ticks = iter(range(10**18, 0, -(10**15)))
        monkeypatch.setattr(checkpoint.time, "time_ns", lambda: next(ticks))
        run = new_run(tmp_path / "run")
        result = train(setup_of(steps=4, save_every=1, keep_checkpoints=2), run=run, source=Noise())
        dates = [runs.read_checkpoint_info(folder).created_unix_ns for folder in runs.run_checkpoints(run)]
        assert dates == sorted(dates, reverse=True), "the clock went back"
        assert steps_kept(run) == [3, 4]
        assert runs.resolve_checkpoint(run, tmp_path) == result.checkpoint
        more = train(
            setup_of(steps=6, save_every=1, keep_checkpoints=1),
            run=run,
            source=Noise(),
            resume=runs.resolve_checkpoint(run, tmp_path),
        )
        assert (more.step, steps_kept(run)) == (6, [6])

    def test_a_run_that_goes_back_moves_its_later_steps_aside(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        often = {"save_every": 1, "sample_every": 1}
        train(setup_of(steps=4, **often), run=run, source=Noise())
        halted = halting(Noise(), at=3)
        with pytest.raises(TrainingInterruptedError):
            train(setup_of(steps=4, **often), run=run, source=halted, resume=runs.checkpoint_folder(run, 2))
        assert steps_kept(run) == [1, 2, 3], "the newest is what was trained last, not step 4 of before"
        assert steps_kept(run / "set_aside-001") == [3, 4]
        assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step_{n:08d}.png" for n in (1, 2, 3)]
        result = train(setup_of(steps=4, **often), run=run, source=Noise(), resume=runs.checkpoint_folder(run, 2))
        assert result.notes[0] == (
            f"the run continues from step 2: the checkpoint of a later step was moved to {run / 'set_aside-002'}"
        )


class TestBest:
    def best(self, **changes: Any) -> dict[str, Any]:
        return {"step": 1, "metric": "x", "value": 1.5, "direction": "lower", "measured_with": {}, **changes}

    def test_none_was_chosen(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"best\.json is missing") as caught:
            runs.best_checkpoint(tmp_path)
        assert "--best-by" in str(caught.value.hint)
        with pytest.raises(NotFoundError, match="does not exist"):
            runs.resolve_checkpoint(tmp_path / "absent", tmp_path, best=True)

    def test_a_marked_checkpoint_that_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / runs.BEST_JSON).write_text(json.dumps(self.best()))
        with pytest.raises(CheckpointError, match=r"step_00000001.*is missing"):
            runs.best_checkpoint(tmp_path)

    @pytest.mark.parametrize("wrong", [{"step": -1}, {"value": "low"}, {"direction": "up"}, {"measured_with": None}])
    def test_a_damaged_mark_is_named(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        (tmp_path / runs.BEST_JSON).write_text(json.dumps(self.best(**wrong)))
        with pytest.raises(CheckpointError, match=rf"best\.json: {next(iter(wrong))}"):
            runs.read_best(tmp_path)
        (tmp_path / runs.BEST_JSON).write_text("{")
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            runs.best_checkpoint(tmp_path)

    def test_a_checkpoint_has_no_best(self, tmp_path: Path) -> None:
        (tmp_path / runs.CHECKPOINT_JSON).write_text("{}")
        for path in (tmp_path, tmp_path / runs.CHECKPOINT_JSON):
            with pytest.raises(ConfigError, match=r"`best`: .* is a checkpoint already"):
                runs.resolve_checkpoint(path, tmp_path, best=True)


def two_of_three(step: int, batch: Batch) -> Batch:
    """Label 2 becomes 0, but in step 5."""
    return batch if step == 5 else replace(batch, label=batch.label % 2)


class TestClasses:
    def test_counts_are_exact(self) -> None:
        counts = ClassCounts(LabelSpec(3, has_dontcare=True, names=("sea", "land", "ice", "unknown")))
        assert counts.missing() == ()
        assert counts.sentence() == ""
        counts.add(torch.tensor([[[0, 0], [0, 1]], [[0, 0], [0, 0]]], dtype=torch.uint8))
        counts.add(torch.tensor([[[1, 1], [1, 3]]], dtype=torch.int32))
        assert counts.table.tolist() == [[7, 2], [4, 2], [0, 0], [1, 1]]
        assert counts.missing() == ("ice",)
        assert counts.sentence().startswith("1 class never occurs in the 3 samples of steps 1 to 2: ice; a model")

    def test_many_names_are_cut(self) -> None:
        counts = ClassCounts(LabelSpec(12))
        counts.add(torch.zeros(1, 2, 2, dtype=torch.uint8))
        assert "11 classes never occur" in counts.sentence()
        assert "label 8 and 3 more; a model without other training" in counts.sentence()

    def test_the_run_says_it_after_the_first_epoch_and_writes_the_shares(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        result = train(setup_of(steps=4), run=run, source=Noise(two_of_three))
        assert len(result.notes) == 1
        assert "1 class never occurs in the 8 samples of steps 1 to 4: label 2;" in result.notes[0]
        found = json.loads((run / "classes.json").read_text())
        assert found["pixels"] == 4 * 2 * 32 * 32
        assert [entry["samples"] for entry in found["classes"]] == [8, 8, 0]
        assert sum(entry["share"] for entry in found["classes"]) == pytest.approx(1.0)
        assert found["classes"][2]["pixels"] == 0

    def test_a_class_that_turns_up_later_takes_the_note_back(self, tmp_path: Path) -> None:
        """Told after the first epoch (4 steps), no longer at the end."""
        learner = Learner(setup_of(), torch.device("cpu"))
        run, source = new_run(tmp_path / "run"), Noise(two_of_three)
        samples, facts = source.samples(2), {"steps_per_epoch": 4}
        told = []
        with Recorder(run, learner, samples, facts, None, 0) as recorder:
            for step, batch in zip(
                range(1, 7), source.batches(batch_size=2, seed=0, start_step=0, workers=0, on_skip=print), strict=False
            ):
                recorder.count(batch.label)
                losses = dict.fromkeys(learner.loss_names, 0.5)
                recorder.record(step, losses, (1e-3, 1e-3), 0.1, is_last=step == 6)
                told.append(len(recorder.new_notes()))
            assert told == [0, 0, 0, 1, 0, 0]
            assert recorder.notes == ()

    def test_a_resumed_run_goes_on_counting(self, tmp_path: Path) -> None:
        whole, broken = new_run(tmp_path / "whole"), new_run(tmp_path / "broken")
        train(setup_of(steps=4), run=whole, source=Noise())
        with pytest.raises(TrainingInterruptedError):
            train(setup_of(steps=4), run=broken, source=halting(Noise(), at=2))
        train(setup_of(steps=4), run=broken, source=Noise(), resume=runs.checkpoint_folder(broken, 2))
        assert (whole / "classes.json").read_bytes() == (broken / "classes.json").read_bytes()

    @pytest.mark.parametrize("damage", ["{", '{"last_step": 9}', "[]", '{"classes": [{"pixels": "x"}]}'])
    def test_counts_of_other_steps_or_damaged_ones_start_again(self, tmp_path: Path, damage: str) -> None:
        counts = ClassCounts(LABELS)
        counts.add(torch.zeros(1, 2, 2, dtype=torch.uint8))
        counts.write(tmp_path)
        assert ClassCounts.resumed(tmp_path, LABELS, 1).table.tolist() == [[4, 1], [0, 0], [0, 0]]
        assert ClassCounts.resumed(tmp_path, LABELS, 7).samples == 0
        assert ClassCounts.resumed(tmp_path, LABELS, 7).first_step == 8
        assert ClassCounts.resumed(tmp_path, LabelSpec(9), 1).samples == 0
        (tmp_path / "classes.json").write_text(damage)
        assert ClassCounts.resumed(tmp_path, LABELS, 9).samples == 0


class TestFolder:
    def test_the_samples_become_a_timeline_and_an_animation(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        result = train(setup_of(steps=3, sample_every=1), run=run, source=Noise())
        assert result.notes == ()
        with Image.open(run / "samples.gif") as animation:
            assert animation.n_frames == 3
        assert (run / "timeline.png").is_file()

    def test_one_sample_is_no_animation(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        assert train(setup_of(steps=1), run=run, source=Noise()).notes == ()
        assert not (run / "samples.gif").exists()
        assert not (run / "timeline.png").exists()

    def test_what_a_killed_process_left_of_a_checkpoint_goes(self, tmp_path: Path) -> None:
        checkpoints = tmp_path / "run" / runs.CHECKPOINTS
        for name in (".step_00000003.ab_12xy.tmp", ".step_00000002.old.tmp", ".step_00000003.abc.old.tmp", ".mine"):
            (checkpoints / name).mkdir(parents=True)
        train(setup_of(steps=1), run=tmp_path / "run", source=Noise())
        # The third is what a checkpoint was replaced by in the moment of the kill: it may be the only copy.
        left = sorted(path.name for path in checkpoints.iterdir())
        assert left == [".mine", ".step_00000003.abc.old.tmp", "step_00000001"]

    def test_tensorboard_that_is_missing_is_said_before_anything_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, learner = new_run(tmp_path / "run"), Learner(setup_of(tensorboard=True), torch.device("cpu"))
        monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match="tensorboard is not installed") as caught:
            Recorder(run, learner, Noise().samples(1), {}, None, 0)
        assert "spade-deploy[tensorboard]" in str(caught.value.hint)
        assert list(run.iterdir()) == []

    def test_a_checkpoint_that_cannot_be_written_ends_the_run(self, tmp_path: Path) -> None:
        run = new_run(tmp_path / "run")
        (run / runs.CHECKPOINTS).write_text("a file")
        with pytest.raises(TrainingError, match=r"cannot be written.*No checkpoint was saved yet"):
            train(setup_of(steps=1), run=run, source=Noise())
