"""The processes that training starts: no signal reaches them before they can say so, and nothing of the current folder
is executed in them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spade_deploy.labels.earth import earth_labels
from spade_deploy.labels.layouts import DataConfig
from spade_deploy.machine.cores import usable_cores
from spade_deploy.training.dataset import training_batches
from spade_deploy.training.splits import open_source
from tests.support.paths import ROOT

STARTING = """
import os, signal, sys, time
from spade_deploy.training import loader

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the training process only remembers it
    context = loader.worker_context()
    import worker
    os.unlink("begun")
    process = context.Process(target=worker.work)
    process.start()
    while not os.path.exists("begun"):
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(0, number)
    process.join()
    sys.exit(process.exitcode)
"""

WORKER = """
import pathlib, time
pathlib.Path("begun").touch()
time.sleep(0.5)  # as long as its imports take, in which it has not said yet that it ignores signals

def work():
    pathlib.Path("done").touch()
"""


def test_a_signal_while_workers_start_does_not_reach_them(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(STARTING)
    (tmp_path / "worker.py").write_text(WORKER.replace("pathlib.Path", f"pathlib.Path({str(tmp_path)!r}).joinpath"))
    done = subprocess.run(
        [sys.executable, "starting.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


EVIL = ("torch", "socket", "json", "numpy", "pickle", "selectors", "random", "PIL", "tempfile", "typer")


@pytest.fixture
def evil_folder(tmp_path: Path) -> Path:
    """A current folder with modules of well-known names, which leave a mark where they are executed."""
    for name in EVIL:
        code = f"import pathlib; pathlib.Path({str(tmp_path / 'marks')!r}).open('a').write('{name} ')\n"
        (tmp_path / f"{name}.py").write_text(code + "raise ImportError('executed in the current folder')\n")
    return tmp_path


def marks(folder: Path) -> str:
    return (folder / "marks").read_text() if (folder / "marks").exists() else ""


CHILDREN = """
from tests.support.training_runs import setup_of
from tests.training.test_processes import one_batch
from spade_deploy.spec import LabelSpec
from spade_deploy.training.estimate import _measured
import torch

if __name__ == "__main__":
    assert one_batch(workers=1) == 2
    assert _measured(setup_of({"labels": LabelSpec(3)}), torch.device("cpu"), 1)
"""


def one_batch(workers: int) -> int:
    source = open_source(DataConfig(load_size=(32, 32), crop_size=(32, 32)), "test", earth_labels())
    batches = training_batches(source, batch_size=2, seed=0, workers=workers)
    count = len(next(batches).stems)
    batches.close()
    return count


def test_processes_that_are_started_run_nothing_of_the_current_folder(evil_folder: Path, tmp_path: Path) -> None:
    """The loading processes, their server, and the one that --estimate measures in."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "children.py").write_text(CHILDREN)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(elsewhere / "children.py")],
        cwd=evil_folder,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (marks(evil_folder), done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("command", ["doctor", "train --estimate --base-channels 2 --hidden-channels 4 --size 32x32"])
def test_python_m_runs_nothing_of_the_current_folder(evil_folder: Path, command: str) -> None:
    """As torchrun starts it: Python itself puts the current folder first."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "spade_deploy", *command.split()],
        cwd=evil_folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert marks(evil_folder) == "", done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_cores_give_no_warning_and_the_same_batches() -> None:
    """Warnings are errors here, and PyTorch warns of more processes than cores."""
    assert one_batch(workers=usable_cores() + 3) == one_batch(workers=0)


ORPHAN = """
import json, os, signal, sys, time
from spade_deploy.training.processes.launcher import watched_launcher

seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(time.monotonic()))
with watched_launcher(os.environ) as launcher:
    print("ready", flush=True)
    end = time.monotonic() + 30
    while not seen and time.monotonic() < end:
        time.sleep(0.05)
    with open("told", "w") as file:
        json.dump([bool(seen), launcher.is_lost], file)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not tell which process is torchrun")
@pytest.mark.parametrize("between", [False, True], ids=["a child of torchrun", "a script between"])
def test_a_process_notices_that_torchrun_was_killed(tmp_path: Path, between: bool) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    child = [sys.executable, str(tmp_path / "orphan.py")]
    child = ["/bin/sh", "-c", f"'{child[0]}' '{child[1]}'; true"] if between else child
    (tmp_path / "torchrun").write_text(f"import subprocess; subprocess.run({child!r})\n")
    torchrun = subprocess.Popen(
        [sys.executable, str(tmp_path / "torchrun")],
        cwd=tmp_path,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "none"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert torchrun.stdout is not None
    with torchrun.stdout as said:
        assert said.readline() == "ready\n"
        began = time.monotonic()
        torchrun.kill()
        torchrun.wait()
        while not (tmp_path / "told").exists() and time.monotonic() < began + 20:
            time.sleep(0.1)
    assert time.monotonic() - began < 10
    time.sleep(0.2)  # until it is written
    assert json.loads((tmp_path / "told").read_text()) == [True, True]


def test_without_torchrun_nobody_is_watched(tmp_path: Path) -> None:
    """A run in the background outlives the shell that started it."""
    (tmp_path / "orphan.py").write_text(ORPHAN.replace("end = time.monotonic() + 30", "end = time.monotonic() + 2")
                                        .replace("launcher.is_lost", "launcher is not None"))  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    subprocess.run([sys.executable, "orphan.py"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert json.loads((tmp_path / "told").read_text()) == [False, False]
