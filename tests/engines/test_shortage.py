"""What a runtime says where memory runs out, in a process that may have only so much, and that it goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.stand_in import PLAIN, stand_in_artifact

RUN = """
import resource
import sys
from pathlib import Path

import numpy as np

from spade_deploy.artifact import LABEL, PIXELS, Artifact
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import RuntimeUnavailableError

folder, backend = sys.argv[1:]
large, small = (np.zeros((1, side, side), np.uint8) for side in (4096, 64))
with open_runtime(Artifact.open(Path(folder)), backend=backend, threads=1) as runtime:
    runtime.run({LABEL: small})
    status = Path("/proc/self/status").read_text().splitlines()
    (held_kb,) = (int(line.split()[1]) for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held_kb * 1024 + (100 << 20),) * 2)
    try:
        runtime.run({LABEL: large})
    except RuntimeUnavailableError as error:
        print(f"{error.message} | {error.hint}")
    print(runtime.run({LABEL: small})[PIXELS].shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is held")
@pytest.mark.parametrize(("backend", "name"), [("cpu", "ONNX Runtime "), ("openvino", "OpenVINO ")])
def test_a_map_that_does_not_fit_is_an_error_and_the_next_one_runs(tmp_path: Path, backend: str, name: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    artifact = stand_in_artifact(tmp_path / "a", PLAIN)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(artifact.path), backend],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "SPADE_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    said, again = done.stdout.splitlines()
    assert said.startswith(name), done.stderr
    assert "4096" in said
    assert "if memory ran out, a smaller `batch_size` or `size` helps" in said
    assert again == "(1, 64, 64, 3)"
