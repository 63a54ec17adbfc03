"""Bad input and bad luck: each is named, and nothing that was learned is lost.

A full disk is /dev/full, which takes no byte: what is to be written is pointed there, so the libraries that write fail
as they do on a disk without room.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError

from spade_deploy import runs
from spade_deploy.errors import CheckpointError, DatasetError, TrainingError
from spade_deploy.files import atomic
from spade_deploy.progress import SILENT
from spade_deploy.runs import csv_log
from spade_deploy.runs.checkpoint import load_generator
from spade_deploy.runs.csv_log import read_columns
from spade_deploy.spec import DiscriminatorSpec
from spade_deploy.training.dataset import Batch
from spade_deploy.training.loop import train
from spade_deploy.training.records import measurements, recorder
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.session import Session, start
from spade_deploy.training.steps import Learner
from tests.support.training_runs import Noise, Scripted, measured, new_run, setup_of

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is not here: a full disk cannot be simulated")


@pytest.fixture(autouse=True)
def _few_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots cost more than everything else here: they are drawn where a disk is full of them."""
    if "losses.png" not in request.node.name:
        monkeypatch.setattr(recorder, "plot_losses", lambda *_: None)
    if "metrics.png" not in request.node.name:
        monkeypatch.setattr(measurements, "plot_metrics", lambda *_: None)


class TestFolders:
    """Photos and label maps that do not belong together."""

    def folders(self, root: Path, labels: dict[str, int], photos: dict[str, int]) -> TrainRequest:
        """labels, photos: height of each file by its stem; all are 32 pixels wide."""
        numbers = np.random.default_rng(0)
        for folder in ("labels", "images"):
            (root / folder).mkdir()
        for stem, height in labels.items():
            Image.fromarray(numbers.integers(0, 2, (height, 32), np.uint8)).save(root / "labels" / f"{stem}.png")
        for stem, height in photos.items():
            Image.fromarray(numbers.integers(0, 255, (height, 32, 3), np.uint8)).save(root / "images" / f"{stem}.jpg")
        tiny = setup_of()
        return TrainRequest(
            data=DataRequest(labels=root / "labels", images=root / "images", num_labels=3, size=(32, 32)),
            generator={"base_channels": 2, "hidden_channels": 4},
            train={
                **{name: getattr(tiny.train, name) for name in ("batch_size", "workers", "device", "discriminator")},
                "steps": 2,
            },
        )

    def begin(self, root: Path, labels: dict[str, int], photos: dict[str, int]) -> Session:
        return start(self.folders(root, labels, photos), runs_dir=root / "runs")

    def test_no_pairs(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"no train samples.*labels.*\(2 found\).*images.*\(1 found\)") as caught:
            self.begin(tmp_path, {"a": 32, "b": 32}, {"c": 32})
        assert "same file stem" in str(caught.value.hint)
        assert not (tmp_path / "runs").exists()

    def test_files_without_a_partner_are_named_and_the_rest_trains(self, tmp_path: Path) -> None:
        session = self.begin(tmp_path, {"a": 32, "b": 32, "c": 32}, {"a": 32, "b": 32, "x": 32})
        (note,) = (note for note in session.notes if "have no partner" in note)
        assert "c.png: there is no photo for it" in note
        assert "x.jpg: there is no label map for it" in note

    def test_other_sizes_are_named_and_the_rest_trains(self, tmp_path: Path) -> None:
        session = self.begin(tmp_path, {"a": 32, "b": 32, "c": 32}, {"a": 32, "b": 40, "c": 32})
        result = session.train(SILENT)
        assert result.step == 2
        (skipped,) = result.skipped
        assert "b.png: 32 x 32 pixels, but" in skipped
        assert skipped.endswith("b.jpg has 32 x 40")
        assert (session.run / "skipped.txt").read_text() == skipped + "\n"
        assert any("never occurs in the 4 samples" in note and "label 2" in note for note in result.notes)

    def test_nothing_that_fits_is_an_error_and_leaves_no_run(self, tmp_path: Path) -> None:
        session = self.begin(tmp_path, {"a": 32, "b": 32}, {"a": 40, "b": 40})
        with pytest.raises(DatasetError, match=r"none of the 2 training samples can be used.*has 32 x 40"):
            session.train(SILENT)
        assert list((tmp_path / "runs").iterdir()) == []


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Files of that name, written atomically or inside an atomic folder, go to /dev/full. Returns what was tried."""
    make_file, make_folder, tried = atomic._new_file, atomic._new_folder, list[str]()

    def file(path: Path) -> tuple[Path, int]:
        temporary, mode = make_file(path)
        if path.name == name:
            tried.append(name)
            temporary.unlink()
            temporary.symlink_to(FULL)
        return temporary, mode

    def folder(path: Path, ending: str = ".tmp") -> Path:
        temporary = make_folder(path, ending)
        where, _, inside = name.partition("/")
        if inside and path.name == where:
            tried.append(name)
            (temporary / inside).symlink_to(FULL)
        return temporary

    monkeypatch.setattr(atomic, "_new_file", file)
    monkeypatch.setattr(atomic, "_new_folder", folder)
    return tried


def full_safetensors(monkeypatch: pytest.MonkeyPatch, pattern: str) -> list[str]:
    """The same for a file of tensors, with the error that its library raises."""
    save, tried = safetensors.torch.save_file, list[str]()

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if re.search(pattern, str(path)):
            tried.append(str(path))
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    return tried


def leftovers(run: Path) -> list[Path]:
    return [path for path in run.rglob(".*") if not path.is_dir() or ".tmp" in path.name]


class TestFullDisk:
    """Only what training is for ends it: a checkpoint. All the rest is said and done without."""

    @needs_full
    @pytest.mark.parametrize("file", [runs.GENERATOR_FILE, runs.DISCRIMINATOR_FILE, runs.OPTIMIZERS_FILE])
    def test_a_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
        if file.endswith(".safetensors"):  # which renames a file of its own over what is pointed to /dev/full
            tried = full_safetensors(monkeypatch, f"step_00000006.*{file}")
        else:
            tried = full_disk(monkeypatch, f"step_00000006/{file}")
        run = new_run(tmp_path / "run")
        message = r"cannot be written.*last good checkpoint is .*step_00000003"
        with pytest.raises(TrainingError, match=message) as caught:
            train(setup_of(), run=run, source=Noise())
        assert tried
        assert "free some space" in str(caught.value.hint)
        assert [folder.name for folder in (run / runs.CHECKPOINTS).iterdir()] == ["step_00000003"]
        assert leftovers(run) == []
        # There is room again: the run goes on from there.
        monkeypatch.undo()
        assert train(setup_of(), run=run, source=Noise(), resume=runs.newest_checkpoint(tmp_path)).step == 6

    @needs_full
    def test_the_description_of_a_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        full_disk(monkeypatch, runs.CHECKPOINT_JSON)
        run = new_run(tmp_path / "run")
        with pytest.raises(TrainingError, match=r"No space left on device.*No checkpoint was saved yet"):
            train(setup_of(steps=1), run=run, source=Noise())
        assert runs.run_checkpoints(run) == []
        assert list((run / runs.CHECKPOINTS).iterdir()) == []

    @needs_full
    @pytest.mark.parametrize("file", ["config.json", "losses.csv"])
    def test_a_run_that_cannot_begin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
        full_disk(monkeypatch, file)
        with pytest.raises(TrainingError, match=r"No space left on device.*No checkpoint was saved yet"):
            train(setup_of(steps=1), run=new_run(tmp_path / "run"), source=Noise())

    @needs_full
    @pytest.mark.parametrize(
        ("file", "what"),
        [
            ("step_00000001.png", "the sample grid"),
            ("losses.png", "losses.png"),
            ("metrics.csv", "metrics.csv"),
            ("metrics.png", "metrics.png"),
            ("best.json", "best.json"),
            ("classes.json", "classes.json"),
            ("skipped.txt", "skipped.txt"),
            ("timeline.png", "timeline.png"),
            ("samples.gif", "samples.gif"),
        ],
    )
    def test_what_is_only_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, what: str
    ) -> None:
        tried = full_disk(monkeypatch, file)
        run = new_run(tmp_path / "run")
        # Three grids: where the first fails, two are left, which is an animation.
        result = train(measured(steps=3, sample_every=1, eval_every=2), run=run, source=Scripted([2.0, 1.0]))
        assert tried
        assert result.step == 3
        (note,) = (note for note in result.notes if what in note)
        assert "failed and training went on" in note
        assert "No space left on device" in note
        assert len(result.notes) == 1, "the rest is written"
        assert not list(run.rglob(file))
        assert leftovers(run) == []
        load_generator(result.checkpoint)

    @needs_full
    def test_rows_wait_until_there_is_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In steps 2 to 4 the disk takes nothing; no row is missing in the end."""
        write, logs = csv_log.CsvLog.write, list[Any]()

        def sometimes(self: csv_log.CsvLog, values: dict[str, float]) -> None:
            real = self._file
            if 2 <= values["step"] <= 4:
                self._file = FULL.open("ab", buffering=0)
            logs.append(self)
            try:
                write(self, values)
            finally:
                if self._file is not real:
                    self._file.close()
                self._file = real

        monkeypatch.setattr(csv_log.CsvLog, "write", sometimes)
        run = new_run(tmp_path / "run")
        result = train(setup_of(save_every=6), run=run, source=Noise())
        assert read_columns(run / "losses.csv")["step"].tolist() == [1, 2, 3, 4, 5, 6]
        assert [note[:30] for note in result.notes] == ["step 4: losses.csv failed and "]

    def test_tensorboard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        class Full:
            def __init__(self, run: Path, start: int) -> None:
                pass

            def settings(self, *args: Any) -> None:
                pass

            def scalars(self, *args: Any, **kwargs: Any) -> None:
                calls.append("scalars")
                raise OSError(28, "No space left on device")

            image = scalars

            def close(self) -> None:
                raise AssertionError("a board that failed is left alone")

        monkeypatch.setattr(recorder, "Board", Full)
        monkeypatch.setattr(recorder, "require_tensorboard", lambda: None)
        result = train(setup_of(tensorboard=True), run=new_run(tmp_path / "run"), source=Noise())
        assert result.step == 6
        assert calls == ["scalars"]
        assert result.notes == ("step 1: TensorBoard failed and training went on (No space left on device)",)


class TestNotFinite:
    @pytest.mark.parametrize(
        ("network", "spec"), [("generator", {}), ("discriminator", {}), ("encoder", {"z_dim": 4}), ("average", {})]
    )
    def test_weights_are_never_saved_or_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, spec: dict[str, Any]
    ) -> None:
        """One weight is spoilt after step 5, where all losses still are numbers; step 6 would save it."""
        step = Learner.step

        def poisoned(self: Learner, batch: Batch, factor: float) -> dict[str, float]:
            losses = step(self, batch, factor)
            if self.steps_done == 6:
                assert network != "average" or self.average is not None
                module = self.average.module if network == "average" and self.average else self.networks[network]
                next(module.parameters()).data.fill_(float("nan"))
            return losses

        monkeypatch.setattr(Learner, "step", poisoned)
        run = new_run(tmp_path / "run")
        setup = setup_of(spec, ema_decay=0.5 if network == "average" else None, ema_batches=1, sample_every=2)
        name = "averaged generator" if network == "average" else network
        with pytest.raises(TrainingError, match=rf"step 6 the {name} has weights that are not finite.*step_00000003"):
            train(setup, run=run, source=Noise())
        assert [folder.name for folder in runs.run_checkpoints(run)] == ["step_00000003"]
        assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]

    @pytest.mark.parametrize("loss", ["adversarial", "discriminator_real"])
    def test_losses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
        step = Learner.step

        def poisoned(self: Learner, batch: Batch, factor: float) -> dict[str, float]:
            return step(self, batch, factor) | ({loss: float("inf")} if self.steps_done == 4 else {})

        monkeypatch.setattr(Learner, "step", poisoned)
        run = new_run(tmp_path / "run")
        with pytest.raises(TrainingError, match=rf"in step 4 the loss {loss} is inf.*step_00000003") as caught:
            train(setup_of(), run=run, source=Noise())
        assert "`lr_generator`" in str(caught.value.hint)
        assert read_columns(run / "losses.csv")["step"].tolist() == [1, 2, 3]


class TestStateOfAnotherSpec:
    """A training state that was copied from a run of another network."""

    def spoilt(self, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        checkpoint = train(setup_of(steps=1), run=new_run(tmp_path / "run"), source=Noise()).checkpoint
        path = checkpoint / runs.OPTIMIZERS_FILE
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        described = json.loads((checkpoint / runs.CHECKPOINT_JSON).read_text())
        described["optimizers_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (checkpoint / runs.CHECKPOINT_JSON).write_text(json.dumps(described))
        return checkpoint

    def other(self, network: str) -> dict[str, Any]:
        """The optimisers' state of a run with other networks."""
        spec = {"hidden_channels": 6} if network == "generator" else {}
        changes = {"discriminator": DiscriminatorSpec(2, 3, 4)} if network == "discriminator" else {}
        learner = Learner(setup_of(spec, **changes), torch.device("cpu"))
        learner.step(Noise.batch(2, 1), 1.0)
        return dict(learner.state().rest)

    @pytest.mark.parametrize("network", ["generator", "discriminator"])
    def test_moments_of_other_shapes(self, tmp_path: Path, network: str) -> None:
        checkpoint = self.spoilt(tmp_path, lambda state: state.update({network: self.other(network)[network]}))
        with pytest.raises(
            CheckpointError, match=rf"the {network}'s optimiser state: .* has the shape \(.*\)"
        ) as caught:
            train(setup_of(steps=2), run=tmp_path / "run", source=Noise(), resume=checkpoint)
        assert "another spec" in str(caught.value.hint)

    def test_another_number_of_parameters(self, tmp_path: Path) -> None:
        def swap(state: dict[str, Any]) -> None:
            state["generator"] = state["discriminator"]

        checkpoint = self.spoilt(tmp_path, swap)
        with pytest.raises(CheckpointError, match=r"generator's optimiser state is of \d+ parameters, the network has"):
            train(setup_of(steps=2), run=tmp_path / "run", source=Noise(), resume=checkpoint)

    def test_the_own_state_is_taken(self, tmp_path: Path) -> None:
        """The counter-test: written again, but not changed."""
        checkpoint = self.spoilt(tmp_path, lambda state: None)
        assert train(setup_of(steps=2), run=tmp_path / "run", source=Noise(), resume=checkpoint).step == 2
