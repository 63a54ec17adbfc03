import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from spade_deploy.artifact import MANIFEST, REPORT_JSON, rewrite_manifest, write_manifest
from spade_deploy.errors import ArtifactError, CheckpointError, ConfigError, NotFoundError
from spade_deploy.inspection.describe import inspect_path
from spade_deploy.inspection.description import Description
from spade_deploy.networks.spade import SpadeGenerator
from spade_deploy.runs import CHECKPOINT_JSON, GENERATOR_FILE, checkpoint_folder
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.runs.safetensors_header import read_tensor_count
from spade_deploy.spec import GeneratorSpec, LabelSpec, NormType, Precision, Upsampling
from tests.support.stand_in import EDGES, PLAIN, STYLED, stand_in_artifact

PARAMETERS = sum(parameter.numel() for parameter in SpadeGenerator(PLAIN).parameters())


@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        EDGES,
        STYLED,
        GeneratorSpec(LabelSpec(3), base_channels=4, hidden_channels=5, kernel_size=5, norm=NormType.INSTANCE),
        GeneratorSpec(LabelSpec(3), base_channels=4, kernel_size=1, upsampling=Upsampling.MOST, spectral_norm=False),
    ],
)
def test_parameters_are_those_of_the_module(spec: GeneratorSpec, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = SpadeGenerator(spec)
    right = sum(parameter.numel() for parameter in module.parameters())
    small = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in module.state_dict().items()}
    save_file(small, tmp_path / GENERATOR_FILE)
    count = read_tensor_count(tmp_path / GENERATOR_FILE)
    assert (count.tensors, count.parameters) == (len(small), right)


CREATED = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training writes it."""
    folder = tmp_path_factory.mktemp("template") / "checkpoint"
    save_checkpoint(folder, SpadeGenerator(PLAIN), step=1, origin="train")
    return folder


@pytest.fixture
def make_checkpoint(template: Path) -> Callable[..., Path]:
    """Copies the template to where the checkpoint of a step lives, with other fields in its JSON."""

    def make(run: Path, step: int, **fields: Any) -> Path:
        checkpoint = checkpoint_folder(run, step)
        shutil.copytree(template, checkpoint)
        change_json(checkpoint / CHECKPOINT_JSON, step=step, created_unix_ns=CREATED + step, **fields)
        return checkpoint

    return make


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def utc_plus_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local time that is not UTC. POSIX counts to the west, so UTC+1 is -1."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def facts(found: Description) -> dict[str, str]:
    return dict(found.rows)


@pytest.mark.usefixtures("utc_plus_one")
def test_an_artifact(tmp_path: Path) -> None:
    path = stand_in_artifact(tmp_path / "a", EDGES, (Precision.FP32, Precision.FP16)).path
    found = inspect_path(path)
    assert found.title == "Artifact"
    rows = facts(found)
    assert rows["from"].startswith("tiny-001, step 40 (train), weights ")
    assert rows["made"] == "2023-11-14 23:13:20+01:00"
    assert rows["labels"] == "5 + unknown (255) + edges"
    assert rows["names"] == "none"
    assert rows["size"] == "32 x 64 (height x width), runs at any multiple of 32"
    assert rows["upsampling"] == "normal: 5 doublings"
    assert rows["channels"] == "2 base, 128 hidden, kernel 3"
    assert rows["norm"] == "sync_batch, spectral norm"
    assert rows["style vector"] == "none"
    assert rows["precisions"] == "fp32, fp16"
    assert rows["validation"] == "not recorded"
    tables = {table.title: table for table in found.tables}
    assert list(tables) == ["Graphs", "Files"]
    assert tables["Graphs"].rows[1] == ("generator.fp16.onnx", "fp16", "dense", "18", "conv_img")
    assert [row[0] for row in tables["Files"].rows] == [
        "generator.fp16.onnx",
        "generator.fp32.onnx",
        "golden/inputs.npz",
        "golden/outputs.npz",
    ]
    assert inspect_path(path / MANIFEST) == found
    for table in found.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_style_vector_fixes_the_size(tmp_path: Path) -> None:
    rows = facts(inspect_path(stand_in_artifact(tmp_path / "a", STYLED).path))
    assert rows["style vector"] == "2 numbers (VAE)"
    assert rows["size"] == "32 x 32 (height x width), runs at this size alone"


@pytest.mark.parametrize(
    ("names", "palette", "shown"),
    [
        (("a", "b", "c"), (), "a, b, c"),
        (
            ("sea", "land", "ice"),
            ((0, 0, 255), (10, 200, 0), (255, 255, 255)),
            "sea #0000ff, land #0ac800, ice #ffffff",
        ),
        (tuple("abcdef"), (), "a, b, c, d, ... (6 in all)"),
    ],
)
def test_names_and_colours(tmp_path: Path, names: Any, palette: Any, shown: str) -> None:
    spec = replace(PLAIN, labels=LabelSpec(len(names), names=names, palette=palette))
    assert facts(inspect_path(stand_in_artifact(tmp_path / "a", spec).path))["names"] == shown


def with_report(folder: Path, report: Any) -> Description:
    artifact = stand_in_artifact(folder)
    (folder / REPORT_JSON).write_text(json.dumps(report))
    facts = {
        name: getattr(artifact.manifest, name) for name in ("generator", "graphs", "source", "versions", "rounding")
    }
    write_manifest(folder, **facts)
    return inspect_path(folder)


def test_the_validation_of_an_artifact(tmp_path: Path) -> None:
    graphs = [
        {"precision": "fp32", "passed": True, "figures": {"max_abs": 1.25e-6, "psnr_db": None}},
        {"precision": "fp16", "passed": False, "figures": {"max_abs": 0.5, "psnr_db": 33.333}},
    ]
    found = with_report(tmp_path / "a", {"passed": False, "reference": "PyTorch", "graphs": graphs})
    assert facts(found)["validation"] == "failed"
    table = found.tables[1]
    assert table.title == "Validation against PyTorch"
    assert table.rows == (("fp32", "passed", "1.25e-06", "identical"), ("fp16", "failed", "0.5", "33.3"))


@pytest.mark.parametrize(
    "report", [{}, {"graphs": 3}, {"graphs": [1, {"figures": []}, {"passed": "yes"}]}, {"passed": [1]}]
)
def test_a_report_of_another_shape_never_breaks_the_rest(tmp_path: Path, report: Any) -> None:
    found = with_report(tmp_path / "a", report)
    assert facts(found)["precisions"] == "fp32"
    assert facts(found)["validation"] == "not recorded"
    assert not any("passed" in row for table in found.tables for row in table.rows)


def test_a_checkpoint(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint(tmp_path / "run", 40, train={"steps": 40, "seed": 3})
    found = inspect_path(path)
    assert found.title == "Checkpoint"
    rows = facts(found)
    assert rows["from"] == "training, step 40"
    assert rows["parameters"] == str(PARAMETERS)
    assert rows["tensors"].endswith(", F32, I64")
    assert rows["weights"].endswith("as they were written")
    assert rows["resumable"] == "no: weights alone"
    assert "torch " in rows["made with"]
    files, settings = found.tables
    assert [row[0] for row in files.rows] == [CHECKPOINT_JSON, GENERATOR_FILE]
    assert settings.rows == (("steps", "40"), ("seed", "3"))
    assert inspect_path(path / GENERATOR_FILE) == found


def test_an_imported_checkpoint(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint(tmp_path / "run", 0, origin="import", source="latest_net_G.pth")
    assert facts(inspect_path(path))["from"] == "latest_net_G.pth (import)"


def test_a_run(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    run = tmp_path / "run"
    make_checkpoint(run, 10)
    make_checkpoint(run, 20)
    rows = facts(inspect_path(run))
    assert rows["artifact"] == "none yet: `spade export` makes it"
    stand_in_artifact(run / "artifact")
    found = inspect_path(run)
    assert found.title == "Run"
    assert facts(found)["artifact"] == f"{run / 'artifact'} (fp32)"
    assert facts(found)["newest"] == str(checkpoint_folder(run, 20))
    assert [(row[1], row[-1]) for row in found.tables[0].rows] == [("10", ""), ("20", "newest")]
    (run / "artifact" / "generator.fp32.onnx").unlink()
    assert "damaged: " in facts(inspect_path(run))["artifact"], "a damaged artifact does not hide the checkpoints"


def test_a_damaged_checkpoint_does_not_hide_the_others(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    make_checkpoint(tmp_path, 10)
    change_json(make_checkpoint(tmp_path, 20) / CHECKPOINT_JSON, origin="nowhere")
    found = inspect_path(tmp_path)
    assert facts(found)["newest"] == str(checkpoint_folder(tmp_path, 10))
    good, damaged = found.tables[0].rows
    assert good[-1] == "newest"
    assert damaged[:2] == ("step_00000020", "?")
    assert "origin is 'nowhere'" in damaged[2]
    (checkpoint_folder(tmp_path, 20) / GENERATOR_FILE).unlink()
    (checkpoint_folder(tmp_path, 20) / GENERATOR_FILE).symlink_to("/dev/zero")
    make_checkpoint(tmp_path, 30)
    (checkpoint_folder(tmp_path, 30) / CHECKPOINT_JSON).unlink()
    (checkpoint_folder(tmp_path, 30) / CHECKPOINT_JSON).symlink_to("nothing")
    _, *damaged_rows = inspect_path(tmp_path).tables[0].rows
    assert [row[0] for row in damaged_rows] == ["step_00000020", "step_00000030"]
    assert "is a link to nothing" in damaged_rows[1][2]


def test_a_run_of_an_artifact_alone(tmp_path: Path) -> None:
    stand_in_artifact(tmp_path / "artifact")
    assert facts(inspect_path(tmp_path))["checkpoints"] == "0"


def test_what_is_none_of_these_says_what_to_type(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint(tmp_path / "runs" / "a", 1)
    artifact = stand_in_artifact(tmp_path / "runs" / "a" / "artifact").path
    (tmp_path / "empty").mkdir()
    for name in ("latest_net_G.pth", "alone.onnx", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (checkpoint / "optimizers.pt").write_bytes(b"x")
    for path, hint in (
        (tmp_path / "latest_net_G.pth", f"spade import {tmp_path / 'latest_net_G.pth'}"),
        (tmp_path / "alone.onnx", "does not say what its labels mean: give an artifact's folder"),
        (artifact / "generator.fp32.onnx", f"spade inspect {artifact}"),
        (checkpoint / "optimizers.pt", f"spade inspect {checkpoint}"),
        (tmp_path / "runs", f"spade inspect {tmp_path / 'runs' / 'a'}"),
        (tmp_path / "notes.txt", "`spade train` and `spade export` make them"),
        (tmp_path / "empty", "`spade train` and `spade export` make them"),
    ):
        with pytest.raises(NotFoundError, match="neither an artifact, nor a checkpoint, nor a run") as caught:
            inspect_path(path)
        assert hint in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="does not exist"):
        inspect_path(tmp_path / "missing")
    with pytest.raises(NotFoundError, match="cannot be looked at: File name too long"):
        inspect_path(tmp_path / ("x" * 5000))


def test_a_damaged_artifact(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a").path
    (artifact / "generator.fp32.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is damaged: 0 bytes"):
        inspect_path(artifact)


def test_a_damaged_header(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 1)
    for content in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"):
        (checkpoint / GENERATOR_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match="not a safetensors file, or damaged"):
            inspect_path(checkpoint)


def test_weights_that_are_not_those_that_were_written(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 1)
    weights = checkpoint / GENERATOR_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="its SHA-256 begins"):
        inspect_path(checkpoint)


def test_weights_of_another_generator(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 1)
    save_file({"fc.weight": torch.zeros(3, 4), "fc.weight_u": torch.zeros(9)}, checkpoint / GENERATOR_FILE)
    digest = hashlib.sha256((checkpoint / GENERATOR_FILE).read_bytes()).hexdigest()
    change_json(checkpoint / CHECKPOINT_JSON, generator_sha256=digest)
    with pytest.raises(CheckpointError, match=f"holds 12 parameters, .* says {PARAMETERS}"):
        inspect_path(checkpoint)


def test_a_checkpoint_that_stores_no_count_is_counted(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    """Older versions stored none. Its tensors are counted, so another generator's give another figure."""
    run = tmp_path / "run"
    checkpoint = make_checkpoint(run, 1, parameters=None)
    assert facts(inspect_path(checkpoint))["parameters"] == str(PARAMETERS)
    assert facts(inspect_path(run))["parameters"] == str(PARAMETERS)
    save_file({"fc.weight": torch.zeros(3, 4), "fc.weight_u": torch.zeros(9)}, checkpoint / GENERATOR_FILE)
    digest = hashlib.sha256((checkpoint / GENERATOR_FILE).read_bytes()).hexdigest()
    change_json(checkpoint / CHECKPOINT_JSON, generator_sha256=digest)
    assert facts(inspect_path(checkpoint))["parameters"] == "12"
    (checkpoint / GENERATOR_FILE).write_bytes(b"damaged")
    assert facts(inspect_path(run))["parameters"].startswith("not known: ")


@pytest.mark.parametrize("count", [-1, 2.5, "9", True])
def test_a_count_that_cannot_be(tmp_path: Path, make_checkpoint: Callable[..., Path], count: Any) -> None:
    with pytest.raises(CheckpointError, match="parameters"):
        inspect_path(make_checkpoint(tmp_path / "run", 1, parameters=count))


def test_an_artifact_tells_the_count_that_it_stores(tmp_path: Path) -> None:
    stored = stand_in_artifact(tmp_path / "a", PLAIN)
    # An older version stored none: the float32 constants of the stand-in's graph are counted, its scalars left out.
    assert facts(inspect_path(stored.path))["parameters"] == "0 stored in generator.fp32.onnx"
    manifest = replace(stored.manifest, source=replace(stored.manifest.source, parameters=1_234_567))
    rewrite_manifest(stored.path, manifest)
    assert facts(inspect_path(stored.path))["parameters"] == "1.23 M"


def test_a_checkpoint_without_its_json(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    checkpoint = make_checkpoint(tmp_path / "run", 1)
    (checkpoint / CHECKPOINT_JSON).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: is missing"):
        inspect_path(checkpoint / GENERATOR_FILE)


@pytest.mark.parametrize("shape", [[10**9, 10**9], [1] * 9, [-1], [True], [2.0], "23", None])
def test_shapes_that_cannot_be(tmp_path: Path, shape: Any) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": shape}}).encode()
    path = tmp_path / GENERATOR_FILE
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(CheckpointError, match="not a safetensors file, or damaged"):
        read_tensor_count(path)


def test_an_absurd_spec_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`base_channels`: 1000+\.\.\.0+ is not an even number in 2\.\.1024"):
        replace(PLAIN, base_channels=10**400)


HEADER: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "__metadata__": {"format": "pt"},
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "b"]), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=JSON_VALUES, place=st.sampled_from(["whole", "entry", "shape", "bytes"]), cut=st.integers(0, 40))
def test_fuzz_the_header(tmp_path_factory: pytest.TempPathFactory, value: Any, place: str, cut: int) -> None:
    entry: Any = {**HEADER["a"], "shape": value} if place == "shape" else value
    text = json.dumps(value if place == "whole" else {**HEADER, "a": entry}).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(24)
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content[cut:] if place == "bytes" else content)
    with contextlib.suppress(CheckpointError):
        assert read_tensor_count(path).parameters >= 0
