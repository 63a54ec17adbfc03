"""A worker without a cluster: Ray's calls are replaced, so that it can be given what only a strange node has."""

from __future__ import annotations

import asyncio
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="pip install 'spade-deploy[ray]'")

import pyarrow
import ray

from spade_deploy.artifact import MANIFEST, Artifact
from spade_deploy.cluster import infer
from spade_deploy.cluster.infer import RayCrew, RayInference, _listen, _Reader
from spade_deploy.cluster.worker import Gate, Shared, Stop, Worker
from spade_deploy.errors import ArtifactError, ConfigError, RuntimeUnavailableError
from spade_deploy.files.reading import sha256_of
from spade_deploy.inference.jobs import Job, Outcome
from spade_deploy.inference.maker import planned_maker
from spade_deploy.inference.pipeline import TargetError
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.request import InferRequest
from spade_deploy.inference.work import Work
from tests.support.served import pixels_of, png, right_pixels, some_map
from tests.support.small_disk import small_disk
from tests.support.stand_in import PLAIN, stand_in_artifact


class Calls:
    """In the place of an actor's handle: every method is called at once, and its answer kept."""

    def __init__(self, answers: dict[str, Any] | None = None) -> None:
        self.answers, self.called = answers or {}, []  # type: tuple[dict[str, Any], list[tuple[str, Any]]]

    def __getattr__(self, name: str) -> Any:
        calls = self

        class Method:
            @staticmethod
            def remote(*values: Any) -> Any:
                calls.called.append((name, values))
                return calls.answers.get(name)

        return Method


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Calls())
    artifact, out = stand_in_artifact(tmp_path / "one", PLAIN), tmp_path / "out"
    out.mkdir()
    request = InferRequest(tmp_path / "labels", out, backend="cpu")
    engine = {"precision": None, "backend": "cpu", "threads": 1, "graph": "auto", "min_psnr_db": None}
    size = (PLAIN.height, PLAIN.width)
    maker = planned_maker(artifact, request, size)
    work = Work(artifact.path, maker, Folder(out), size, None, 1, images=0, engine=engine)
    return Shared(work, sha256_of(artifact.path / MANIFEST), (out,), None)


class FakeContext:
    def get_actor_id(self) -> str:
        return "actor"

    def get_node_id(self) -> str:
        return "node"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> Calls:
    monkeypatch.setattr(ray, "get_runtime_context", FakeContext)
    return Calls()


def answers(worker: Worker, jobs: list[Job]) -> list[Outcome | Stop]:
    table = worker(pyarrow.table({"job": [pickle.dumps(job) for job in jobs]}))
    return [pickle.loads(one) for one in table["outcome"].to_pylist()]


def test_it_enters_by_the_gate_once_and_does_all_jobs(shared: Shared, gate: Calls, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(some_map(PLAIN)))
    jobs = [Job(name, tmp_path / f"{name}.png", None, f"{name}.png") for name in ("one", "missing")]
    worker = Worker(shared, gate)
    first = answers(worker, jobs)
    assert {outcome.id: outcome.file for outcome in first if isinstance(outcome, Outcome)} == {
        "one": "one.png",
        "missing": None,
    }
    answers(worker, jobs[:1])
    assert [name for name, _ in gate.called] == ["enter", "begun", "begun"]
    assert gate.called[1][1] == ("actor", "node", ["one", "missing"])
    made = pixels_of((tmp_path / "out" / "one.png").read_bytes())
    assert np.array_equal(made, right_pixels(PLAIN, some_map(PLAIN)))


def test_a_full_disk_of_a_node_stops_the_run_and_keeps_what_was_made(
    shared: Shared, gate: Calls, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 60_000) as disk:
        jobs = []
        for number in range(30):
            (tmp_path / f"{number}.png").write_bytes(png(some_map(PLAIN, number)))
            jobs.append(Job(f"{number}", tmp_path / f"{number}.png", None, f"{number}.png"))
        worker = Worker(replace(shared, work=replace(shared.work, target=Folder(disk))), gate)
        *made, stop = answers(worker, jobs)
        assert isinstance(stop, Stop)
        assert stop.kind is TargetError
        assert re.match(
            r"on the node \S+: the result .*/disk/\d+\.png cannot be written: .*No space left", stop.message
        )
        assert 3 < len(made) < 30
        for outcome in made:
            assert isinstance(outcome, Outcome)
            assert sha256_of(disk / f"{outcome.file}") == outcome.sha256
        assert len(made) <= len(list(disk.glob("*.png"))) <= len(made) + 4


def only_stop(found: list[Outcome | Stop]) -> Stop:
    (stop,) = found
    assert isinstance(stop, Stop)
    return stop


def test_another_artifact_is_refused_by_its_hash(shared: Shared, gate: Calls) -> None:
    worker = Worker(replace(shared, sha256="0" * 64), gate)
    error = only_stop(answers(worker, [Job("one", Path("one.png"), None, "one.png")])).error()
    assert isinstance(error, ArtifactError)
    assert "on the node " in error.message
    assert f"the SHA-256 of its manifest is {shared.sha256[:12]}, not 000000000000" in error.message
    assert gate.called == []


def test_folders_that_a_node_does_not_see_are_named(shared: Shared, gate: Calls, tmp_path: Path) -> None:
    worker = Worker(replace(shared, seen=(tmp_path / "elsewhere",)), gate)
    error = only_stop(answers(worker, [])).error()
    assert isinstance(error, ConfigError)
    assert error.message.endswith(f"{tmp_path / 'elsewhere'} does not exist")


def test_a_node_without_the_artifact_gets_it_from_the_object_store(shared: Shared, gate: Calls, tmp_path: Path) -> None:
    here = tmp_path / "one"
    files = {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()}
    elsewhere = replace(shared.work, artifact=tmp_path / "not" / "here")
    (tmp_path / "one.png").write_bytes(png(some_map(PLAIN)))
    worker = Worker(replace(shared, work=elsewhere, files=files), gate)
    (outcome,) = answers(worker, [Job("one", tmp_path / "one.png", None, "one.png")])
    assert isinstance(outcome, Outcome)
    assert outcome.file == "one.png"
    without = Worker(replace(shared, work=elsewhere), gate)
    assert "not/here" in only_stop(answers(without, [])).message
    cut_off = {**files, MANIFEST: files[MANIFEST][:-20] + b" " * 20}
    assert only_stop(answers(Worker(replace(shared, work=elsewhere, files=cut_off), gate), [])).kind is ArtifactError
    Artifact.open(here)


class Desk:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.said.append((name, *values))


class TestListening:
    NODES = ({"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True},)

    def listen(self, monkeypatch: pytest.MonkeyPatch, rows: list[Outcome | Stop], jobs: dict[str, Any]) -> list[Any]:
        monkeypatch.setattr(ray, "get", lambda value: value)
        monkeypatch.setattr(ray, "nodes", lambda: self.NODES)

        class Data:
            @staticmethod
            def iter_batches(**_: Any) -> Any:
                yield pyarrow.table({"outcome": [pickle.dumps(one) for one in rows]})

        desk, gate = Desk(), Calls({"waiting": []})
        _listen(_Reader(Data()), gate, desk, jobs)  # type: ignore[arg-type]
        return desk.said

    def test_outcomes_reach_the_desk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = Outcome("one", Path("one.png"), "one.png")
        left = {"one": None, "two": None}
        assert self.listen(monkeypatch, [one], left) == [("done", one)]
        assert left == {"two": None}

    def test_an_error_of_a_worker_ends_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArtifactError, match="another"):
            self.listen(monkeypatch, [Stop(ArtifactError, "another", None)], {"one": None})


class TestLosses:
    JOBS = tuple(Job(name, Path(f"{name}.png"), None, f"{name}.png") for name in ("one", "two", "three"))

    def run(self, monkeypatch: pytest.MonkeyPatch, *streams: Any) -> list[Any]:
        """Do the jobs where each stream of Ray Data is a function that gets those that are left."""
        coming, desk = iter(streams), Desk()
        monkeypatch.setattr(infer, "NODES_S", 0.0)
        monkeypatch.setattr(RayCrew, "_stream", lambda self, shared, left, desk, **_: next(coming)(left))
        RayCrew(RayInference())._until_all_are_done(None, self.JOBS, desk, gpus=0.0, most=1)  # type: ignore[arg-type]
        return desk.said

    @staticmethod
    def dying(left: dict[str, Job]) -> None:
        raise ray.exceptions.ActorUnavailableError("no connection", None)

    @staticmethod
    def dying_after_one(left: dict[str, Job]) -> None:
        del left[min(left)]
        TestLosses.dying(left)

    def test_what_is_left_is_given_to_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.run(monkeypatch, self.dying, self.dying_after_one, dict.clear)
        assert said == [("lost", "a worker or its node is gone", 3), ("lost", "a worker or its node is gone", 2)]

    def test_it_ends_where_nothing_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeUnavailableError, match="gave up 5 times with 2 label maps left, such as three: "):
            self.run(monkeypatch, self.dying_after_one, *[self.dying] * 4)

    def test_a_job_of_which_nothing_is_heard_is_never_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeUnavailableError, match="nothing was heard of 3 label maps, such as one"):
            self.run(monkeypatch, lambda left: None)


def test_the_gate_opens_for_each_when_it_is_told(shared: Shared) -> None:
    async def enter() -> list[Any]:
        gate = Gate()
        inside: list[str] = []

        async def come(name: str) -> None:
            await gate.enter(shared.work.maker, name)
            inside.append(name)

        tasks = [asyncio.create_task(come(name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        waiting = await gate.waiting()
        assert ([name for _, _, name in waiting], await gate.waiting(), inside) == (["first", "second"], [], [])
        await gate.let_in(waiting[1][0])
        await tasks[1]
        assert inside == ["second"]
        await gate.let_in(waiting[0][0])
        await tasks[0]
        await gate.begun("w1", "a", ["1", "2"])
        await gate.begun("w2", "b", ["3"])
        await gate.begun("w1", "a", ["4"])
        return await gate.begun_on("a")

    assert asyncio.run(enter()) == ["4"]
