"""Several processes make the images of one run: the same images, one of each, whatever happens to a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import Artifact
from spade_deploy.errors import ArtifactError, SpadeError
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.places.store import LOG
from spade_deploy.inference.work import Desk, Work
from spade_deploy.inference.workers import LocalWorkers
from spade_deploy.inference.workers import crew as crew_module
from spade_deploy.inference.workers.places import Place, places_for
from spade_deploy.inference.workers.worker import Worker
from spade_deploy.progress import Silent
from tests.support.stand_in import PLAIN, stand_in_artifact


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("plain"), PLAIN)


def write_labels(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        ids = np.random.default_rng(number).integers(0, 5, (64, 32)).astype(np.uint8)
        Image.fromarray(ids).save(folder / f"{number:03d}.png")


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


PLACES = (Place((), 1), Place((), 1))


def test_two_workers_make_the_images_of_one_process_and_go_on_where_it_stopped(plain: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_labels(labels, 24)
    (labels / "007.png").write_bytes(b"not an image")
    one = infer(plain, InferRequest(labels, tmp_path / "one"))
    (tmp_path / "two").mkdir()
    for path in (tmp_path / "one").iterdir():
        if path.stem in ("000", "011", "") or path.name in (".infer.json", LOG):
            (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
    two = infer(plain, InferRequest(labels, tmp_path / "two"), crew=LocalWorkers(PLACES))
    assert images(tmp_path / "two") == images(tmp_path / "one")
    assert (one.written, two.written, two.skipped, two.lost) == (23, 21, 2, ())
    assert [failure.path.name for failure in two.failures] == ["007.png"]
    assert [failure.message for failure in two.failures] == [failure.message for failure in one.failures]
    assert infer(plain, InferRequest(labels, tmp_path / "two")).skipped == 23


class _Killing(Silent):
    """Kills a worker after some images."""

    def __init__(self, workers: list[Worker], after: int) -> None:
        self._workers, self._after = workers, after
        self.notes: list[str] = []

    def count(self, what: str, done: int, *_: Any) -> None:
        if done == self._after:
            os.kill(self._workers[0]._process.pid, signal.SIGKILL)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers, as they are started."""
    found: list[Worker] = []

    class Seen(Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(crew_module, "Worker", Seen)
    return found


def test_the_jobs_of_a_killed_worker_go_to_another(plain: Artifact, tmp_path: Path, workers: list[Worker]) -> None:
    write_labels(tmp_path / "labels", 60)
    progress = _Killing(workers, 5)
    done = infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), progress, crew=LocalWorkers(PLACES))
    assert (done.written, done.failures) == (60, ())
    assert sorted(line["id"] for line in lines(tmp_path / "out")) == [f"{number:03d}" for number in range(60)]
    infer(plain, InferRequest(tmp_path / "labels", tmp_path / "right"))
    assert images(tmp_path / "out") == images(tmp_path / "right")
    (lost,) = done.lost
    assert "worker 0 (process" in lost
    assert "was killed by signal 9" in lost
    assert len(workers) == 3, "another one took its place"
    assert all(worker._process.returncode is not None for worker in workers)


class _Desk(Desk):
    """Takes what a crew tells."""

    def __init__(self) -> None:
        self.progress = Silent()
        self.outcomes: list[Outcome] = []
        self.losses: list[tuple[str, int]] = []

    def admit(self, *_: Any) -> None:
        pass

    def done(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def lost(self, what: str, jobs: int) -> None:
        self.losses.append((what, jobs))


class _Poison:
    """A label map that ends the process which reads it."""

    def __str__(self) -> str:
        return "poison"

    def load(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_map_that_ends_its_workers_is_a_failure_and_the_rest_is_done(
    plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path / "labels", 20)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the workers unpickle a class of this file
    caught: list[tuple[Work, Any]] = []

    class Catch(LocalWorkers):
        def make(self, work: Work, jobs: Any, desk: Desk) -> None:
            caught.append((work, jobs))

    infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), crew=Catch(PLACES))
    ((work, jobs),) = caught
    desk = _Desk()
    jobs = [Job("poison", _Poison(), None, "poison.png") if job.id == "003" else job for job in jobs]
    LocalWorkers(PLACES).make(work, jobs, desk)
    assert sorted(outcome.id for outcome in desk.outcomes) == sorted(job.id for job in jobs)
    (failed,) = [outcome for outcome in desk.outcomes if outcome.error]
    assert failed.id == "poison"
    assert "poison: it ended 2 workers" in (failed.error or "")
    assert len(desk.losses) == 2
    assert desk.losses[0][1] >= 1
    assert desk.losses[1][1] == 0, "it was alone"
    assert len(images(tmp_path / "out")) == 19


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_stops_all_workers_and_the_next_run_goes_on(
    plain: Artifact, tmp_path: Path, workers: list[Worker]
) -> None:
    write_labels(tmp_path / "labels", 60)

    class Interrupting(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 4:
                signal.raise_signal(signal.SIGINT)

    request = InferRequest(tmp_path / "labels", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        infer(plain, request, Interrupting(), LocalWorkers(PLACES))
    assert all(worker._process.returncode == 0 for worker in workers)
    made = images(tmp_path / "out")
    assert 4 <= len(made) < 60
    again = infer(plain, request)
    assert (again.skipped, again.written) == (len(made), 60 - len(made))
    assert {line["id"] for line in lines(tmp_path / "out")} == {f"{number:03d}" for number in range(60)}


@pytest.mark.usefixtures("usual_signals")
def test_workers_leave_sigterm_to_the_process_that_plans(
    plain: Artifact, tmp_path: Path, workers: list[Worker]
) -> None:
    """A scheduler sends it to all processes of a job; the files in hand are still finished."""
    write_labels(tmp_path / "labels", 60)

    class Ending(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 4:
                told.extend(worker for worker in workers if worker.is_ready)
                for worker in told:
                    os.kill(worker._process.pid, signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)

    told: list[Worker] = []
    with pytest.raises(KeyboardInterrupt):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), Ending(), LocalWorkers(PLACES))
    assert told
    assert [worker._process.returncode for worker in told] == [0] * len(told)


def test_workers_end_when_the_process_that_plans_is_killed(plain: Artifact, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", 400)
    program = (
        "import sys; from pathlib import Path; from spade_deploy import Artifact, InferRequest, infer\n"
        "from spade_deploy.inference.workers import LocalWorkers, crew\n"
        "from spade_deploy.inference.workers.places import Place\n"
        "from spade_deploy.progress import Silent\n"
        "class Tell(Silent):\n"
        "    def count(self, what, done, *_):\n"
        "        if done == 3: print(*[w._process.pid for w in shift._workers], flush=True); input()\n"
        "start = crew._Shift.__init__\n"
        "def keep(self, *arguments):\n"
        "    global shift; shift = self; start(self, *arguments)\n"
        "crew._Shift.__init__ = keep\n"
        f"infer(Artifact.open(Path({str(plain.path)!r})), InferRequest(Path({str(tmp_path / 'labels')!r}),"
        f" Path({str(tmp_path / 'out')!r})), Tell(), LocalWorkers([Place((), 1)] * 2))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert pids
    deadline = time.monotonic() + 20
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in pids)
    for line in (tmp_path / "out" / LOG).read_text().splitlines(keepends=True):
        assert line.endswith("\n")
        json.loads(line)
    assert infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out")).written > 0


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_full_disk_stops_all_workers_with_the_count(plain: Artifact, tmp_path: Path) -> None:
    """The folder's place is taken away under the workers; a full disk raises the same kind of error there."""
    write_labels(tmp_path / "labels", 40)
    out = tmp_path / "out"

    class Taking(Silent):
        def count(self, what: str, done: int, *_: Any) -> None:
            if done == 3:
                out.rename(tmp_path / "aside")
                out.write_text("a file")

    with pytest.raises(SpadeError, match=r"the result .* cannot be written: .*; \d+ of 40 images were"):
        infer(plain, InferRequest(tmp_path / "labels", out), Taking(), LocalWorkers(PLACES))


def test_a_worker_with_another_artifact_is_refused(plain: Artifact, tmp_path: Path) -> None:
    from dataclasses import replace

    other = stand_in_artifact(tmp_path / "other", replace(PLAIN, labels=replace(PLAIN.labels, num_labels=6)))
    write_labels(tmp_path / "labels", 2)

    class Swapped(LocalWorkers):
        def make(self, work: Work, jobs: Any, desk: Desk) -> None:
            super().make(replace(work, artifact=other.path), jobs, desk)

    with pytest.raises(
        ArtifactError, match=r"is another artifact, [0-9a-f]{12}, than the one that this run began with"
    ):
        infer(plain, InferRequest(tmp_path / "labels", tmp_path / "out"), crew=Swapped(PLACES))
    assert not images(tmp_path / "out")


def test_places_share_the_cores(plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(100, 107)))
    places = places_for(plain, InferRequest(tmp_path, tmp_path / "out", backend="cpu"), 3)
    assert [place.cores for place in places] == [(100, 101), (102, 103, 104), (105, 106)]
    assert [place.threads(None) for place in places] == [2, 3, 2]
    assert places[0].threads(1) == 1
    assert len(places_for(plain, InferRequest(tmp_path, tmp_path / "out", backend="cpu"), 9)) == 7


def test_a_gpu_each(plain: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spade_deploy.engines.cuda.driver import Gpu
    from spade_deploy.inference.workers import places

    cards = [Gpu(number, "card", (9, 0), 1, "13.0") for number in range(3)]
    monkeypatch.setattr(places, "find_gpus", lambda: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    request = InferRequest(tmp_path, tmp_path / "out", backend="tensorrt")
    names = [place.environment["CUDA_VISIBLE_DEVICES"] for place in places_for(plain, request, 8)]
    assert names == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-a,7")
    names = [place.environment["CUDA_VISIBLE_DEVICES"] for place in places_for(plain, request, 2)]
    assert names == ["5", "GPU-a"]
