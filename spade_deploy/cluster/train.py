"""`spade train --ray`: Ray places the training processes on a cluster, and starts them again when one is lost.

Each of Ray's workers starts one process with the ordinary command and the variables that torchrun would set, and waits
for it. So the processes meet, save and stop as under torchrun (`training/processes`), and a run can be continued by
either. Checkpoints stay in the run's folder, which all nodes must see; after a loss all go on from the newest one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spade_deploy.cluster.nodes import Node, connected, look_at
from spade_deploy.cluster.request import ANY, GROUP, RayRequest
from spade_deploy.errors import ConfigError, FolderBusyError, TrainingError, TrainingInterruptedError, line_of
from spade_deploy.files.locks import LOCK, locked
from spade_deploy.progress import SILENT, Progress
from spade_deploy.settings import setting

STORE = ".ray"
"""The folder in a run's folder where Ray keeps its own notes while it trains."""
DOCUMENT = "result.json"
"""The file there in which process 0 leaves what `spade train --json` prints."""
BUSY_S = 120.0
"""How long new processes wait for those that they replace, which finish their step and save."""
_LAST_LINES = 30


@dataclass(frozen=True, kw_only=True)
class RayTraining(RayRequest):
    """Whether Ray starts the training, and with how many processes."""

    max_restarts: int = setting(
        3, help="How often Ray starts all processes again after one was lost.", least=0, group=GROUP
    )


@dataclass(frozen=True)
class Start:
    """What every training process is started with. Paths are those of all nodes."""

    run: str
    """The run's folder."""
    words: tuple[str, ...]
    """The words of the command line after `spade`; the path of a file with the settings comes behind them."""
    settings: str
    """All other settings, as a configuration file has them."""
    folder: str
    """The current folder, for paths in the settings."""


def train_on_ray(asked: RayTraining, start: Start, progress: Progress = SILENT) -> dict[str, Any]:
    """Train, and return what `spade train --json` reports of the run.

    Raises TrainingError where the training failed more than `max_restarts` times, RuntimeUnavailableError without a
    cluster, ConfigError where a node lacks spade-deploy or there are too few CPUs or GPUs.
    """
    store = Path(start.run) / STORE
    try:
        with connected(asked.ray or ANY, progress, shows_workers=True) as nodes:
            look_at(nodes)
            workers, has_gpus = _sizes(asked.ray_workers, nodes)
            progress.note(f"training in {workers} processes on a Ray cluster of {len(nodes)} nodes")
            _fit(workers, has_gpus, asked.max_restarts, start, store)
        return _result(store / DOCUMENT, start.run)
    finally:
        shutil.rmtree(store, ignore_errors=True)
        with suppress(OSError):  # a run that never began leaves no folder
            if {path.name for path in Path(start.run).iterdir()} <= {LOCK}:
                (Path(start.run) / LOCK).unlink(missing_ok=True)
                Path(start.run).rmdir()


def _result(document: Path, run: str) -> dict[str, Any]:
    """What process 0 reported. Raises TrainingInterruptedError where it did not come to that: Ctrl-C ended it."""
    try:
        found: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))["result"]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingInterruptedError(
            "the training was stopped", hint=f"continue with `spade train --ray --resume {run}`"
        ) from error
    return found


def _sizes(asked: int | None, nodes: list[Node]) -> tuple[int, bool]:
    """How many processes there are, and whether each has a GPU. Raises ConfigError where there is no room for them."""
    gpus = sum(node.gpus for node in nodes)
    there = gpus if gpus >= 1 else sum(node.cpus for node in nodes)
    workers = asked or int(gpus) or sum(node.cpus > 0 for node in nodes)
    if workers > there:
        raise ConfigError(
            f"`ray_workers`: {workers} processes need as many {'GPUs' if gpus >= 1 else 'CPUs'}, and the cluster has"
            f" {there:g}",
            hint="take fewer, or add nodes with `ray start`",
        )
    return workers, gpus >= 1


def _fit(workers: int, has_gpus: bool, max_restarts: int, start: Start, store: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # TorchTrainer is this, with a backend

    from spade_deploy.cluster.meeting import MeetingConfig

    trainer = DataParallelTrainer(
        train_process,
        train_loop_config=asdict(start),
        backend_config=MeetingConfig(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=has_gpus),
        run_config=RunConfig(
            name="train", storage_path=str(store), failure_config=FailureConfig(max_failures=max_restarts)
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
        told = [line_of(str(one), last=True) for _, one in sorted(failures.items())]
        # Those that only noticed that another one ended say less than that one.
        first = next(
            (one for one in told if "ended without a word" not in one), told[0] if told else line_of(str(error))
        )
        raise TrainingError(
            f"the training failed: {first}", hint=f"continue with `spade train --ray --resume {start.run}`"
        ) from error


def train_process(config: Mapping[str, Any]) -> None:
    """Run one training process to its end. Ray calls this in each of its workers.

    Raises RuntimeError, whose last line says why the process failed.
    """
    rank = int(os.environ["RANK"])
    if not Path(config["folder"]).is_dir() or not Path(config["run"]).is_dir():
        raise RuntimeError(
            f"{config['run']} or {config['folder']} is not on {socket.gethostname()}: all nodes must see the folders of"
            " runs and data at the same place"
        )
    if rank == 0:
        _wait_until_free(Path(config["run"]))
    with TemporaryDirectory(prefix="spade-train-") as scratch:
        settings = Path(scratch) / "settings.yaml"
        settings.write_text(config["settings"], encoding="utf-8")
        document = Path(config["run"]) / STORE / DOCUMENT if rank == 0 else Path(os.devnull)
        with document.open("wb") as out:
            command = [sys.executable, "-m", "spade_deploy", *config["words"], str(settings)]
            code, last = _run(command, out, config["folder"])
    if code != 0:
        how = f"ended with code {code}" if code > 0 else f"was killed by signal {-code}"
        errors = [line for line in last if line.startswith("error:")]
        raise RuntimeError(
            f"process {rank} on {socket.gethostname()} {how}. {errors[-1] if errors else ''.join(last[-1:])}"
        )


def _run(command: list[str], out: Any, folder: str) -> tuple[int, list[str]]:
    """The exit code of a command and the last lines that it wrote to stderr, which are printed as they come."""
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "ray", "PYTHONUNBUFFERED": "1"}
    last: list[str] = []
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", flush=True)
            last = [*last[-_LAST_LINES:], line.rstrip()]
        return process.wait(), last
    finally:
        if process.poll() is None:
            process.terminate()  # it finishes its step, and process 0 saves
            process.wait()


def _wait_until_free(run: Path) -> None:
    """Wait while processes that were lost to Ray finish their step in the run's folder."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            with locked(run, "starting to train"):
                return
        except (FolderBusyError, OSError):
            if time.monotonic() > end:
                return  # the training process says who holds it
            time.sleep(0.2)
