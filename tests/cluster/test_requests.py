"""What is decided before a cluster is asked for anything."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.cluster import infer, nodes, train
from spade_deploy.cluster.infer import RayCrew, RayInference
from spade_deploy.cluster.nodes import Found, Node
from spade_deploy.errors import ConfigError, RuntimeUnavailableError
from spade_deploy.inference.jobs import Job
from spade_deploy.inference.maker import Maker
from spade_deploy.inference.places.target import Folder
from spade_deploy.inference.work import Work
from spade_deploy.version import __version__
from tests.support.served import png, some_map
from tests.support.stand_in import PLAIN, stand_in_artifact

BIG = Node("a", "10.0.0.1", 64.0, 8.0)
SMALL = Node("b", "10.0.0.2", 16.0, 0.0)


class TestRoom:
    @pytest.mark.parametrize(
        ("asked", "room"),
        [
            (RayInference(), (1.0, 8)),
            (RayInference(ray="auto", gpus_per_worker=0.5), (0.5, 16)),
            (RayInference(ray="auto", gpus_per_worker=0.3), (0.3, 24)),
            (RayInference(ray="auto", gpus_per_worker=2), (2.0, 4)),
            (RayInference(ray="auto", gpus_per_worker=0, cpus_per_worker=4), (0.0, 20)),
            (RayInference(ray="auto", gpus_per_worker=0.5, cpus_per_worker=8), (0.5, 8)),
            (RayInference(ray="auto", ray_workers=3), (1.0, 3)),
        ],
    )
    def test_gpus_are_shared_out_node_by_node(self, asked: RayInference, room: tuple[float, int]) -> None:
        assert RayCrew(asked)._room([BIG, SMALL]) == room

    def test_without_gpus_each_cpu_has_a_worker(self) -> None:
        assert RayCrew(RayInference())._room([SMALL]) == (0.0, 16)

    def test_a_worker_that_fits_nowhere_is_refused(self) -> None:
        with pytest.raises(RuntimeUnavailableError, match="no node has room for a worker with 100 CPUs and 1 GPUs"):
            RayCrew(RayInference(ray="auto", cpus_per_worker=100))._room([BIG, SMALL])
        with pytest.raises(ConfigError, match="`cpus_per_worker`: a worker takes a CPU or a part of a GPU"):
            RayInference(ray="auto", cpus_per_worker=0)

    @pytest.mark.parametrize(
        ("asked", "there", "sizes"),
        [(None, [BIG, SMALL], (8, True)), (None, [SMALL, SMALL], (2, False)), (20, [SMALL, SMALL], (20, False))],
    )
    def test_training_processes(self, asked: int | None, there: list[Node], sizes: tuple[int, bool]) -> None:
        assert train._sizes(asked, there) == sizes

    def test_more_training_processes_than_gpus_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="`ray_workers`: 9 processes need as many GPUs, and the cluster has 8"):
            train._sizes(9, [BIG, SMALL])


class TestNodes:
    def found(self, node: Node, version: str | None) -> Found:
        return Found(node, version, has_file=False, sha256=None)

    def test_those_without_the_package_are_named(self) -> None:
        with pytest.raises(ConfigError) as caught:
            nodes._require_installed([self.found(BIG, __version__), self.found(SMALL, None)])
        assert caught.value.message == "there is 1 node of the cluster without spade-deploy: 10.0.0.2"
        assert "pip install 'spade-deploy[cpu,ray]'" in str(caught.value.hint)

    def test_another_version_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"there is 1 node with another spade-deploy than .*: 0\.0\.9 on 10"):
            nodes._require_installed([self.found(BIG, __version__), self.found(SMALL, "0.0.9")])


def test_paths_do_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = infer._absolute(Job("one", Path("labels/one.png"), None, "one.png"))
    assert job == Job("one", tmp_path / "labels" / "one.png", None, "one.png")


@pytest.mark.parametrize("command", ["infer", "train", "distill"])
def test_without_the_extra_its_name_is_told(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from spade_deploy import cli

    real = builtins.__import__

    def without_ray(name: str, *arguments: Any, **rest: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *arguments, **rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "one.png").write_bytes(png(some_map(PLAIN)))
    stand_in_artifact(tmp_path / "one", PLAIN)
    words = {
        "infer": ["labels", "out", "--artifact", "one"],
        "train": ["--steps", "1"],
        "distill": ["earth", "--base-channels", "4", "--steps", "1"],
    }[command]
    with pytest.raises(SystemExit) as ended:
        cli.app([command, *words, "--ray"])
    assert ended.value.code == 1
    assert "this command needs ray, which is not installed" in (told := capsys.readouterr().err)
    assert "spade-deploy[ray]" in told
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_student_is_trained_on_ray_by_its_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process gets the teacher, the widths that the budget chose, and a run to go on with."""
    from spade_deploy import cli
    from spade_deploy.commands import train as command
    from spade_deploy.commands.config_file import read_settings

    seen: list[train.Start] = []
    found = {"step": 1, "seconds": 1.0, "run": str(tmp_path)}
    monkeypatch.setattr(train, "train_on_ray", lambda asked, start, progress: seen.append(start) or found)
    monkeypatch.setattr(command, "_print_result", lambda result: None)
    monkeypatch.chdir(tmp_path)
    cli.app(
        ["distill", "earth", "--mac-budget", "0.1G", "--steps", "1", "--name", "job", "--ray"], standalone_mode=False
    )
    (start,) = seen
    assert start.words == (
        *("distill", "earth", "--name", "job", "--resume", "--runs", str(tmp_path / "runs"), "--json", "--config"),
    )
    assert start.run == str(tmp_path / "runs" / "job")
    (tmp_path / "settings.yaml").write_text(start.settings)
    distill = next(one for one in cli.COMMANDS if one.name == "distill")
    settings = read_settings(tmp_path / "settings.yaml", distill.settings, "spade distill")  # type: ignore[attr-defined]
    assert {name: settings[name].text for name in ("base_channels", "hidden_channels", "steps")} == {
        "base_channels": "4",
        "hidden_channels": "8",
        "steps": "1",
    }
    assert "mac_budget" not in settings


@pytest.mark.parametrize(("threads", "cpus", "expected"), [(None, 3.0, 3), (None, 0.5, 1), (5, 3.0, 5)])
def test_a_worker_has_a_thread_for_each_of_its_cpus(threads: int | None, cpus: float, expected: int) -> None:
    """All cores of the machine would be the other workers' as well. Its folders do not depend on the current one."""
    maker = Maker("0" * 64, "auto", "", "", "never", "none", "none")
    work = Work(Path("a"), maker, Folder(Path("out")), None, None, 1, None, {"threads": threads, "backend": "cpu"})
    found = infer._everywhere(work, cpus)
    assert found.engine == {"threads": expected, "backend": "cpu"}
    assert (found.artifact, found.target) == (Path("a").absolute(), Folder(Path("out").absolute()))
