"""Sample grids become a picture with a column a step, and an animation: the right images in the right places."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.errors import CheckpointError, ConfigError, LabelMapError, MissingDependencyError, NotFoundError
from spade_deploy.labels.files import save_pixels
from spade_deploy.spec import LabelSpec
from spade_deploy.training.records import animation
from spade_deploy.training.records.animation import animate, save_gif
from spade_deploy.training.records.sample_grid import sample_grid, sample_grids, sample_path
from spade_deploy.training.records.timeline import save_timeline

LABELS = LabelSpec(2, palette=((200, 40, 30), (20, 60, 200)))
PHOTO = 90


def make_run(folder: Path, steps: list[int], size: tuple[int, int] = (32, 48), rows: int = 2) -> Path:
    """A run whose generated images are as bright as their step, on label maps of one class a row."""
    height, width = size
    label = np.stack([np.full(size, row % 2, np.uint8) for row in range(rows)])
    photo = np.full((rows, height, width, 3), PHOTO, np.uint8)
    for step in steps:
        generated = np.full_like(photo, step)
        save_pixels(sample_path(folder, step), sample_grid(LABELS, label, generated, photo))
    (folder / "config.json").write_text(json.dumps({"generator": {"height": height, "width": width}}))
    return folder


def test_grids_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, [30, 4, 200])
    (run / "samples" / "step_x.png").write_bytes(b"")
    (run / "samples" / ".step_00000009.png.ab.tmp.png").write_bytes(b"")
    assert [grid.step for grid in sample_grids(run)] == [4, 30, 200]
    assert sample_grids(tmp_path / "absent") == []


class TestTimeline:
    def test_label_map_then_steps_then_photo(self, tmp_path: Path) -> None:
        save_timeline(make_run(tmp_path, [10, 100, 250]))
        with Image.open(tmp_path / "timeline.png") as image:
            sheet = np.asarray(image).astype(int)
        width, height, top = 144, 96, 22  # three times as large: 160 pixels hold no four
        assert sheet.shape == (top + 2 * (height + 4), 5 * (width + 4) - 4, 3)
        for row, colour in enumerate(LABELS.palette):
            middle = top + row * (height + 4) + height // 2
            found = [sheet[middle, column * (width + 4) + width // 2].tolist() for column in range(5)]
            assert found == [list(colour), [10] * 3, [100] * 3, [250] * 3, [PHOTO] * 3]

    def test_of_many_steps_eight_are_shown_the_first_and_the_last_among_them(self, tmp_path: Path) -> None:
        save_timeline(make_run(tmp_path, list(range(10, 210, 10)), size=(192, 160), rows=1))
        with Image.open(tmp_path / "timeline.png") as image:
            sheet = np.asarray(image).astype(int)
        assert sheet.shape == (22 + 196, 10 * 164 - 4, 3)
        assert [sheet[100, column * 164 + 80, 0] for column in (1, 8)] == [10, 200]

    def test_one_grid_is_no_timeline(self, tmp_path: Path) -> None:
        assert save_timeline(make_run(tmp_path, [10])) is None
        assert not (tmp_path / "timeline.png").exists()

    def test_what_is_no_grid_of_this_run_is_named(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, [10, 20])
        (run / "config.json").write_text(json.dumps({"generator": {"height": 30, "width": 48}}))
        with pytest.raises(
            CheckpointError, match=r"step_00000020\.png: 152 x 68 pixels are no grid of images of 48 x 30"
        ):
            save_timeline(run)
        (run / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"config\.json: does not tell the size"):
            save_timeline(run)


def frames_of(path: Path) -> list[np.ndarray]:
    found = []
    with Image.open(path) as image:
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            found.append(np.asarray(image.convert("RGB")).astype(int))
    return found


class TestGif:
    def test_a_frame_a_grid_with_its_step(self, tmp_path: Path) -> None:
        made = animate(make_run(tmp_path, [10, 100, 250]), tmp_path / "out" / "a.gif")
        assert (made.frames, made.grids, made.fps) == (3, 3, 2.0)
        frames = frames_of(made.path)
        assert [frame.shape for frame in frames] == [(2 * 22 + 4 + 2 * 68, 2 * 152, 3)] * 3
        # Means over an image: what one of 256 colours cannot be is made of two. Measured: 0.5 off at most.
        for frame, step in zip(frames, (10, 100, 250), strict=True):
            assert np.abs(frame[22:86, 104:200].mean((0, 1)) - step).max() <= 2
            assert np.abs(frame[22:86, :96].mean((0, 1)) - LABELS.palette[0]).max() <= 2
            assert np.abs(frame[22:86, 208:].mean((0, 1)) - PHOTO).max() <= 2
        captions = [frame[22 + 136 : 2 * 22 + 136] for frame in frames]
        assert all(caption.min() < 100 for caption in captions), "the step is written below"
        assert (captions[0] != captions[1]).any()
        bars = [(np.abs(frame[-2] - (31, 119, 180)).sum(1) < 60).sum() for frame in frames]
        assert bars == [round(step / 250 * 304) for step in (10, 100, 250)]

    def test_the_last_frame_stays(self, tmp_path: Path) -> None:
        made = animate(make_run(tmp_path, [10, 20]), tmp_path / "a.gif", fps=10)
        with Image.open(made.path) as image:
            durations = []
            for index in range(2):
                image.seek(index)
                durations.append(image.info["duration"])
        assert durations == [100, 2100]

    def test_it_is_made_smaller_until_it_fits(self, tmp_path: Path) -> None:
        run, numbers = make_run(tmp_path, [1, 2]), np.random.default_rng(0)
        for grid in sample_grids(run):
            noise = numbers.integers(0, 255, (404, 404, 3), np.uint8)
            Image.fromarray(noise).save(grid.path)
        whole, small = tmp_path / "whole.gif", tmp_path / "small.gif"
        save_gif(run, whole)
        save_gif(run, small, max_bytes=80_000)
        assert whole.stat().st_size > 200_000
        assert small.stat().st_size <= 80_000
        assert frames_of(small)[0].shape[1] < 404

    def test_many_grids_are_thinned_out(self, tmp_path: Path) -> None:
        made = save_gif(make_run(tmp_path, list(range(1, 101)), size=(8, 8), rows=1))
        assert made is not None
        assert (made.frames, made.grids) == (60, 100)
        assert made.fps == pytest.approx(7.5)

    def test_grids_of_other_samples_are_left_out(self, tmp_path: Path) -> None:
        """A resumed run may have been given other held-out samples."""
        make_run(tmp_path, [10, 20], rows=3)
        made = save_gif(make_run(tmp_path, [30, 40], rows=2))
        assert made is not None
        assert (made.frames, made.grids) == (2, 2)

    def test_a_damaged_grid_is_named(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, [10, 20])
        sample_grids(run)[0].path.write_bytes(b"no image")
        with pytest.raises(LabelMapError, match=r"step_00000010\.png"):
            save_gif(run)


class TestRefusals:
    def test_too_few_grids(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="has one sample grid ") as caught:
            animate(make_run(tmp_path / "one", [10]), tmp_path / "a.gif")
        assert "--sample-every" in str(caught.value.hint)
        (tmp_path / "none").mkdir()
        with pytest.raises(NotFoundError, match="has no sample grids "):
            animate(tmp_path / "none", tmp_path / "a.gif")
        assert save_gif(tmp_path) is None

    def test_grids_of_which_no_two_are_alike(self, tmp_path: Path) -> None:
        make_run(tmp_path, [10], rows=3)
        with pytest.raises(NotFoundError, match="its sample grids have other sizes than the last one"):
            animate(make_run(tmp_path, [20], rows=2), tmp_path / "a.gif")
        assert not (tmp_path / "a.gif").exists()

    def test_other_files_and_speeds(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, [10, 20])
        with pytest.raises(ConfigError, match=r"`out`: .*a\.avi is not \.gif or \.mp4"):
            animate(run, tmp_path / "a.avi")
        for fps in (0.0, -1.0, 1000.0, float("nan")):
            with pytest.raises(ConfigError, match="`fps`"):
                animate(run, tmp_path / "a.gif", fps)
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=r"`out`: .* cannot be written"):
            animate(run, tmp_path / "file" / "a.gif")

    def test_mp4_without_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(animation.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match="imageio-ffmpeg is not installed") as caught:
            animate(make_run(tmp_path, [10, 20]), tmp_path / "a.mp4")
        assert "spade-deploy[video]" in str(caught.value.hint)
        assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the package's reader leaves its pipes to the collector
def test_an_mp4_has_the_frames(tmp_path: Path) -> None:
    import imageio_ffmpeg

    # 3 * 33 + 8 = 107 pixels become 321, which is odd: one is added.
    made = animate(make_run(tmp_path, [10, 100, 250], size=(32, 33)), tmp_path / "a.mp4", fps=2)
    reader = imageio_ffmpeg.read_frames(str(made.path))
    facts = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(*facts["size"][::-1], 3).astype(int) for frame in reader]
    assert facts["size"][0] == 322
    assert len(frames) == 3 + 4, "the last one stays for two seconds"
    # Measured: 3 at most.
    for frame, step in zip(frames, (10, 100, 250), strict=False):
        assert np.abs(frame[70, 160] - step).max() <= 8
