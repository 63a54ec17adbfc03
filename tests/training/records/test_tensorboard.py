"""Event files: what TensorBoard reads back is what was recorded. Without the package: a stand-in for its writer."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from spade_deploy.errors import MissingDependencyError
from spade_deploy.runs.csv_log import read_columns
from spade_deploy.training.loop import train
from spade_deploy.training.records import recorder, tensorboard
from spade_deploy.training.records.tensorboard import Board, require_tensorboard
from tests.support.training_runs import Noise, new_run, setup_of


class Writer:
    """Keeps what the package's writer would write."""

    made: list["Writer"] = []

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int, str]] = []
        self.flushed = self.closed = 0
        self.file_writer, self.summaries = self, list[Any]()
        self.made.append(self)

    def add_summary(self, summary: Any) -> None:
        self.summaries.append(summary)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        self.images.append((tag, pixels.shape, step, dataformats))

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    summary: Any = ModuleType("torch.utils.tensorboard.summary")
    summary.hparams = lambda settings, curves: ((settings, list(curves)), "start", "end")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    module.summary = summary
    monkeypatch.setattr(recorder, "require_tensorboard", lambda: None)
    monkeypatch.setattr(recorder, "plot_losses", lambda *_: None)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_everything_that_is_recorded_is_on_the_board(tmp_path: Path, writers: list[Writer]) -> None:
    run = new_run(tmp_path / "run")
    result = train(setup_of(steps=4, log_every=2, sample_every=2, tensorboard=True), run=run, source=Noise())
    (writer,) = writers
    assert result.notes == ()
    assert (writer.log_dir, writer.purge_step) == (str(run / "tensorboard"), None)
    assert {tag for tag, _, _ in writer.scalars} == {
        *(f"loss/{name}" for name in result.losses),
        *("rate/lr_generator", "rate/lr_discriminator", "speed/samples_per_second"),
    }
    logged = read_columns(run / "losses.csv")
    assert [(step, value) for tag, value, step in writer.scalars if tag == "loss/l1"] == list(
        zip(logged["step"], logged["l1"], strict=True)
    )
    assert writer.images == [("samples", (4 * 32 + 12, 3 * 32 + 8, 3), step, "HWC") for step in (2, 4)]
    assert writer.flushed > 4
    assert writer.closed == 1
    (settings, curves), *rest = writer.summaries
    assert rest == ["start", "end"]
    assert (settings["train.steps"], settings["train.tensorboard"]) == (4, True)
    assert settings["data.crop_size"] == "32 x 32"
    assert curves == [f"loss/{name}" for name in result.losses]


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path, writers: list[Writer]) -> None:
    run = new_run(tmp_path / "run")
    first = train(setup_of(steps=2, tensorboard=True), run=run, source=Noise())
    train(setup_of(steps=3, tensorboard=True), run=run, source=Noise(), resume=first.checkpoint)
    assert [writer.purge_step for writer in writers] == [None, 3]
    assert {step for _, _, step in writers[1].scalars} == {3}


def test_nothing_is_written_unasked(tmp_path: Path, writers: list[Writer]) -> None:
    train(setup_of(steps=1), run=new_run(tmp_path / "run"), source=Noise())
    assert writers == []


def test_the_missing_package_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="tensorboard is not installed") as caught:
        require_tensorboard()
    assert "pip install 'spade-deploy[tensorboard]'" in str(caught.value.hint)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package itself
def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    first = Board(tmp_path, 0)
    for step in (1, 2, 3):
        first.scalars(step, "loss", {"l1": 1 / step})
    first.image(3, "samples", pixels)
    first.close()
    second = Board(tmp_path, 2)
    second.scalars(3, "loss", {"l1": 9.0})
    second.close()
    events = EventAccumulator(str(tmp_path / tensorboard.FOLDER))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/l1")] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert events.Images("samples") == [], "the image of step 3 is hidden by the second board"


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package itself
def test_an_image_is_read_back(tmp_path: Path) -> None:
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    board = Board(tmp_path, 0)
    board.image(3, "samples", pixels)
    board.close()
    events = EventAccumulator(str(tmp_path / tensorboard.FOLDER))
    events.Reload()
    (event,) = events.Images("samples")
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
