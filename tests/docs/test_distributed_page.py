"""The Slurm script of docs/distributed.md, run by bash with programs in the place of Slurm's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from spade_deploy.cli import app
from tests.support.paths import ROOT
from tests.support.ray_cluster import wait_for

PROGRAMS = {
    "scontrol": 'echo "scontrol $*" >> called; [ "$1" = show ] && echo node-a && echo node-b',
    "srun": 'echo "srun $*" >> called; shift; trap "kill -TERM \\$child" TERM; "$@" & child=$!; '
    "wait $child; wait $child",
    "torchrun": 'echo "torchrun $*" >> called; trap "echo saved >> called; exit 1" TERM; touch training; '
    "while [ ! -e done ]; do sleep 0.05; done",
}
"""What stands for each program: it notes how it was called, and hands SIGTERM on as the real one does."""


@pytest.fixture
def script(tmp_path: Path) -> subprocess.Popen[bytes]:
    """The page's script, which trains."""
    (block,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs/distributed.md").read_text(), re.DOTALL)
    (tmp_path / "activate").touch()
    (tmp_path / "job.sh").write_text(block.replace("/shared/venv/bin/activate", "./activate"))
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    environment = {
        **os.environ,
        **slurm,
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    wait_for((tmp_path / "training").exists, 30)
    return process


@pytest.mark.usefixtures("usual_signals")
def test_before_the_time_limit_the_training_saves_and_the_job_is_queued_again(
    script: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    script.send_signal(signal.SIGTERM)
    script.wait(30)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0] == "scontrol show hostnames node-[a-b]"
    assert called[-2:] == ["saved", "scontrol requeue 17"]
    (torchrun,) = (line for line in called if line.startswith("torchrun"))
    assert "--nnodes 4 --nproc-per-node 8 " in torchrun
    assert "--rdzv-endpoint node-a:29500 --rdzv-id 17 -m spade_deploy train " in torchrun
    words = torchrun.partition("-m spade_deploy train ")[2].split()
    parsed = get_command(app).commands["train"].make_context("train", words)  # type: ignore[attr-defined]
    assert (parsed.params["name"], parsed.params["resume"], parsed.params["batch_size"]) == ("coco-32", "newest", 96)


def test_a_training_that_ends_is_not_queued_again(script: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    assert script.wait(30) == 0
    assert "requeue" not in (tmp_path / "called").read_text()
