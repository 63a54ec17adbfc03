"""A deployment: `pip install spade-deploy[cpu]` into a fresh virtual environment, and no PyTorch, ONNX or safetensors.

The package is really built and installed, so that a data file that the wheel forgets is missed here too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import (
    IMAGE,
    INSTANCE,
    LABEL,
    PIXELS,
    Artifact,
    Golden,
    Source,
    write_golden,
    write_manifest,
)
from spade_deploy.export.pipeline import ExportRequest
from spade_deploy.spec import UNKNOWN_VALUE, Precision

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "jinja2")
# What trains, exports, judges by networks and serves may need what is absent; all else must import without.
NEED_MORE = (
    "training",
    "networks",
    "export",
    "evaluation.published",
    "packaging.model",
    "serving",
    "cluster.meeting",
    *(f"release.{name}" for name in ("demo", "example_inputs", "release", "report", "student")),
    *(f"runs.imported_{name}" for name in ("families", "instance_encoder", "pix2pixhd", "spec")),
    *(f"runs.{name}" for name in ("checkpoint", "importer", "shipped", "state_dicts", "tensors", "weight_files")),
    *(f"validation.{name}" for name in ("divergence", "precision_search")),
)
PREFIXES = tuple(f"spade_deploy.{name}." for name in NEED_MORE)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the environment's programs. Measured 11 to 18 s, 3 of them to make it."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, capture_output=True)
    programs = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    command = [str(programs / "python"), "-m", "pip", "install", "--no-input", *constraints, f"{ROOT}[cpu]"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode != 0:
        pytest.fail(f"pip cannot install a deployment:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return programs


def clean_environment() -> dict[str, str]:
    """Pip's own settings stay: they say where packages come from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1", "COLUMNS": "200"}


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Run:
    """Run a program of the environment in an empty folder; a traceback is never right."""
    (tmp_path / "work").mkdir()

    def run_program(*command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        program = bare / command[0]
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, cwd=tmp_path / "work", env=clean_environment()
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run_program


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, make_generator: Callable[..., Any]) -> Artifact:
    """A real export of a tiny generator with unknown pixels and edges, made where PyTorch is. Measured 10 s."""
    from spade_deploy.export.pipeline import export_artifact
    from spade_deploy.labels.files import synthetic_label_maps

    generator = make_generator(base_channels=2, hidden_channels=4)
    folder = tmp_path_factory.mktemp("artifact")
    ids, instances = synthetic_label_maps(generator.spec.labels, 64, 64, 2, seed=0)
    export_artifact(
        generator,
        folder,
        ExportRequest(
            precisions=[Precision.FP32],
            golden_inputs={LABEL: ids, INSTANCE: instances},
            source=Source("tiny-001", 3, "train", "0" * 64),
        ),
    )
    return Artifact.open(folder)


def write_inputs(folder: Path, golden: Golden) -> None:
    """The golden inputs as the files that they stand for."""
    unknown = golden.inputs[LABEL].max()
    for name in (LABEL, INSTANCE):
        (folder / name).mkdir(parents=True)
        for number, ids in enumerate(golden.inputs[name]):
            values = np.where(ids == unknown, UNKNOWN_VALUE, ids) if name == LABEL else ids
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{number}.png")


def read_pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_what_a_deployment_does_not_have(run: Run) -> None:
    code = f"import importlib.util as u; print([name for name in {ABSENT} if u.find_spec(name)])"
    assert run("python", "-c", code).stdout.strip() == "[]"


def test_every_other_module_imports(run: Run) -> None:
    code = f"""
import importlib, pkgutil, sys, spade_deploy
assert "site-packages" in spade_deploy.__file__, spade_deploy.__file__
names = [m.name for m in pkgutil.walk_packages(spade_deploy.__path__, "spade_deploy.", onerror=lambda name: None)
         if not f"{{m.name}}.".startswith({PREFIXES})]
for name in names:
    importlib.import_module(name)
print(" ".join(names))
"""
    names = run("python", "-W", "error", "-c", code).stdout.split()
    files = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "spade_deploy").rglob("*.py")}
    dotted = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert set(names) == {name for name in dotted if name != "spade_deploy" and not f"{name}.".startswith(PREFIXES)}


IMPORT_CLI = """
import sys, spade_deploy.cli
heavy = ("torch", "onnx", "tensorrt", "onnxruntime")
print([name for name in heavy if name in sys.modules])
"""


def test_the_command_line_loads_nothing_heavy(run: Run) -> None:
    assert run("python", "-c", IMPORT_CLI).stdout.strip() == "[]"


def test_the_command_line_loads_nothing_heavy_where_it_could() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_CLI], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help(run: Run) -> None:
    assert "infer" in run("spade", "--help").stdout


def test_doctor_says_what_is_missing_and_how_to_get_it(run: Run) -> None:
    lines = run("spade", "doctor").stdout.splitlines()
    found = {name: next(line for line in lines if f" {name} " in line) for name in ABSENT}
    assert all("not installed" in line for line in found.values())
    assert "pip install 'spade-deploy[train,export]'" in lines[lines.index(found["torch"]) + 1], "on the line below it"
    assert "loads" in next(line for line in lines if "ONNX Runtime on the CPU" in line)


def test_inspect(run: Run, artifact: Artifact) -> None:
    text = run("spade", "inspect", artifact.path).stdout
    assert "tiny-001, step 3 (train)" in text
    assert "generator.fp32.onnx" in text
    assert "7 + unknown (255) + edges" in text


def test_infer(run: Run, artifact: Artifact, tmp_path: Path) -> None:
    golden = artifact.golden()
    write_inputs(tmp_path, golden)
    done = run(
        "spade", "infer", tmp_path / LABEL, "out", "--artifact", artifact.path, "--instances", tmp_path / INSTANCE
    )
    assert "ONNX Runtime" in done.stdout
    photos = np.stack([read_pixels(tmp_path / "work" / "out" / f"{number}.png") for number in (0, 1)])
    flips = np.abs(photos - golden.outputs[PIXELS])
    # Truncation may turn a rounding error into one step: measured at most 0.016 % of the values.
    assert flips.max() <= 1
    assert (flips > 0).mean() <= 1e-3
    # The counter-test: another label map, or no edges, makes another photo. Measured 54 and more.
    assert np.abs(photos[::-1] - golden.outputs[PIXELS]).max() > 30
    run("spade", "infer", tmp_path / LABEL, "plain", "--artifact", artifact.path, "--no-instances")
    assert np.abs(read_pixels(tmp_path / "work" / "plain" / "0.png") - photos[0]).max() > 30


def test_infer_with_a_bad_file_does_the_rest_and_exits_1(run: Run, artifact: Artifact, tmp_path: Path) -> None:
    write_inputs(tmp_path, artifact.golden())
    (tmp_path / LABEL / "0.png").write_bytes(b"broken")
    options = ("--artifact", artifact.path, "--no-instances")
    done = run("spade", "infer", tmp_path / LABEL, "out", *options, code=1)
    assert "0.png" in done.stderr
    made = sorted(path.name for path in (tmp_path / "work" / "out").iterdir())
    assert made == [".infer.json", ".lock", "1.png", "results.jsonl"]


def test_validate_against_the_golden_outputs(run: Run, artifact: Artifact) -> None:
    text = run("spade", "validate", artifact.path, "--report", "report.json").stdout
    assert "golden outputs stored at export (PyTorch is not installed)" in text
    assert "pass" in next(line for line in text.splitlines() if line.strip().startswith("fp32")).split()


def test_validate_fails_where_the_outputs_are_others(run: Run, artifact: Artifact, tmp_path: Path) -> None:
    golden, manifest = artifact.golden(), artifact.manifest
    image = golden.outputs[IMAGE].copy()
    image[0, 0, 10, 10] += 0.01
    wrong = tmp_path / "wrong"
    (wrong / "golden").mkdir(parents=True)
    for graph in manifest.graphs:
        (wrong / graph.file).write_bytes((artifact.path / graph.file).read_bytes())
    write_golden(wrong, golden.inputs, {**golden.outputs, IMAGE: image})
    names = ("generator", "graphs", "source", "versions", "rounding")
    write_manifest(wrong, **{name: getattr(manifest, name) for name in names})
    done = run("spade", "validate", wrong, "--report", "report.json", code=1)
    assert "fail" in next(line for line in done.stdout.splitlines() if line.strip().startswith("fp32")).split()
    assert "is not what was trained" in done.stderr
    assert json.loads((tmp_path / "work" / "report.json").read_text())["passed"] is False


def test_validate_on_other_label_maps_needs_pytorch(run: Run, artifact: Artifact, tmp_path: Path) -> None:
    write_inputs(tmp_path, artifact.golden())
    done = run("spade", "validate", artifact.path, "--labels", tmp_path / LABEL, code=1)
    assert "PyTorch is not installed" in done.stderr
    assert "pip install 'spade-deploy[export]'" in done.stderr


def test_the_demo_data_set_is_in_the_package(run: Run) -> None:
    code = "from spade_deploy.labels.earth import cut, earth_tiles; print(cut(earth_tiles('test')[0])[0].shape)"
    assert run("python", "-c", code).stdout.strip() == "(128, 128)"


@pytest.mark.parametrize(("command", "extra"), [("train", "train"), ("export", "export")])
def test_what_needs_more_says_what_to_install(run: Run, command: str, extra: str) -> None:
    done = run("spade", command, code=1)
    assert "which is not installed" in done.stderr
    assert f"pip install 'spade-deploy[{extra}]'" in done.stderr


def test_import_says_what_to_install(run: Run) -> None:
    assert "pip install 'spade-deploy[train]'" in run("spade", "import", "latest_net_G.pth", code=1).stderr
