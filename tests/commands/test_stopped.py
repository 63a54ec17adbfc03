"""SIGTERM, with which schedulers and containers end a command, as Ctrl-C ends it."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import Artifact
from tests.support.stand_in import PLAIN, stand_in_artifact

PROGRAM = """
import os, signal, sys
from spade_deploy import cli
from spade_deploy.engines.ort.runtime import OrtRuntime
real, calls = OrtRuntime.run, [0]
def run(*arguments):
    calls[0] += 1
    if calls[0] == 8:
        os.kill(os.getpid(), signal.{signal})
    return real(*arguments)
OrtRuntime.run = run
sys.argv = ["spade", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("stopped"), PLAIN)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stopped_infer_keeps_the_images_of_its_shard_and_says_what_follows(
    artifact: Artifact, tmp_path: Path, number: str
) -> None:
    (tmp_path / "labels").mkdir()
    for index in range(40):
        ids = np.random.default_rng(index).integers(0, 5, (64, 32)).astype(np.uint8)
        Image.fromarray(ids).save(tmp_path / "labels" / f"{index:03d}.png")
    options = ["infer", "labels", "out/{000..}.tar", "--artifact", str(artifact.path), "--backend", "cpu"]

    def run(program: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *options, "--json"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    stopped = run(PROGRAM.format(signal=number))
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped; the images that were written are whole" in stopped.stderr
    document = json.loads(stopped.stdout)
    assert (document["exit_code"], document["error"]["type"]) == (130, "InferInterruptedError")
    assert document["error"]["next"] == "the same command makes the others"
    with tarfile.open(tmp_path / "out" / "000.tar") as shard:
        kept = shard.getnames()
    assert 1 <= len(kept) < 40
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".infer.json", ".lock", "000.tar", "results.jsonl"}

    ended = run("import sys; from spade_deploy import cli; sys.argv[0] = 'spade'; cli.main()")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)["result"]
    assert (result["skipped"], result["written"]) == (len(kept), 40 - len(kept))
