"""`spade bench --tune`, and what `spade infer` says of it afterwards: by the real console script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spade_deploy.bench.request import BenchRequest
from spade_deploy.commands import bench as command
from spade_deploy.commands.bench import ResultPlace
from spade_deploy.errors import ConfigError
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.inference import InferRequest
from tests.support.commands import spade
from tests.support.stand_in import PLAIN, stand_in_artifact


def test_what_was_tuned_is_what_infer_runs_and_the_line_is_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    artifact = stand_in_artifact(tmp_path / "artifact").path
    tuned = spade("bench", artifact, "--tune", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert "ONNX Runtime fp32" in tuned.stdout
    assert "OpenVINO fp32" in tuned.stdout
    (line,) = (line for line in tuned.stdout.splitlines() if line.startswith("auto: "))
    assert f"(kept in {tmp_path / 'cache' / 'auto'}" in line
    taken = line.removeprefix("auto: ").split(" fp32")[0]

    labels = tmp_path / "labels"
    labels.mkdir()
    Image.fromarray(np.ones((PLAIN.height, PLAIN.width), np.uint8)).save(labels / "one.png")
    made = spade("infer", labels, "out", "--artifact", artifact, cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "auto: " not in made.stdout
    assert f"auto: {taken} fp32, measured " in made.stderr
    assert f"with {taken} " in made.stdout, "the engine that the line names is the one that runs"


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", Path("labels")), ("baselines", ("plain",)), ("rounds", 3), ("backend", "cpu"), ("batch_size", 2)],
)
def test_tuning_refuses_what_it_would_ignore(field: str, value: object) -> None:
    command._refuse_others(BenchRequest(threads=1), ResultPlace())
    with pytest.raises(ConfigError, match=f"`{field}`: `tune` measures every engine"):
        command._refuse_others(replace(BenchRequest(), **{field: value}), ResultPlace())
    with pytest.raises(ConfigError, match="`out`: `tune` measures every engine"):
        command._refuse_others(BenchRequest(), ResultPlace(Path("out")))


def test_a_psnr_without_fastest_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="`min_psnr_db` says which precisions `precision` fastest may take"):
        InferRequest(Path("labels"), Path("out"), min_psnr_db=45)
    assert InferRequest(Path("labels"), Path("out"), precision="fastest", min_psnr_db=40).min_psnr_db == 40
