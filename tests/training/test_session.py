"""A run from its start to its resumption: who holds its folder, which samples it had, where its files lie."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy import runs
from spade_deploy.errors import CheckpointError, FolderBusyError, LabelMapError, NotFoundError
from spade_deploy.files.locks import locked
from spade_deploy.machine.cores import usable_cores
from spade_deploy.progress import SILENT
from spade_deploy.training import session
from spade_deploy.training.records import measurements, recorder
from spade_deploy.training.request import DataRequest, TrainRequest
from spade_deploy.training.run_lock import RunLock
from spade_deploy.training.session import NEWEST, Session, start
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (recorder, "plot_losses"),
        (measurements, "plot_metrics"),
        (recorder, "save_timeline"),
        (recorder, "save_gif"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)


def write_samples(root: Path, *names: str) -> None:
    numbers = np.random.default_rng(len(names))
    for folder in ("labels", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(numbers.integers(0, 2, (32, 32), np.uint8)).save(root / "labels" / f"{name}.png")
        Image.fromarray(numbers.integers(0, 255, (32, 32, 3), np.uint8)).save(root / "images" / f"{name}.png")


def request(root: Path = Path(), steps: int = 1, workers: int = 0) -> TrainRequest:
    data = DataRequest(labels=root / "labels", images=root / "images", num_labels=3, size=(32, 32))
    train = {"batch_size": 2, "workers": workers, "device": "cpu", "steps": steps, "save_every": 1, "sample_every": 1}
    return TrainRequest(
        data=data,
        generator={"base_channels": 2, "hidden_channels": 4},
        train=train,
        discriminator={"base_channels": 2, "layers": 2},
    )


def trained(root: Path) -> Path:
    """A run of one step on the samples a to e in `root`."""
    write_samples(root, *"abcde")
    begun = start(request(root), runs_dir=root / "runs", name="job")
    begun.train(SILENT)
    return begun.run


def resumed(root: Path, steps: int = 2) -> Session:
    return start(request(root, steps), runs_dir=root / "runs", name="job", resume=NEWEST)


class TestLock:
    def test_a_second_process_is_told_who_trains(self, tmp_path: Path) -> None:
        """One that is about to train holds the run from when it is known, so the other sweeps and prunes nothing."""
        run = trained(tmp_path)
        leftover = run / "checkpoints" / ".step_00000002.abc123.tmp"
        leftover.mkdir()
        for asked in ({"name": "job", "resume": NEWEST}, {"resume": NEWEST}, {"resume": str(run)}):
            code = "import sys; from tests.training.test_session import *; start(request(Path(sys.argv[1])), "
            code += f"runs_dir=Path(sys.argv[1]) / 'runs', **{asked!r})"
            with locked(run, "training this run"):
                done = subprocess.run(
                    [sys.executable, "-c", code, str(tmp_path)],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            assert "FolderBusyError" in done.stderr
            assert f"process {os.getpid()} on " in done.stderr
            assert "training this run, since" in done.stderr
        assert leftover.is_dir()

    def test_the_lock_is_held_from_start_to_the_end_of_training(self, tmp_path: Path) -> None:
        trained(tmp_path)
        second = resumed(tmp_path)
        with pytest.raises(FolderBusyError, match=f"process {os.getpid()}"):
            resumed(tmp_path)
        second.train(SILENT)
        resumed(tmp_path).close()
        resumed(tmp_path).close()

    def test_who_waited_goes_on_from_what_the_other_wrote_last(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The checkpoint is chosen under the lock: before it another process may write a newer one."""
        run = trained(tmp_path)
        hold = RunLock.hold

        def late(self: RunLock, folder: Path) -> None:
            monkeypatch.setattr(RunLock, "hold", hold)
            resumed(tmp_path).train(SILENT)
            hold(self, folder)

        monkeypatch.setattr(RunLock, "hold", late)
        again = start(request(tmp_path, 3), runs_dir=tmp_path / "runs", resume=str(run))
        assert again.resume == runs.checkpoint_folder(run, 2)


class TestSamples:
    """A step of a resumed run sees what it would have seen: other samples are refused, changed ones said."""

    @pytest.mark.parametrize("has_record", [True, False], ids=["", "without data.json"])
    def test_added_removed_and_renamed_ones_are_refused_by_name(self, tmp_path: Path, has_record: bool) -> None:
        run = trained(tmp_path)
        if not has_record:
            (run / "data.json").unlink()
        write_samples(tmp_path, "f")  # still two steps an epoch... of five and of four samples, too
        with pytest.raises(CheckpointError, match=r"training samples were 5 and are 6 now") as caught:
            resumed(tmp_path).train(SILENT)
        assert ("1 was added (f)" in caught.value.message) is has_record
        *_, option, begun_with = shlex.split(str(caught.value.hint))
        assert (option, Path(begun_with).parent.parent) == ("--init", run)
        assert (Path(begun_with) / "checkpoint.json").is_file()
        for name in ("f", "e"):
            for folder in ("labels", "images"):
                (tmp_path / folder / f"{name}.png").unlink()
        with pytest.raises(CheckpointError, match=r"were 5 and are 4 now") as caught:
            resumed(tmp_path).train(SILENT)
        assert ("1 was removed (e)" in caught.value.message) is has_record
        for folder in ("labels", "images"):
            (tmp_path / folder / "a.png").rename(tmp_path / folder / "z.png")
        write_samples(tmp_path, "e")
        with pytest.raises(CheckpointError, match=r"are 5 as before, but other ones") as caught:
            resumed(tmp_path).train(SILENT)
        assert ("1 was added (z) and 1 was removed (a)" in caught.value.message) is has_record
        assert [folder.name for folder in runs.run_checkpoints(run)] == ["step_00000001"]

    def test_changed_ones_are_said_once(self, tmp_path: Path) -> None:
        trained(tmp_path)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / "b.png")
        os.utime(tmp_path / "labels" / "d.png", (1, 1))
        notes = resumed(tmp_path).train(SILENT).notes
        assert "2 were written again (b, d) since this run was last trained: it continues with the new files" in notes
        assert not any("written again" in note for note in resumed(tmp_path, 3).train(SILENT).notes)

    def test_a_copy_of_the_data_is_the_same_data(self, tmp_path: Path) -> None:
        """Copying gives files other times: sizes count."""
        run = trained(tmp_path / "a")
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
        moved = request(tmp_path / "b", 2)
        result = start(moved, runs_dir=tmp_path / "a" / "runs", resume=str(run)).train(SILENT)
        assert not any("written again" in note for note in result.notes)

    def test_figures_of_other_held_out_samples_are_not_compared(self, tmp_path: Path) -> None:
        root = tmp_path / "data"
        write_samples(root / "train", *"abcd")
        write_samples(root / "val", "v")
        asked = request(steps=1)
        asked = replace(
            asked,
            data=DataRequest(root=root, num_labels=3, size=(32, 32)),
            train={**asked.train, "eval_every": 1, "best_by": "l1"},
        )
        start(asked, runs_dir=tmp_path / "runs", name="job").train(SILENT)
        more = replace(asked, train={**asked.train, "steps": 2})
        write_samples(root / "val", "v", "w")
        notes = start(more, runs_dir=tmp_path / "runs", name="job", resume=NEWEST).train(SILENT).notes
        assert any("was measured in another way" in note for note in notes)


class TestPlaces:
    def test_relative_paths_serve_from_another_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = tmp_path / "home"
        write_samples(home, *"abcd")
        monkeypatch.chdir(home)
        run = start(request(), runs_dir=Path("runs"), name="job")
        run.train(SILENT)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        again = start(TrainRequest(train={"steps": 2}), runs_dir=Path("../home/runs"), resume=NEWEST)
        assert again.setup.data.labels_dir == home / "labels"
        assert again.train(SILENT).step == 2

    def test_a_run_that_was_moved_with_its_data_is_found_again_and_said(self, tmp_path: Path) -> None:
        trained(tmp_path / "before")
        (tmp_path / "before").rename(tmp_path / "after")
        again = start(TrainRequest(train={"steps": 2}), runs_dir=tmp_path / "after" / "runs", resume=NEWEST)
        labels = tmp_path / "after" / "labels"
        assert again.notes[0] == (
            f"{tmp_path / 'before' / 'labels'} no longer exists; it is taken from {labels} (`labels`)"
        )
        assert again.train(SILENT).step == 2

    def test_data_that_is_nowhere_is_asked_for(self, tmp_path: Path) -> None:
        run = trained(tmp_path)
        (tmp_path / "labels").rename(tmp_path / "maps")
        with pytest.raises(
            NotFoundError, match=f"`labels` {tmp_path / 'labels'}, which it trains with, does not"
        ) as caught:
            start(TrainRequest(train={"steps": 2}), runs_dir=tmp_path / "runs", resume=str(run))
        assert f"--resume {run} `labels` PATH" in str(caught.value.hint)
        moved = TrainRequest(data=DataRequest(labels=tmp_path / "maps"), train={"steps": 2})
        assert start(moved, runs_dir=tmp_path / "runs", resume=str(run)).train(SILENT).step == 2


class TestSmallPrint:
    def test_a_current_folder_that_cannot_be_written_stops_no_run_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(folder: Path) -> int:
            raise LabelMapError(f"{folder}/0000.png: cannot be written (Read-only file system)")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(session, "write_example_labels", refused)
        begun = start(TrainRequest(train={"device": "cpu"}), runs_dir=tmp_path / "runs")
        begun.close()
        assert begun.example_labels is None
        assert begun.notes[-1].startswith(f"no label maps to try were written into {tmp_path} (")

    def test_more_workers_than_cores_are_told(self, tmp_path: Path) -> None:
        write_samples(tmp_path, *"abcd")
        cores = usable_cores()
        begun = start(request(tmp_path, workers=cores + 7), runs_dir=tmp_path / "runs")
        begun.close()
        assert f"`workers` {cores + 7}: only {cores} cores may be used here, so {cores} processes load" in begun.notes
        enough = start(request(tmp_path, workers=1), runs_dir=tmp_path / "runs")
        enough.close()
        assert not any("--workers" in note for note in enough.notes)
