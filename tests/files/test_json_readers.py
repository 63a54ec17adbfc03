"""Every JSON file that the product reads, damaged in every way: a clear error of the right kind, short, printable."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact, rewrite_manifest, write_engine
from spade_deploy.artifact.manifest import manifest_digest
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey
from spade_deploy.engines.tensorrt.store import stored_engines
from spade_deploy.errors import ArtifactError, CheckpointError, ConfigError, SpadeError
from spade_deploy.files.reading import MAX_JSON_BYTES, parse_json
from spade_deploy.inspection.describe import inspect_path
from spade_deploy.inspection.description import Description
from spade_deploy.metrics.extractor import OnnxExtractor
from spade_deploy.runs import read_best
from spade_deploy.runs.safetensors_header import read_tensor_count
from spade_deploy.spec import Flavour, GeneratorSpec, GraphKind, LabelSpec, Precision, ShapeProfile
from tests.support.onnx_judges import extractor_file
from tests.support.stand_in import PLAIN, stand_in_artifact

torch = pytest.importorskip("torch")
from spade_deploy.networks.spade import SpadeGenerator  # noqa: E402
from spade_deploy.runs.checkpoint import TrainingState, save_checkpoint  # noqa: E402
from spade_deploy.runs.shipped import shipped_generator, write_shipped  # noqa: E402
from spade_deploy.training.presets import preset  # noqa: E402
from spade_deploy.training.records.class_counts import ClassCounts  # noqa: E402
from spade_deploy.training.records.timeline import _image_size  # noqa: E402
from spade_deploy.training.saved_setup import load_setup  # noqa: E402

LABELS = LabelSpec(3, names=("sea", "land", "ice"), palette=((0, 0, 1), (0, 1, 0), (1, 0, 0)))
SPEC = GeneratorSpec(LABELS, base_channels=2, hidden_channels=4, height=32, width=32)


@dataclass(frozen=True)
class Reader:
    """make: a folder with the file, whole, and what belongs to it; returns its path. read: all that reads it.

    error: what may be raised. signed: makes changed content pass its digest. is_optional: it is read if it can be.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    error: type[SpadeError]
    signed: Callable[[Path, dict[str, Any]], None] = field(default=lambda path, value: None)
    is_optional: bool = False


def make_checkpoint(folder: Path) -> Path:
    checkpoint = folder / "run" / "checkpoints" / "step_00000001"
    setup = preset("earth", size=(32, 32))
    state = TrainingState({"a": torch.zeros(1)}, {"step": 1})
    save_checkpoint(checkpoint, SpadeGenerator(SPEC), step=1, origin="train", setup=setup, state=state)
    return checkpoint / "checkpoint.json"


def read_checkpoint(path: Path) -> Any:
    load_setup(path.parent)
    return inspect_path(path.parent)


def make_best(folder: Path) -> Path:
    best = {"step": 1, "metric": "kid", "value": 0.5, "direction": "lower", "measured_with": {"samples": 4}}
    (folder / "best.json").write_text(json.dumps(best))
    return folder / "best.json"


def make_artifact(folder: Path) -> Path:
    return stand_in_artifact(folder / "artifact", PLAIN).path / "manifest.json"


def sign_manifest(path: Path, value: dict[str, Any]) -> None:
    if "manifest_sha256" in value:
        value["manifest_sha256"] = manifest_digest(value)


def make_report(folder: Path) -> Path:
    artifact = stand_in_artifact(folder / "artifact", PLAIN)
    figures = {"max_abs": 1e-6, "psnr_db": 80.0}
    report = {
        "passed": True,
        "reference": "torch",
        "graphs": [{"precision": "fp32", "passed": True, "figures": figures}],
    }
    (artifact.path / "report.json").write_text(json.dumps(report))
    rewrite_manifest(artifact.path, artifact.manifest)
    return artifact.path / "report.json"


def read_report(path: Path) -> Any:
    rewrite_manifest(path.parent, _opened(path.parent))
    return inspect_path(path.parent)


def _opened(folder: Path) -> Any:
    from spade_deploy.artifact.manifest import read_manifest

    return read_manifest(folder)


def make_engine(folder: Path) -> Path:
    artifact = stand_in_artifact(folder / "artifact", PLAIN)
    digest = artifact.manifest.files[artifact.graph().file].sha256
    key = EngineKey(
        digest, Flavour.TENSORRT, "11.4.0.106", "a card", "8.9", "linux-x86_64", Precision.FP32, GraphKind.DENSE,
        ShapeProfile.parse("1x64x32"), BuildOptions(3, 1 << 30),
    )  # fmt: skip
    layers = [{"name": "conv_2", "kind": "conv", "types": ["fp32"], "covers": ["conv_2"]}]
    proof = {"precision": "fp32", "total": 3, "asked": 3, "reached": 3, "of_engine": True, "layers": layers}
    write_engine(artifact, "fp32.dense.0", b"an engine", key=key.to_json(), proof=proof, seconds=1.0)
    return artifact.path / "engines" / "fp32.dense.0.json"


def read_engine(path: Path) -> Any:
    folder = path.parent.parent
    stored_engines(Artifact.open(folder))
    inspect_path(folder)
    return inspect_path(path)


def make_sidecar(folder: Path) -> Path:
    extractor_file(folder / "e.onnx", facts=None)
    facts = {"name": "e", "mean": [1, 2, 3], "std": 2.5, "size": [8, 8], "output": "features"}
    (folder / "e.json").write_text(json.dumps(facts))
    return folder / "e.json"


def make_shipped(folder: Path) -> Path:
    write_shipped(SpadeGenerator(SPEC).eval(), "earth", "none", folder)
    return folder / "earth.json"


def make_config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(preset("earth", size=(32, 32)).to_json()))
    return folder / "config.json"


def make_classes(folder: Path) -> Path:
    counts = ClassCounts(LABELS)
    counts.add(torch.zeros(2, 4, 4, dtype=torch.int64))
    counts.write(folder)
    return folder / "classes.json"


def make_header(folder: Path) -> Path:
    """The JSON at the beginning of a safetensors file, in a file of its own."""
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
    (folder / "header.json").write_text(json.dumps(header))
    return folder / "header.json"


def read_header(path: Path) -> Any:
    content = path.read_bytes() if path.is_file() and path.stat().st_size < MAX_JSON_BYTES else b" " * 100
    file = path.with_name("w.safetensors")
    file.write_bytes(len(content).to_bytes(8, "little") + content + bytes(24))
    return read_tensor_count(file)


def read_facts(path: Path) -> Any:
    return OnnxExtractor(path.with_suffix(".onnx")).name


def read_shipped(path: Path) -> Any:
    return shipped_generator("earth", path.parent)


def read_classes(path: Path) -> Any:
    return ClassCounts.resumed(path.parent, LABELS, 1)


READERS: dict[str, Reader] = {
    "checkpoint.json": Reader(make_checkpoint, read_checkpoint, CheckpointError),
    "best.json": Reader(make_best, lambda path: read_best(path.parent), CheckpointError),
    "manifest.json": Reader(make_artifact, lambda path: inspect_path(path.parent), ArtifactError, sign_manifest),
    "report.json": Reader(make_report, read_report, ArtifactError, is_optional=True),
    "an engine's manifest": Reader(make_engine, read_engine, ArtifactError),
    "an extractor's facts": Reader(make_sidecar, read_facts, ConfigError),
    "a shipped model's facts": Reader(make_shipped, read_shipped, CheckpointError),
    "config.json": Reader(make_config, lambda path: _image_size(path.parent), CheckpointError),
    "classes.json": Reader(make_classes, read_classes, SpadeError, is_optional=True),
    "a safetensors header": Reader(make_header, read_header, CheckpointError),
}

DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(100),
    "cut": b'{"step": 1, "a": [1, 2',
    "a list": b"[1, 2]",
    "a text": b'"text"',
    "a number": b"5",
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nested lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NaN": b'{"step": NaN}',
    "infinity": b'{"step": -Infinity}',
    "beyond floats": b'{"step": 1e999}',
    "a huge integer": b'{"step": 1' + b"0" * 400 + b"}",
    "a huger integer": b'{"step": 1' + b"0" * 50_000 + b"}",
    "a key twice": b'{"step": 1, "step": 2}',
}

WRONG: tuple[Any, ...] = (
    None, True, -1, 1 << 62, 1.5, "y" * 5000, "\ud800\x1b[31m\n\x00", "9" * 5000, [], ["z" * 5000] * 500, {},
    [{"name": ["n"]}],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in inner:
        yield (*path, key)
        yield from places(entry, (*path, key))


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    copied = copy.deepcopy(value)
    at = copied
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return copied


def check_message(error: SpadeError, folder: Path) -> None:
    """Short, and printable on every terminal."""
    text = f"{error.message} {error.hint or ''}".replace(str(folder), "")
    assert len(text) < 700, text
    text.encode("utf-8")
    assert not set(text) & {"\x1b", "\x00"}


def check_cells(found: Any) -> None:
    if isinstance(found, Description):
        cells = [cell for row in found.rows for cell in row]
        cells += [cell for table in found.tables for row in table.rows for cell in row]
        text = "".join(cells)
        text.encode("utf-8")
        assert not set(text) & {"\x1b", "\x00"}
        assert max(map(len, cells)) <= 500


def read_damaged(reader: Reader, path: Path, folder: Path, *, must_fail: bool) -> None:
    try:
        found = reader.read(path)
    except reader.error as error:
        check_message(error, folder)
    else:
        assert reader.is_optional or not must_fail
        check_cells(found)


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    """The counter-test; with a byte order mark, too."""
    reader = READERS[name]
    path = reader.make(tmp_path)
    reader.read(path)
    if name != "a safetensors header":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        reader.read(path)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path)
    for content in DAMAGED.values():
        path.write_bytes(content)
        read_damaged(reader, path, tmp_path, must_fail=True)


@pytest.mark.parametrize("name", READERS)
def test_every_field_of_another_type(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path)
    whole = json.loads(path.read_bytes())
    tried = 0
    for place in places(whole):
        for wrong in WRONG:
            value = changed(whole, place, wrong)
            reader.signed(path, value)
            path.write_text(json.dumps(value))
            read_damaged(reader, path, tmp_path, must_fail=False)
            tried += 1
    assert tried >= len(WRONG) * 4


@pytest.mark.parametrize("name", [name for name in READERS if name != "a safetensors header"])
def test_what_is_no_regular_file_or_too_large(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    path = reader.make(tmp_path)
    whole = path.with_name("whole")
    shutil.move(path, whole)
    targets = {"device": "/dev/zero", "dangling": "nothing"}
    for target in targets.values():
        path.symlink_to(target)
        read_damaged(reader, path, tmp_path, must_fail=True)
        path.unlink()
    os.mkfifo(path)
    read_damaged(reader, path, tmp_path, must_fail=True)
    path.unlink()
    path.mkdir()
    read_damaged(reader, path, tmp_path, must_fail=True)
    path.rmdir()
    with path.open("wb") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)
    read_damaged(reader, path, tmp_path, must_fail=True)


def test_the_digest_of_a_manifest_is_still_asked_for(tmp_path: Path) -> None:
    path = make_artifact(tmp_path)
    value = json.loads(path.read_text())
    value["source"]["run"] = "another"
    path.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match="digest differs"):
        Artifact.open(path.parent)
    assert hashlib.sha256(b"").hexdigest() != manifest_digest(value)


@pytest.mark.parametrize("content", [b'{"a": 9223372036854775807}', b'{"a": -0.0, "b": 1e-300}', b"  {}\n"])
def test_numbers_that_are_read(content: bytes) -> None:
    assert parse_json(content) == json.loads(content)
