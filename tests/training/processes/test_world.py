"""Two processes compute what one computes, agree on what stops them, and notice when one of them is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spade_deploy import runs
from spade_deploy.errors import ConfigError
from spade_deploy.labels.samples import SampleArrays
from spade_deploy.networks.sync_batch_norm import SyncBatchNorm2d
from spade_deploy.spec import NormType
from spade_deploy.training import dataset, loop, session
from spade_deploy.training.dataset import Shard
from spade_deploy.training.device import choose_device
from spade_deploy.training.processes.join import join_world, place_in_world
from spade_deploy.training.processes.world import ALONE, News, World
from spade_deploy.training.request import DataRequest, TrainRequest
from tests.support import two_processes
from tests.support.paths import ROOT
from tests.support.two_processes import Noise, free_port, normalized, passes, run_variants

ROWS = ([0, 1], [2, 3, 4, 5, 6])
"""Samples of the two processes where the shares are unequal."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    said: str
    errors: str


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}


def launch(scenario: str, folder: Path, size: int = 2) -> list[Ended]:
    """Run the script's scenario in `size` processes and wait for all of them."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.two_processes", scenario, folder],
            cwd=ROOT,
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()  # where one hangs
    return [Ended(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scenario 'compute', which ends with an error that both know: one says it, both end by it."""
    folder = tmp_path_factory.mktemp("two")
    main, other = launch("compute", folder)
    assert main == Ended(2, "process 0 says hello\n", "error: one for all\nnext: None\n")
    assert other == Ended(2, "", ""), "neither its greeting nor its error"
    return folder


@pytest.fixture(scope="module")
def pair(two: Path) -> list[dict[str, Any]]:
    """What two processes found in it, in the order of their ranks."""
    return [torch.load(two / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same trainings by one process."""
    folder = tmp_path_factory.mktemp("one")
    run_variants(ALONE, folder)
    return folder


def worst(found: dict[str, Tensor], whole: dict[str, Tensor], rows: list[int]) -> tuple[float, str]:
    """The largest difference of any tensor, relative to its largest number, or to 0.1 where that is smaller: the
    gradient of a bias before a batch norm is zero but for rounding.
    """
    assert found.keys() == whole.keys()
    differences = {}
    for name, value in whole.items():
        expected = value[rows] if name == "fake" else value
        difference = (found[name].double() - expected.double()).abs().max().item()
        differences[name] = difference / max(expected.abs().max().item(), 0.1)
    name = max(differences, key=differences.__getitem__)
    return differences[name], name


class TestOneBatchInTwoHalves:
    @pytest.mark.parametrize("parts", [1, 3])
    def test_images_statistics_and_gradients_are_those_of_the_whole(
        self, pair: list[dict[str, Any]], parts: int
    ) -> None:
        whole = passes(ALONE, NormType.SYNC_BATCH, parts)
        assert sum(name.endswith(".grad") for name in whole) > 100
        for rank, found in enumerate(pair):
            rows = Shard(rank, 2, parts).positions(6)
            # Measured: 1.7e-13, of a gradient; the largest gradient is 0.5. Plain batch norm is 1e-2 away and more.
            difference, name = worst(found["sync" if parts == 1 else "parts"], whole, rows)
            assert difference < 5e-12, name

    def test_both_have_the_same_gradients_and_statistics_bit_for_bit(self, pair: list[dict[str, Any]]) -> None:
        """So the networks stay equal, however long the training is."""
        first, second = (found["sync"] for found in pair)
        assert [name for name in first if name != "fake" and not torch.equal(first[name], second[name])] == []

    def test_plain_batch_norm_would_be_seen(self, pair: list[dict[str, Any]]) -> None:
        """The counter-test: with the statistics of each half alone the images differ, and all that follows."""
        whole = passes(ALONE, NormType.BATCH)
        for rank, found in enumerate(pair):
            rows = Shard(rank, 2).positions(6)
            assert worst({"fake": found["plain"]["fake"]}, {"fake": whole["fake"]}, rows)[0] > 0.1
            assert worst(found["plain"], whole, rows)[0] > 0.1
        with pytest.raises(AssertionError):
            torch.testing.assert_close(pair[0]["plain"]["fake"], pair[0]["sync"]["fake"])


class TestTheLayer:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_unequal_shares_are_as_exact_as_batch_norm_itself(
        self, pair: list[dict[str, Any]], dtype: torch.dtype
    ) -> None:
        everything = list(range(7))
        exact = normalized(ALONE, torch.float64, torch.nn.BatchNorm2d(3, affine=False), everything)
        plain = normalized(ALONE, dtype, torch.nn.BatchNorm2d(3, affine=False), everything)
        for rank, found in enumerate(pair):
            own = found[str(dtype)]
            assert own["output"].dtype == own["slope"].dtype == dtype
            assert own["num_batches_tracked"] == 1
            for name in ("output", "slope", "running_mean", "running_var"):
                expected, rows = exact[name], ROWS[rank] if name in ("output", "slope") else slice(None)
                scale = expected.double().abs().max()
                rounding = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
                error = ((own[name].double() - expected[rows]).abs().max() / scale).item()
                itself = ((plain[name].double() - expected).abs().max() / scale).item()
                # Measured: 24 roundings in float64, whose reference is batch norm itself (a mean of twenty deviations
                # costs digits); elsewhere 2.6 more than batch norm's own error.
                assert error <= 2 * itself + (40 if dtype == torch.float64 else 4) * rounding, name

    def test_weight_and_bias_and_the_mean_of_all_batches(self, pair: list[dict[str, Any]]) -> None:
        everything = list(range(7))
        for key, options in (("affine", {}), ("mean of all", {"affine": False, "momentum": None})):
            whole = normalized(ALONE, torch.float64, torch.nn.BatchNorm2d(3, **options), everything)
            for rank, found in enumerate(pair):
                for name, expected in whole.items():
                    rows = ROWS[rank] if name in ("output", "slope") else slice(None)
                    torch.testing.assert_close(found[key][name], expected[rows] if expected.ndim else expected)

    def test_a_process_without_samples_takes_part(self, pair: list[dict[str, Any]]) -> None:
        whole = normalized(ALONE, torch.float64, SyncBatchNorm2d(3, affine=False), list(range(7)))
        for rank, found in enumerate(pair):
            rows = [] if rank else list(range(7))
            torch.testing.assert_close(found["empty"]["output"], whole["output"][rows])
            torch.testing.assert_close(found["empty"]["running_var"], whole["running_var"])

    def test_one_value_in_all_is_refused_by_all(self, pair: list[dict[str, Any]]) -> None:
        for found in pair:
            assert found["one value"].startswith("ValueError: batch norm needs 2 values a channel over all processes")


def saved(checkpoint: Path) -> dict[str, Tensor]:
    """Every weight and statistic of a checkpoint, also of the generator that is trained where another is deployed."""
    found = {}
    for path in checkpoint.glob("*.safetensors"):
        found |= {f"{path.stem}.{name}": tensor for name, tensor in load_file(path).items()}
    trained = torch.load(checkpoint / runs.OPTIMIZERS_FILE, weights_only=True)["trained_generator"]
    return {**found, **{f"trained.{name}": tensor for name, tensor in (trained or {}).items()}}


def farthest(two: Path, one: Path, name: str) -> float:
    """The largest difference of any number of the last checkpoints of a training by two processes and by one."""
    ours, theirs = (saved(runs.checkpoint_folder(folder / name, 3)) for folder in (two, one))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 200
    return max((ours[key].double() - theirs[key].double()).abs().max().item() for key in ours)


class TestTraining:
    @pytest.mark.parametrize("name", ["sync", "vae", "student"])
    def test_three_steps_leave_the_checkpoint_that_one_process_leaves(self, two: Path, one: Path, name: str) -> None:
        # Measured: 3.6e-9, of a student's bias before a batch norm; the steps are 1e-3 long.
        assert farthest(two, one, name) < 3e-8
        rows = [(folder / name / "losses.csv").read_text().splitlines() for folder in (two, one)]
        assert len(rows[0]) == len(rows[1]) == 4
        for ours, theirs in zip(*rows, strict=True):
            if not ours.startswith("step"):
                found, expected = ([float(value) for value in row.split(",")[:-1]] for row in (ours, theirs))
                assert found == pytest.approx(expected, rel=1e-6)

    def test_plain_batch_norm_leaves_another(self, two: Path, one: Path) -> None:
        """The counter-test. Measured: 0.52."""
        assert farthest(two, one, "plain") > 0.01

    def test_process_0_records_what_all_have_seen(self, two: Path, one: Path) -> None:
        assert (two / "sync" / "classes.json").read_text() == (one / "sync" / "classes.json").read_text()
        assert (two / "sync" / "skipped.txt").read_text() == "broken-0.png: is damaged\nbroken-1.png: is damaged\n"
        files = [sorted(path.relative_to(folder) for path in (folder / "sync").rglob("*")) for folder in (two, one)]
        assert files[0] == files[1]

    def test_what_stops_one_stops_all(self, two: Path, pair: list[dict[str, Any]]) -> None:
        endings = {
            "stopped": "TrainingInterruptedError: stopped by SIGTERM after step 2 of 3;"
            " the state is saved in stopped/checkpoints/step_00000002",
            "bad data": "DatasetError: none of the samples can be used",
            "odd batch": "ConfigError: `batch_size`: 3 samples per step cannot be divided equally among 2 processes",
        }
        for found in pair:
            assert {name: found[name] for name in endings} == endings
            assert found["not a number"].startswith("TrainingError: nan: in step 1 the loss")
        assert [path.name for path in runs.run_checkpoints(two / "stopped")] == ["step_00000002"]
        assert not list((two / "odd").iterdir())

    def test_a_killed_process_ends_the_job_and_one_process_can_go_on(self, tmp_path: Path) -> None:
        main, killed = launch("killed", tmp_path)
        last_good = runs.checkpoint_folder(tmp_path, 4)
        assert killed.code == -9
        assert main.code == 1
        assert main.errors == (
            "error: process 1 of 2 ended without an error message: it was killed, or its host is down."
            f" The last good checkpoint is {last_good}\n"
            f"next: continue with `torchrun ... -m spade_deploy train --resume {tmp_path}`, on any number of"
            " processes\n"
        )
        assert runs.run_checkpoints(tmp_path)[-1] == last_good
        setup = two_processes.setup_of(steps=8, save_every=2)
        assert loop.train(setup, run=tmp_path, source=Noise(), resume=last_good).step == 8
        steps = [row.split(",")[0] for row in (tmp_path / "losses.csv").read_text().splitlines()]
        assert steps == ["step", *map(str, range(1, 9))]


class TestTorchrun:
    def test_the_command_line_trains_in_two_processes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the options that serve every start of a job: `--name job --resume` finds its checkpoint next time."""
        command = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} -m spade_deploy train"
        network = "--size 64x64 --base-channels 2 --hidden-channels 4 --discriminator-channels 2"
        options = "--batch-size 2 --steps 1 --device cpu --name job --resume"
        done = subprocess.run(
            [sys.executable, *command.split(), *network.split(), *options.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trained 1 steps") == done.stdout.count("next: spade export") == 1
        checkpoint = runs.checkpoint_folder(tmp_path / "runs" / "job", 1)
        assert runs.run_checkpoints(tmp_path / "runs" / "job") == [checkpoint]
        monkeypatch.chdir(tmp_path)
        asked = TrainRequest(
            data=DataRequest(size=(64, 64)),
            generator={"base_channels": 2, "hidden_channels": 4},
            discriminator={"base_channels": 2},
            train={"batch_size": 2, "steps": 2, "device": "cpu"},
        )
        again = session.start(asked, runs_dir=tmp_path / "runs", name="job", resume=session.NEWEST)
        assert (again.run, again.resume) == (tmp_path / "runs" / "job", checkpoint)


class TestAgreeing:
    def test_what_one_has_to_tell_all_know(self, pair: list[dict[str, Any]]) -> None:
        for found in pair:
            assert found["any"] == [False, True]
            assert found["told"] == [("", []), ("SIGTERM", []), ("", ["from 0", "from 1"])]
            assert found["together"] == "DatasetError: rank 1 alone"
            assert found["from main"] == "of 0"
            assert found["mean"].tolist() == [1.5, 3.0]

    def test_one_alone_asks_nobody(self) -> None:
        news = News("SIGINT", None, ("a",))
        assert ALONE.exchange(news) is news
        assert ALONE.any_rank(True)
        assert ALONE.from_main("x") == "x"
        with pytest.raises(ConfigError, match="as it is"), ALONE.together():
            raise ConfigError("as it is")


class TestPlaces:
    def test_torchruns_environment(self) -> None:
        told = environment(5, 8, 29500) | {"LOCAL_RANK": "1"}
        assert place_in_world(told) == World(5, 8, 1)
        assert place_in_world({}) == place_in_world({"RANK": "0"}) == ALONE
        assert place_in_world({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
        with join_world() as world:
            assert world is ALONE

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"RANK": "2"}, r"RANK='2' in the environment is not in 0\.\.1"),
            ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
            ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1'"),
            ({"MASTER_ADDR": ""}, "2 processes, but MASTER_ADDR does not say"),
        ],
    )
    def test_an_environment_without_sense_is_refused(self, changes: dict[str, str], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            place_in_world(environment(0, 2, 29500) | changes)
        assert "torchrun" in str(caught.value.hint)

    def test_each_process_has_its_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert choose_device("auto", World(3, 4, 1)) == choose_device("cuda", World(3, 4, 1)) == torch.device("cuda:1")
        assert chosen == [torch.device("cuda:1")] * 2
        assert choose_device("cpu", World(3, 4, 1)).type == "cpu"
        with pytest.raises(ConfigError, match="process 3 is number 2 on its host and has no GPU") as caught:
            choose_device("auto", World(3, 4, 2))
        assert "--nproc-per-node 2" in str(caught.value.hint)
        with pytest.raises(ConfigError, match="cuda:0 is one GPU for 4 processes"):
            choose_device("cuda:0", World(3, 4, 1))


class TestShares:
    def test_together_they_are_the_batch_part_by_part(self) -> None:
        shares = [Shard(rank, 2, 3).positions(12) for rank in (0, 1)]
        assert shares == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
        assert Shard().positions(3) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("batch_size", "shard", "hint"),
        [(6, Shard(0, 4), "`batch_size` 4 or 8"), (3, Shard(1, 2, 2), "`batch_size` 4,"), (2, Shard(0, 4), "4,")],
    )
    def test_what_cannot_be_shared_out_is_refused(self, batch_size: int, shard: Shard, hint: str) -> None:
        with pytest.raises(ConfigError, match=f"`batch_size`: {batch_size} samples") as caught:
            shard.positions(batch_size)
        assert hint in str(caught.value.hint)

    def test_each_sample_is_what_it_is_in_the_whole_batch(self) -> None:
        whole = dataset.training_batches(Numbers(), batch_size=8, seed=1, start_step=2)
        shares = [
            dataset.training_batches(
                Numbers(), batch_size=8, seed=1, start_step=2, workers=rank, shard=Shard(rank, 2, 2)
            )
            for rank in (0, 1)
        ]
        for _ in range(4):  # over the end of an epoch
            batch, parts = next(whole), [next(share) for share in shares]
            for rank, part in enumerate(parts):
                rows = Shard(rank, 2, 2).positions(8)
                assert torch.equal(part.photo, batch.photo[rows])
                assert part.stems == tuple(batch.stems[row] for row in rows)
        for share in (whole, *shares):
            share.close()

    def test_workers_outlive_the_signal_that_ends_the_training(self) -> None:
        """torchrun sends it to the whole process group, and the last step may need another batch."""
        batches = dataset.training_batches(Where(), batch_size=2, seed=0, workers=1)
        before = set(next(batches).stems)
        server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        for process in (int(before.pop()), server):
            os.kill(process, signal.SIGTERM)
        after = {stem for _ in range(9) for stem in next(batches).stems}
        assert len(after) == 1
        assert os.waitpid(server, os.WNOHANG) == (0, 0), "the server runs on"
        batches.close()

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for the state of a process")
    def test_workers_end_with_a_training_that_is_killed(self) -> None:
        code = (
            "import os, signal\n"
            "from spade_deploy.training import dataset\n"
            "from tests.training.processes.test_world import Where\n"
            "if __name__ == '__main__':\n"
            "    batches = dataset.training_batches(Where(), batch_size=2, seed=0, workers=1)\n"
            "    print(next(batches).stems[0], flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        assert done.returncode == -9
        state = Path("/proc", done.stdout.strip(), "stat")
        for _ in range(600):  # a minute; without the watch it never ends
            with suppress(OSError):
                if state.read_text().rpartition(")")[2].split()[0] != "Z":
                    time.sleep(0.1)
                    continue
            return
        raise AssertionError(f"process {done.stdout.strip()} still runs")


class Numbers:
    """Twenty samples; each is its index and what its random generator says."""

    def __len__(self) -> int:
        return 20

    def stem(self, index: int) -> str:
        return str(index)

    def load(self, index: int, rng: np.random.Generator | None) -> SampleArrays:
        assert rng is not None
        label = np.full((2, 2), index, np.uint8)
        return SampleArrays(label, None, rng.integers(0, 256, (2, 2, 3), np.uint8))


class Where(Numbers):
    """Samples that are named by the process that loads them."""

    def stem(self, index: int) -> str:
        return str(os.getpid())
